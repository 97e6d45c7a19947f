"""Circuits: traced prompts and their targets, interventions on features, behaviours, and analysis of weights."""

import re
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from .base import Section

RESERVED = ("weights",)
"""Names that prompts and behaviours cannot have, because the stage has folders of these names."""
Fraction = Annotated[float, Field(gt=0, le=1)]


class Target(NamedTuple):
    """What a trace explains."""

    kind: Literal["logits", "logit", "difference", "feature", "random"]
    position: int
    """Position in the prompt; negative: from the end."""
    token: str = ""
    against: str = ""
    """Token whose logit is subtracted (difference)."""
    layer: int | None = None
    feature: int | None = None


class FeatureReference(NamedTuple):
    """A feature, at one position or at all positions."""

    layer: int
    feature: int
    position: int | None = None
    """Negative: from the end; None: all positions."""


def parse_target(text: str) -> Target:
    """Parse a target: `logits`, `logit cat`, `logit cat vs dog`, `feature 3/235`, `random` or `random 3`.

    A suffix `@5` or `@-2` gives the position; the default is the last. Raises ValueError for any other text.
    """
    match = re.fullmatch(r"(?s)(.*?)(?: *@ *(-?\d+))?", text.strip())
    assert match is not None
    words, position = match.group(1), int(match.group(2) or -1)
    if words == "logits":
        return Target("logits", position)
    if found := re.fullmatch(r"(?s)logit (.+?) vs (.+)", words):
        return Target("difference", position, found.group(1), found.group(2))
    if found := re.fullmatch(r"(?s)logit (.+)", words):
        return Target("logit", position, found.group(1))
    if found := re.fullmatch(r"feature (\d+)/(\d+)", words):
        return Target("feature", position, layer=int(found.group(1)), feature=int(found.group(2)))
    if found := re.fullmatch(r"random(?: (\d+))?", words):
        return Target("random", position, layer=int(found.group(1)) if found.group(1) else None)
    raise ValueError(
        f"{text!r} is no target; write logits, logit TOKEN, logit TOKEN vs TOKEN, feature LAYER/NUMBER or random, "
        "and append @POSITION for another position than the last"
    )


def parse_feature(text: str) -> FeatureReference:
    """Parse a feature: `3/235`, or `3/235@5` at one position. Raises ValueError for any other text."""
    found = re.fullmatch(r"(\d+)/(\d+)(?:@(-?\d+))?", text.strip())
    if not found:
        raise ValueError(f"{text!r} is no feature; write LAYER/NUMBER or LAYER/NUMBER@POSITION")
    layer, feature, position = found.groups()
    return FeatureReference(int(layer), int(feature), int(position) if position else None)


def _check_target(text: str) -> str:
    parse_target(text)
    return text


def _check_feature(text: str) -> str:
    parse_feature(text)
    return text


class FeatureChange(Section):
    """An intervention on features during a forward pass of the prompt."""

    kind: Literal["ablate", "scale", "clamp", "keep", "patch"]
    """`ablate`: set to 0; `scale`: multiply by `strength`; `clamp`: set to `strength`; `keep`: set all other features
    of their layers to 0; `patch`: set to their activations on another prompt."""
    features: Annotated[list[Annotated[str, AfterValidator(_check_feature)]], Field(min_length=1)]
    """Features, as `LAYER/NUMBER` (at all positions) or `LAYER/NUMBER@POSITION`."""
    strength: float | None = None
    """Factor (scale) or activation (clamp)."""
    source: str | None = None
    """Source prompt of a patch, with the same number of tokens."""

    @model_validator(mode="after")
    def _complete(self) -> "FeatureChange":
        if (self.kind in ("scale", "clamp")) != (self.strength is not None):
            needed = "needs" if self.strength is None else "takes no"
            raise ValueError(
                f"{self.kind} {needed} `strength`; {'give it' if needed == 'needs' else 'leave it out'}"
            )
        if (self.kind == "patch") != (self.source is not None):
            needed = "needs" if self.source is None else "takes no"
            raise ValueError(
                f"{self.kind} {needed} `source`; {'give it' if needed == 'needs' else 'leave it out'}"
            )
        return self


class Prompt(Section):
    """A text, and the part of the model's output to explain."""

    text: Annotated[str, Field(min_length=1)]
    """The text; a BOS is prepended if the tokenizer has one."""
    target: Annotated[str, AfterValidator(_check_target)] = "logits"
    """`logits` (the likeliest next tokens), `logit TOKEN`, `logit TOKEN vs TOKEN`, `feature LAYER/NUMBER` or `random
    [LAYER]` (an active feature); append `@POSITION` for another position than the last."""
    run: str | None = None
    """Run of transcoders to trace through; null: `circuits.run`."""
    changes: list[FeatureChange] = []
    """Interventions on features, measured with the rest of the model frozen and without freezing."""


