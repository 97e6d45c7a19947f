"""Which prompts are traced, to which targets, and what is done to the circuits that are found."""

import re
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from .base import Section

RESERVED = ("weights",)
"""Names, beside those of prompts, of folders of the stage."""
Share = Annotated[float, Field(gt=0, le=1)]


class Target(NamedTuple):
    """What a circuit explains."""

    kind: Literal["logits", "logit", "difference", "feature", "random"]
    position: int
    """Negative from the end; -1 is the last token."""
    token: str = ""
    against: str = ""
    """The token whose logit is taken off (difference)."""
    layer: int | None = None
    feature: int | None = None


class FeatureReference(NamedTuple):
    """A feature, at one position or at all."""

    layer: int
    feature: int
    position: int | None = None
    """Negative from the end; None for all."""


def parse_target(text: str) -> Target:
    """A target as it is written: `logits`, `logit cat`, `logit cat vs dog`, `feature 3/235`, `random`, `random 3`.

    `@5` or `@-2` behind it says at which token, the last where nothing does. Raises ValueError where it is none.
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
        "with @POSITION behind it for another token than the last"
    )


def parse_feature(text: str) -> FeatureReference:
    """A feature as it is written: `3/235`, or `3/235@5` for one position. Raises ValueError where it is none."""
    found = re.fullmatch(r"(\d+)/(\d+)(?:@(-?\d+))?", text.strip())
    if not found:
        raise ValueError(f"{text!r} is no feature; write LAYER/NUMBER or LAYER/NUMBER@POSITION")
    layer, feature, position = found.groups()
    return FeatureReference(int(layer), int(feature), int(position) if position else None)


def _is_target(text: str) -> str:
    parse_target(text)
    return text


def _is_place(text: str) -> str:
    parse_feature(text)
    return text


class FeatureChange(Section):
    """What is done to features while the prompt goes through the model."""

    kind: Literal["ablate", "scale", "clamp", "keep", "patch"]
    """`ablate`: to 0; `scale`: times `strength`; `clamp`: to `strength`; `keep`: all others of their layers to 0;
    `patch`: to what they are on another prompt."""
    features: Annotated[list[Annotated[str, AfterValidator(_is_place)]], Field(min_length=1)]
    """Features, as `LAYER/NUMBER` (at all positions) or `LAYER/NUMBER@POSITION`."""
    strength: float | None = None
    """Factor (scale) or activation (clamp)."""
    source: str | None = None
    """The other prompt of a patch, of as many tokens."""

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
    """A text and what of the model's answer to it is explained."""

    text: Annotated[str, Field(min_length=1)]
    """The text; a BOS is put in front where the tokenizer has one."""
    target: Annotated[str, AfterValidator(_is_target)] = "logits"
    """`logits` (the likeliest next tokens), `logit TOKEN`, `logit TOKEN vs TOKEN`, `feature LAYER/NUMBER` or `random
    [LAYER]` (a live feature), with `@POSITION` behind it for another token than the last."""
    run: str | None = None
    """Transcoders that it is traced through; null: those of `circuits.run`."""
    changes: list[FeatureChange] = []
    """What is done to features, with everything else held and with nothing held."""


class WeightsConfig(Section):
    """What the weights alone say about the traced transcoders' features, and how well that predicts where they fire."""

    tokens: PositiveInt = 10
    """Tokens kept that raise a feature most, and as many that lower it most, each way that they do."""
    connections: PositiveInt = 10
    """Features of earlier layers kept that a feature reads most, directly, and as many through a head."""
    heads: NonNegativeInt = 1
    """Heads of a feature through which both are looked for."""
    blind_features: NonNegativeInt = 50
    """Features a layer whose tokens are predicted without seeing a text."""
    contexts: PositiveInt = 8
    """Places where a feature fires that its prediction may rest on, unseen (protocol `plain`)."""
    context_tokens: PositiveInt = 8192
    """Held-out tokens that contexts, and the means of connections, are taken from: at most half of them all."""
    scored_tokens: PositiveInt = 32_768
    """Held-out tokens behind those that predictions are scored on."""
    batch: PositiveInt = 32
    """Sequences a forward pass."""


class BehaviourPrompt(Section):
    """A text and a number read off the prediction behind it."""

    text: Annotated[str, Field(min_length=1)]
    """The text; a BOS is put in front where the tokenizer has one."""
    target: str
    """`logit TOKEN` or `logit TOKEN vs TOKEN`, of the next token."""

    @model_validator(mode="after")
    def _of_logits(self) -> "BehaviourPrompt":
        target = parse_target(self.target)
        if target.kind not in ("logit", "difference") or target.position != -1:
            raise ValueError(
                f"target {self.target!r}: behaviours are read off the last token's logits; write `logit TOKEN` or "
                "`logit TOKEN vs TOKEN`"
            )
        return self


class Behaviour(Section):
    """Prompts of one behaviour, and the bases in which is looked for what it depends on: features, heads, neurons."""

    prompts: Annotated[list[BehaviourPrompt], Field(min_length=1)]
    """Texts, each with what is read off its prediction."""
    runs: list[str] | None = None
    """Runs whose features are a basis each, beside heads and neurons; null: the traced transcoders."""
    ablations: Annotated[list[Literal["zero", "mean"]], Field(min_length=1)] = ["zero"]
    """What ablated components are set to: zero, or their mean over the prompts."""
    measured: NonNegativeInt | None = 100
    """Components ablated alone, for each prompt and basis: those of the largest attribution; null: all active ones."""
    per_source: PositiveInt | None = 64
    """Tokens on which a feature of resid_mid is ablated to see which features of the MLP change; null: all."""
    targets: PositiveInt | None = 32
    """Features of the MLP listed for each; null: all that change."""


T = TypeVar("T", Prompt, Behaviour)


def _names(sections: dict[str, T]) -> dict[str, T]:
    for name in sections:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in RESERVED:
            raise ValueError(
                f"{name!r} cannot be a study's name: letters, digits, _, ., -, and not {RESERVED[0]}; rename it"
            )
    return sections


class Circuits(Section):
    """Circuits through the features of transcoders."""

    run: str | None = None
    """Transcoders that prompts are traced through; null: the first run of transcoders."""
    prompts: Annotated[dict[str, Prompt], AfterValidator(_names)] = {}
    """Prompts by name, each a study of its own."""
    behaviours: Annotated[dict[str, Behaviour], AfterValidator(_names)] = {}
    """Behaviours by name, each a study of its own."""
    weights: WeightsConfig = WeightsConfig()
    """What the weights alone say about features."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number format of the model and all sums."""
    node_share: Share = 0.8
    """Share of the influence that the nodes of a graph hold."""
    edge_share: Share = 0.98
    """Share of what goes through them that its edges hold."""
    logits: PositiveInt = 10
    """Likeliest next tokens explained at most, where the target is `logits`."""
    probability: Share = 0.95
    """As many of them as hold so much of the probability."""
    length: PositiveInt = 5
    """Steps of the longest path."""
    width: PositiveInt = 20
    """Sources that a path is extended by, and paths kept at each length."""
    seed: NonNegativeInt = 0
    """Chooses the feature where the target is `random`."""

    @model_validator(mode="after")
    def _distinct(self) -> "Circuits":
        for name in self.prompts.keys() & self.behaviours.keys():
            raise ValueError(f"{name}: a prompt and a behaviour have this name; rename one")
        return self
