"""Prompts as tokens; targets as what of the model's answer they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ..config.circuits import Target
from ..corpus.tokenizer import Tokenizer
from .direct_effects import AttributionTargets, feature_targets, logit_targets
from .graph import Roots
from .linearized_model import LinearizedModel

NAMED = 6
"""Of what a message lists, as many as it names."""


@dataclass(frozen=True)
class Root:
    """What a root of a graph is."""

    kind: str
    """feature, logit or difference."""
    label: str
    position: int
    weight: float
    """How much of the graph is about it: a logit's probability, else 1."""
    token_id: int | None = None
    """The logit's token."""
    layer: int | None = None
    feature: int | None = None


def read_prompt(text: str, tokenizer: Tokenizer, context: int) -> Int[Tensor, " position"]:
    """The tokens of a prompt, BOS in front where there is one.

    Raises ValueError where it is empty, has a word that the tokenizer does not know, or exceeds `context` tokens.
    """
    if not text.strip():
        raise ValueError("the prompt is empty; give it at least one word")
    try:
        (ids,) = tokenizer.encode([text])
    # a tokenizer of words without one for unknown words; it raises nothing more particular
    except Exception as error:
        known = set(tokenizer.strings())
        unknown = [word for word in text.split() if word not in known]
        named = f" {unknown[0]!r}" if unknown else ""
        raise ValueError(
            f"the tokenizer does not know the word{named} of the prompt; use words of the corpus ({error})"
        ) from error
    token = [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *ids.tolist()]
    if len(token) > context:
        raise ValueError(f"the prompt has {len(token)} tokens, the model's context is {context}; shorten it")
    if len(token) < 2:
        raise ValueError("the prompt has no token that a dictionary reads: the first is left out; add a word")
    return torch.tensor(token)


def find_token(text: str, strings: list[str]) -> int:
    """The id of a token as it is written, with or without the blank in front of it.

    Raises ValueError where the vocabulary has none such.
    """
    for wanted in (text, f" {text}"):
        if wanted in strings:
            return strings.index(wanted)
    near = [token for token in strings if token.strip() and text.startswith(token.strip())]
    hint = f"; it begins with the token {max(near, key=len)!r}" if near else ""
    raise ValueError(f"{text!r} is no single token of the vocabulary{hint}; name another")


def find_position(position: int, model: LinearizedModel) -> int:
    """A position counted from the beginning; ValueError where it lies outside the prompt."""
    length = len(model.frozen)
    if not -length <= position < length:
        raise ValueError(
            f"position {position} is outside the prompt of {length} tokens; choose 0 to {length - 1}"
        )
    return position % length


def find_roots(
    model: LinearizedModel,
    target: Target,
    strings: list[str],
    logits: int = 10,
    probability: float = 0.95,
    seed: int = 0,
) -> tuple[Roots, list[Root]]:
    """What a graph with this target explains, and what each root is.

    Of `logits`, the fewest that hold `probability` of the next token's, at most so many. Raises ValueError where a
    token, position, layer or feature is not there, or the feature does not fire.
    """
    position = find_position(target.position, model)
    if target.kind in ("feature", "random"):
        return _feature_root(model, target, position, seed)
    vocabulary = model.frozen.unembedding.weight.shape[0]
    here = model.frozen.resid_final.new_zeros
    chances = model.frozen.probabilities[position]
    if target.kind == "logits":
        ordered = chances.sort(descending=True)
        wanted = int((ordered.values.cumsum(0) < probability).sum()) + 1
        chosen = ordered.indices[: min(logits, wanted)]
        weights = here(len(chosen), vocabulary)
        weights[torch.arange(len(chosen)), chosen] = 1
        roots = [
            Root(
                "logit", strings[i] if i < len(strings) else f"#{i}", position, float(chances[i]), token_id=i
            )
            for i in chosen.tolist()
        ]
    else:
        token = find_token(target.token, strings)
        weights = here(1, vocabulary)
        weights[0, token] = 1
        label = strings[token]
        if target.kind == "difference":
            against = find_token(target.against, strings)
            weights[0, against] -= 1
            label = f"{label} - {strings[against]}"
        roots = [Root(target.kind, label, position, 1.0, token_id=token)]
    places = torch.full((len(roots),), position, device=weights.device)
    return Roots(logit_targets(model, places, weights), here(len(roots)) + _weights(roots, weights)), roots


def _weights(roots: Sequence[Root], like: Tensor) -> Tensor:
    return torch.tensor([root.weight for root in roots], dtype=like.dtype, device=like.device)


def _feature_root(
    model: LinearizedModel, target: Target, position: int, seed: int
) -> tuple[Roots, list[Root]]:
    features = model.features
    if target.layer is not None and target.layer not in model.dictionaries:
        known = ", ".join(map(str, model.dictionaries))
        raise ValueError(f"layer {target.layer} has no dictionary; choose from {known}")
    at = features.position == position
    if target.kind == "random":
        if target.layer is not None:
            at &= features.layer == target.layer
        live = at.nonzero()[:, 0]
        if not len(live):
            raise ValueError(f"no feature fires at position {position}; choose another position or layer")
        # the last layer has the most to explain
        live = live[features.layer[live] == features.layer[live].max()]
        place = int(live[torch.randint(len(live), (1,), generator=torch.Generator().manual_seed(seed))])
    else:
        place = _firing(model, target, position)
    layer, feature = int(features.layer[place]), int(features.feature[place])
    targets: AttributionTargets = feature_targets(model, torch.tensor([place], device=features.layer.device))
    label = f"{layer}/{feature}"
    root = Root("feature", label, position, 1.0, layer=layer, feature=feature)
    return Roots(targets, model.frozen.resid_final.new_ones(1)), [root]


def _firing(model: LinearizedModel, target: Target, position: int) -> int:
    """The place of a feature that fires; ValueError, with what there is instead, where it does not."""
    assert target.layer is not None and target.feature is not None
    name, features = f"feature {target.layer}/{target.feature}", model.features
    width = model.dictionaries[target.layer].width
    if target.feature >= width:
        raise ValueError(f"{name}: layer {target.layer} has features 0 to {width - 1}; choose one of them")
    place = features.find(target.layer, position, target.feature)
    if place is None:
        own = (features.layer == target.layer) & (features.feature == target.feature)
        elsewhere = features.position[own].tolist()
        if elsewhere:
            where = ", ".join(map(str, elsewhere[:NAMED]))
            raise ValueError(
                f"{name} does not fire at position {position}; it fires at {where}: name one with @"
            )
        others = features.feature[(features.layer == target.layer) & (features.position == position)].tolist()
        named = ", ".join(map(str, others[:NAMED])) or "none"
        raise ValueError(
            f"{name} fires nowhere in the prompt; of layer {target.layer}, at position {position} fire {named}"
        )
    return place
