"""Convert targets of the config to roots of attribution graphs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ..config.circuits import Target
from ..corpus.prompt_text import AnswerToken, PromptText, read_prompt
from ..corpus.token_names import token_name
from ..corpus.tokenizer import Tokenizer
from .direct_effects import feature_targets, logit_targets
from .graph import Roots
from .linearized_model import LinearizedModel

MAX_NAMED = 6
"""Largest number of alternatives that an error message lists."""


@dataclass(frozen=True)
class RootNode:
    """Description of one root of a graph."""

    kind: str
    """`feature`, `logit` or `difference`."""
    name: str
    """The token for a logit, `A - B` for a difference of logits, or LAYER/FEATURE for a feature."""
    position: int
    weight: float
    """Weight of the root in the influence, as in `Roots.weight`."""
    token_id: int | None = None
    """Id of the token of a logit, or of the first token of a difference; None for a feature."""
    layer: int | None = None
    feature: int | None = None


def tokenize_prompt(
    text: str, tokenizer: Tokenizer, context: int, special: bool = False
) -> Int[Tensor, " position"]:
    """Returns the token ids of a prompt, as `read_prompt` reads it, whose errors it raises."""
    return torch.from_numpy(read_prompt(text, tokenizer, context, special).token)


def resolve_position(position: int, model: LinearizedModel) -> int:
    """Convert a negative position, which counts from the end of the prompt, to a position from the start.

    Raises ValueError if the position is outside the prompt.
    """
    length = len(model.captured)
    if not -length <= position < length:
        raise ValueError(
            f"position {position} is outside the prompt of {length} tokens; choose 0 to {length - 1}"
        )
    return position % length


def read_answers(target: Target, prompt: PromptText) -> list[AnswerToken]:
    """Returns the tokens of the target kinds `logit` and `difference`. Raises ValueError if an answer is not one
    token, or if both are the same."""
    return prompt.answers(target)


def find_roots(
    model: LinearizedModel,
    target: Target,
    strings: list[str],
    answers: Sequence[AnswerToken] = (),
    logits: int = 10,
    probability: float = 0.95,
    seed: int = 0,
) -> tuple[Roots, list[RootNode]]:
    """Returns the roots of the graph for a target, and a description of each root.

    `answers` are the tokens of the target, from `read_answers`. For the target `logits`, the roots are the most
    probable next tokens. Tokens are added until the sum of probabilities reaches `probability`. At most `logits` tokens
    are added. `seed` determines the feature of a random target. Raises ValueError if a position, layer or feature does
    not exist, or if the feature does not fire at the position.
    """
    position = resolve_position(target.position, model)
    if target.kind in ("feature", "random"):
        return _feature_root(model, target, position, seed)
    vocabulary = model.captured.unembedding.weight.shape[0]
    zeros = model.captured.resid_final.new_zeros
    if target.kind == "logits":
        probabilities = model.captured.probabilities(position)
        ordered = probabilities.sort(descending=True)
        wanted = int((ordered.values.cumsum(0) < probability).sum()) + 1
        chosen = ordered.indices[: min(logits, wanted)]
        weights = zeros(len(chosen), vocabulary)
        weights[torch.arange(len(chosen)), chosen] = 1
        roots = [
            RootNode("logit", token_name(strings, i), position, float(probabilities[i]), token_id=i)
            for i in chosen.tolist()
        ]
    else:
        weights = zeros(1, vocabulary)
        for answer, sign in zip(answers, (1, -1), strict=False):
            weights[0, answer.token_id] += sign
        name = " - ".join(answer.name for answer in answers)
        token = answers[0].token_id
        roots = [RootNode(target.kind, name, position, 1.0, token_id=token)]
    positions = torch.full((len(roots),), position, device=weights.device)
    weight = weights.new_tensor([root.weight for root in roots])
    return Roots(logit_targets(model, positions, weights), weight), roots


def _feature_root(
    model: LinearizedModel, target: Target, position: int, seed: int
) -> tuple[Roots, list[RootNode]]:
    features = model.features
    if target.layer is not None and target.layer not in model.dictionaries:
        known = ", ".join(map(str, model.dictionaries))
        raise ValueError(f"layer {target.layer} has no dictionary; choose from {known}")
    at = features.position == position
    if target.kind == "random":
        if target.layer is not None:
            at &= features.layer == target.layer
        active = at.nonzero()[:, 0]
        if not len(active):
            raise ValueError(f"no feature fires at position {position}; choose another position or layer")
        # features of the last layer have the most sources
        active = active[features.layer[active] == features.layer[active].max()]
        index = int(active[torch.randint(len(active), (1,), generator=torch.Generator().manual_seed(seed))])
    else:
        index = _find_active(model, target, position)
    layer, feature = int(features.layer[index]), int(features.feature[index])
    targets = feature_targets(model, torch.tensor([index], device=features.layer.device))
    name = f"{layer}/{feature}"
    root = RootNode("feature", name, position, 1.0, layer=layer, feature=feature)
    return Roots(targets, model.captured.resid_final.new_ones(1)), [root]


def _find_active(model: LinearizedModel, target: Target, position: int) -> int:
    """Returns the index of the target feature in `model.features`. Raises ValueError if the feature does not fire."""
    assert target.layer is not None and target.feature is not None
    name, features = f"feature {target.layer}/{target.feature}", model.features
    width = model.dictionaries[target.layer].width
    if target.feature >= width:
        raise ValueError(f"{name}: layer {target.layer} has features 0 to {width - 1}; choose one of them")
    index = features.find(target.layer, position, target.feature)
    if index is None:
        own = (features.layer == target.layer) & (features.feature == target.feature)
        elsewhere = features.position[own].tolist()
        if elsewhere:
            where = ", ".join(map(str, elsewhere[:MAX_NAMED]))
            raise ValueError(
                f"{name} does not fire at position {position}; it fires at {where}: name one with @"
            )
        others = features.feature[(features.layer == target.layer) & (features.position == position)].tolist()
        named = ", ".join(map(str, others[:MAX_NAMED])) or "none"
        raise ValueError(
            f"{name} fires nowhere in the prompt; features of layer {target.layer} that fire at position "
            f"{position}: {named}"
        )
    return index