class WeightsConfig(Section):
    """Analysis of the weights alone: de-embeddings and connections of the traced transcoders' features, and how well
    they predict where the features fire."""

    tokens: PositiveInt = 10
    """Number of top tokens and of bottom tokens per feature, for each path through the weights."""
    connections: PositiveInt = 10
    """Number of upstream features per feature, for direct connections and for connections through a head."""
    heads: NonNegativeInt = 1
    """Number of attention heads per feature for both."""
    blind_features: NonNegativeInt = 50
    """Features per layer whose activations are predicted from the weights alone."""
    contexts: PositiveInt = 8
    """Positions where a feature fires that its prediction may use, without their text (protocol `plain`)."""
    context_tokens: PositiveInt = 8192
    """Held-out tokens for contexts and for the mean activations of connections; at most half of all."""
    scored_tokens: PositiveInt = 32_768
    """Held-out tokens, after those, on which predictions are scored."""
    batch: PositiveInt = 32
    """Sequences per forward pass."""


class BehaviourPrompt(Section):
    """A text, and a metric of the logits at its last position."""

    text: Annotated[str, Field(min_length=1)]
    """The text; a BOS is prepended if the tokenizer has one."""
    target: str
    """`logit TOKEN` or `logit TOKEN vs TOKEN`, of the next token."""

    @model_validator(mode="after")
    def _target_is_a_logit(self) -> "BehaviourPrompt":
        target = parse_target(self.target)
        if target.kind not in ("logit", "difference") or target.position != -1:
            raise ValueError(
                f"target {self.target!r}: a behaviour is measured in the logits at the last position; write "
                "`logit TOKEN` or `logit TOKEN vs TOKEN`"
            )
        return self


class Behaviour(Section):
    """A behaviour: prompts and a metric; features, heads and neurons are ablated to find what it depends on."""

    prompts: Annotated[list[BehaviourPrompt], Field(min_length=1)]
    """Texts, each with its metric."""
    runs: list[str] | None = None
    """Runs whose features are ablated, in addition to heads and neurons; null: the traced transcoders."""
    ablations: Annotated[list[Literal["zero", "mean"]], Field(min_length=1)] = ["zero"]
    """Value of ablated components: zero, or their mean over the prompts."""
    measured: NonNegativeInt | None = 100
    """Number of components ablated one by one, per prompt and basis, by attribution; null: all active components."""
    per_source: PositiveInt | None = 64
    """Number of tokens on which a feature of resid_mid is ablated to measure changes of MLP features; null: all."""
    targets: PositiveInt | None = 32
    """Number of changed MLP features listed per feature; null: all."""


T = TypeVar("T", Prompt, Behaviour)


def _check_names(sections: dict[str, T]) -> dict[str, T]:
    for name in sections:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in RESERVED:
            raise ValueError(
                f"{name!r} is no valid name: use letters, digits, _, . and -, but not {RESERVED[0]}; rename it"
            )
    return sections


class Circuits(Section):
    """Attribution graphs through the features of transcoders, behaviours, and analysis of weights."""

    run: str | None = None
    """Run of transcoders to trace through; null: the first one."""
    prompts: Annotated[dict[str, Prompt], AfterValidator(_check_names)] = {}
    """Prompts by name; each becomes a trace."""
    behaviours: Annotated[dict[str, Behaviour], AfterValidator(_check_names)] = {}
    """Behaviours by name."""
    weights: WeightsConfig = WeightsConfig()
    """Analysis of the weights alone."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number format of the model and of all sums."""
    node_share: Fraction = 0.8
    """Pruning: fraction of the total influence that the kept nodes have."""
    edge_share: Fraction = 0.98
    """Pruning: fraction of the influence between kept nodes that the kept edges have."""
    logits: PositiveInt = 10
    """Maximum number of likeliest next tokens to explain, for the target `logits`."""
    probability: Fraction = 0.95
    """Cumulative probability of the next tokens to explain, for the target `logits`."""
    length: PositiveInt = 5
    """Steps of the longest path."""
    width: PositiveInt = 20
    """Beam width: number of sources that extend a path, and of paths kept at each length."""
    seed: NonNegativeInt = 0
    """Seed that chooses the feature, for the target `random`."""

    @model_validator(mode="after")
    def _names_differ(self) -> "Circuits":
        for name in self.prompts.keys() & self.behaviours.keys():
            raise ValueError(f"{name}: a prompt and a behaviour have this name; rename one")
        return self
