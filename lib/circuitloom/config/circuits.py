"""Config of the circuits: traced prompts and their targets, interventions, behaviours, and the analysis of weights."""

import json
import math
import re
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from .base import Batch, Section
from .templates import Aggregation, Slots, check_slots

RESERVED = ("weights",)
"""Names that prompts and behaviours cannot have, because other folders of the stage have these names."""
Fraction = Annotated[float, Field(gt=0, le=1)]
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_FEATURE = r"\d+/\d+(?:@-?\d+)?"


class AnswerText(NamedTuple):
    """What a target asks for: a token, as text."""

    text: str
    exact: bool
    """True if the token is exactly `text`. False if the token is the one with which `text` follows a prompt."""


class Target(NamedTuple):
    """What a trace explains, parsed from the text of the config."""

    kind: Literal["logits", "logit", "difference", "feature", "random"]
    position: int
    """Position in the prompt. A negative position counts from the end."""
    token: str = ""
    """The answer as written. `parse_answer` reads it."""
    against: str = ""
    """For the kind `difference`: the answer whose logit is subtracted, as written."""
    layer: int | None = None
    feature: int | None = None


class FeatureReference(NamedTuple):
    """A feature, at one position or at all positions."""

    layer: int
    feature: int
    position: int | None = None
    """Position in the prompt, or None for all positions. A negative position counts from the end."""


def parse_answer(written: str) -> AnswerText:
    """Parse an answer: a word such as `by`, or a token exactly, in quotes as in JSON: `"by"`, `" by"` or `"\\n"`.

    Raises ValueError if the text in quotes is empty or has an unknown escape.
    """
    if not re.fullmatch(_QUOTED, written, re.DOTALL):
        return AnswerText(written, False)
    try:
        text = json.loads(written, strict=False)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{written} cannot be read ({error.msg}); write quotes, backslashes and line breaks as in JSON: "
            r"\", \\, \n"
        ) from None
    if not text:
        raise ValueError('"" is no token; put its text between the quotes')
    return AnswerText(text, True)


def parse_target(text: str) -> Target:
    """Parse a target: `logits`, `logit cat`, `logit cat vs dog`, `feature 3/235`, `random` or `random 3`.

    The tokens of `logit` are read by `parse_answer`. A suffix such as `@5` or `@-2` gives the position. The default is
    the last position. Raises ValueError for any other text.
    """
    match = re.fullmatch(r"(?s)(.*?)(?: *@ *(-?\d+))?", text.strip())
    assert match is not None
    words, position = match.group(1), int(match.group(2) or -1)
    if words == "logits":
        return Target("logits", position)
    # a quoted answer is tried first, because ` vs ` inside quotes separates nothing
    for pattern in (rf"({_QUOTED})()", rf"({_QUOTED}|.+?) vs (.+)", r"(.+)()"):
        if found := re.fullmatch(f"(?s)logit {pattern}", words):
            token, against = found.groups()
            for answer in filter(None, (token, against)):
                parse_answer(answer)
            return Target("difference" if against else "logit", position, token, against)
    if found := re.fullmatch(r"feature (\d+)/(\d+)", words):
        return Target("feature", position, layer=int(found.group(1)), feature=int(found.group(2)))
    if found := re.fullmatch(r"random(?: (\d+))?", words):
        return Target("random", position, layer=int(found.group(1)) if found.group(1) else None)
    raise ValueError(
        f"{text!r} is no target; write logits, logit TOKEN, logit TOKEN vs TOKEN, feature LAYER/NUMBER or random, "
        "and append @POSITION for another position than the last"
    )


def parse_feature(text: str) -> FeatureReference:
    """Parse a feature such as `3/235`, or `3/235@5` for one position. Raises ValueError for any other text."""
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
    """An intervention that changes the activations of features during a forward pass of the prompt."""

    kind: Literal["ablate", "scale", "clamp", "add", "keep", "patch"]
    """Change of the activations of `features`. `ablate`: they become 0. `scale`: they are multiplied by `strength`.
    `clamp`: they become `strength`. `add`: `strength` is added to them. `keep`: all other features of the same layers
    become 0. `patch`: they become the activations on the prompt `source`."""
    features: Annotated[list[Annotated[str, AfterValidator(_check_feature)]], Field(min_length=1)]
    """Features to change, each written `LAYER/NUMBER` (at all positions) or `LAYER/NUMBER@POSITION`."""
    strength: float | None = None
    """The factor of `scale`, the activation of `clamp`, or the difference of `add`. Other kinds do not have this
    key."""
    source: str | None = None
    """For `patch`: the prompt whose activations are used. The two prompts must have the same number of tokens."""

    @model_validator(mode="after")
    def _complete(self) -> "FeatureChange":
        if (self.kind in ("scale", "clamp", "add")) != (self.strength is not None):
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


class RunChange(NamedTuple):
    """An intervention on features of one run."""

    run: str | None
    """None: the run that is used if none is named."""
    change: FeatureChange


def parse_change(kind: str, text: str) -> RunChange:
    """Parse an intervention: a kind of `FeatureChange` (or `set` for `clamp`), and a text such as `2/887=30`,
    `2/887@5=30`, `RUN:2/887=30`, `1/12` or `1/12,1/13`.

    Raises ValueError for any other text, and if the kind needs a value that is missing or takes none.
    """
    found = re.fullmatch(rf"(?:(.+):)?({_FEATURE}(?:\s*,\s*{_FEATURE})*)(?:=(.*))?", text.strip())
    name = {"set": "clamp"}.get(kind, kind)
    needs = name in ("scale", "clamp", "add")
    if name not in ("ablate", "scale", "clamp", "add", "keep"):
        raise ValueError(f"{kind!r} is no edit; write set, ablate, scale, add or keep")
    example = "2/887=30" if needs else "2/887"
    if not found or needs != (found[3] is not None):
        raise ValueError(
            f"{kind} {text!r} cannot be read; write {kind} LAYER/NUMBER{'=VALUE' if needs else ''}, such as {kind} "
            f"{example}, with RUN: in front for another run and @POSITION after NUMBER for one position"
        )
    try:
        strength = float(found[3]) if needs else None
    except ValueError:
        strength = math.nan
    if strength is not None and not math.isfinite(strength):
        raise ValueError(f"{kind} {text!r}: {found[3]!r} is no number; write {kind} {example}")
    features = [feature.strip() for feature in found[2].split(",")]
    return RunChange(found[1], FeatureChange(kind=name, features=features, strength=strength))  # type: ignore[arg-type]


def parse_changes(text: str) -> list[RunChange]:
    """Parse interventions separated by semicolons, each a kind and a feature: `set 2/887=30; ablate 1/12`.

    The errors are those of `parse_change`. Raises ValueError if there are none.
    """
    parts = [part.split(maxsplit=1) for part in text.split(";") if part.strip()]
    if not parts:
        raise ValueError("no edit is named; write one such as set 2/887=30 or ablate 1/12")
    return [parse_change(part[0], part[1] if len(part) > 1 else "") for part in parts]


class Prompt(Section):
    """A text, and the target to explain."""

    text: Annotated[str, Field(min_length=1)]
    """The text. A BOS is prepended if the tokenizer has one. A BOS at the start of the text counts once."""
    special_tokens: bool = False
    """Whether special tokens that the text spells out, such as `</s>`, are special tokens. If false, they are
    text."""
    target: Annotated[str, AfterValidator(_check_target)] = "logits"
    """What to explain: `logits` (the likeliest next tokens), `logit TOKEN`, `logit TOKEN vs TOKEN`, `feature
    LAYER/NUMBER`, or `random [LAYER]` (a random active feature). Append `@POSITION` for a position other than the
    last. TOKEN is a word as it follows the prompt in written text: `by` after `he was caught` is the token ` by`. In
    quotes it is exactly the token, with the escapes of JSON: `"by"`, `" by"`, `"\\n"`."""
    run: str | None = None
    """Run of transcoders to trace through, or a cross-layer transcoder. With null, it is `circuits.run`."""
    changes: list[FeatureChange] = []
    """Interventions on features. Each intervention is measured twice: with the rest of the model frozen, and with
    nothing frozen."""


class WeightsConfig(Section):
    """Analysis of the weights of the traced transcoders: de-embeddings, connections between features, and blind
    predictions."""

    tokens: PositiveInt = 10
    """Number of tokens to list per path through the weights: the tokens that raise a feature most. The same number of
    tokens that lower the feature most is listed too."""
    connections: PositiveInt = 10
    """Number of upstream features to list per feature, once for direct connections and once for connections through
    heads."""
    heads: NonNegativeInt = 1
    """Number of attention heads per feature in de-embeddings and connections."""
    blind_features: NonNegativeInt = 50
    """Number of features per layer for blind prediction. Blind prediction predicts the tokens on which a feature fires,
    without looking at text."""
    contexts: PositiveInt = 8
    """Number of contexts per feature for the protocol `plain` of blind prediction. A context is a position where the
    feature fires. `plain` uses the contributions at this position, but not the text."""
    context_tokens: PositiveInt = 8192
    """Number of held-out tokens for contexts and for the mean effects of connections. At most half of all held-out
    tokens are used."""
    scored_tokens: PositiveInt = 32_768
    """Number of held-out tokens on which predictions are scored. These tokens come after the first `context_tokens`."""
    batch: Batch = "auto"
    """Number of sequences per forward pass. With `auto`, the activations of a pass take at most 2 GB, with at most 32
    sequences. The number depends on the model and on `corpus.context`, not on the machine. It changes results only by
    rounding."""


SubgraphMethod = Literal["influence", "total_effect", "greedy"]


class SubgraphConfig(Section):
    """Search for the smallest subgraph of each traced prompt: the fewest features that keep a share of the target when
    all other features are ablated in the original model."""

    share: Fraction = 0.8
    """Share of the target that the subgraph must keep: (target with the subgraph alone - target with all features
    ablated) / (target of the original model - target with all features ablated). It must also be at most 2 - `share`: a
    few features that raise the target far above its value in the model do not explain it."""
    errors: Literal["keep", "ablate"] = "keep"
    """Whether the errors of the transcoders stay, or are set to zero as the other features are. Where no transcoder
    replaces the MLP (BOS, position 0), its output stays."""
    methods: Annotated[list[SubgraphMethod], Field(min_length=1)] = ["influence", "total_effect", "greedy"]
    """How to search. `influence` and `total_effect` keep the features that come first in a ranking: by influence in the
    graph of all active features, or by |effect on the target over all paths|. `greedy` removes the features whose loss
    is smallest, in rounds."""
    measured: PositiveInt = 128
    """Largest number of features of which `greedy` measures each loss by an ablation. In larger sets, losses are
    first-order estimates."""


class BehaviourPrompt(Section):
    """A text, and a metric of the logits at the last position."""

    text: Annotated[str, Field(min_length=1)]
    """The text. A BOS is prepended if the tokenizer has one. A BOS at the start of the text counts once."""
    special_tokens: bool = False
    """Whether special tokens that the text spells out are special tokens. If false, they are text."""
    target: str
    """The metric of the next token's logits: `logit TOKEN` or `logit TOKEN vs TOKEN`. TOKEN is read as in
    `prompts`."""

    @model_validator(mode="after")
    def _target_is_a_logit(self) -> "BehaviourPrompt":
        target = parse_target(self.target)
        if target.kind not in ("logit", "difference") or target.position != -1:
            raise ValueError(
                f"target {self.target!r}: a behaviour is measured in the logits at the last position; write "
                "`logit TOKEN` or `logit TOKEN vs TOKEN`"
            )
        return self


class Behaviour(Aggregation):
    """A behaviour is a set of prompts, each with a metric. Features, heads and neurons are ablated to find out what the
    behaviour depends on. The attribution graphs of its prompts are joined to one graph per template."""

    prompts: Annotated[list[BehaviourPrompt], Field(min_length=1)]
    """Texts of the behaviour, each with its metric. With `slots`, these are templates. Without, prompts with the same
    target and number of tokens are those of one template, and belong to the finding and the testing half in turn."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it. In texts and targets, `{name}` is replaced by a word of
    `slots`."""
    count: Annotated[int, Field(ge=2)] = 16
    """With `slots`: number of prompts, drawn from the templates in turn."""
    seed: NonNegativeInt = 0
    """Seed of the words that fill slots, and of the random features that the common circuit is compared with."""
    runs: list[str] | None = None
    """Runs whose features are ablated. With null, it is the run of traced transcoders. Heads and neurons are always
    ablated."""
    ablations: Annotated[list[Literal["zero", "mean"]], Field(min_length=1)] = ["zero"]
    """Values of ablated components: zero, or their mean over the prompts. Each listed value is measured."""
    measured: NonNegativeInt | None = 100
    """Number of components to ablate one by one, per prompt and basis. The components with the largest attributions are
    chosen. With null, all active components are ablated."""
    per_source: PositiveInt | None = 64
    """Number of tokens on which to ablate each feature of resid_mid, to measure how MLP features change. With null, all
    tokens on which the feature fires are used."""
    targets: PositiveInt | None = 32
    """Number of changed MLP features to list per ablated feature. With null, all changed features are listed."""

    @model_validator(mode="after")
    def _slots_are_filled(self) -> "Behaviour":
        # without slots, braces are text
        if self.slots:
            check_slots([part for each in self.prompts for part in (each.text, each.target)], self.slots)
        return self


T = TypeVar("T", Prompt, Behaviour)


def _check_names(sections: dict[str, T]) -> dict[str, T]:
    for name in sections:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in RESERVED:
            raise ValueError(
                f"{name!r} is no valid name: use letters, digits, _, . and -, but not {RESERVED[0]}; rename it"
            )
    return sections


class Circuits(Section):
    """Traced prompts (attribution graphs through transcoder features), behaviours, and the analysis of weights."""

    run: str | None = None
    """Run of transcoders, or cross-layer transcoder, for prompts, behaviours, case studies and the analysis of weights.
    With null, it is the first run of transcoders, or without one the first cross-layer transcoder."""
    prompts: Annotated[dict[str, Prompt], AfterValidator(_check_names)] = {}
    """Prompts by name. Each prompt is traced."""
    behaviours: Annotated[dict[str, Behaviour], AfterValidator(_check_names)] = {}
    """Behaviours by name."""
    weights: WeightsConfig = WeightsConfig()
    """Analysis of the weights alone."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number format of the model, dictionaries and all sums in circuits and case studies. It does not depend on
    language_model.dtype, because sums of contributions need the precision."""
    node_share: Fraction = 0.8
    """Fraction of the total influence that pruning keeps in nodes."""
    edge_share: Fraction = 0.98
    """Fraction of the influence between kept nodes that pruning keeps in edges."""
    rows: Literal["all"] | Fraction = "all"
    """Features whose direct effects are computed. `all`: each active feature with any influence; the time grows with
    the square of their number. A number such as 0.95, for long prompts: the most influential features of each layer, so
    that at least this fraction of the influence is followed. What is left out bounds the error of the replacement score
    and is told in the table `trace` (`unfollowed`)."""
    ablated: PositiveInt | None = None
    """Number of nodes of a graph to ablate one by one, the most influential first. With null, all of them. Time and
    memory grow with this number, for long prompts."""
    context: Annotated[int, Field(ge=2)] | None = None
    """Maximum number of tokens of a traced prompt, at most the model's positions. With null, it is `corpus.context`."""
    logits: PositiveInt = 10
    """For the target `logits`: maximum number of next tokens to explain, the likeliest first."""
    probability: Fraction = 0.95
    """For the target `logits`: the likeliest next tokens are explained, until their total probability reaches this
    value."""
    length: PositiveInt = 5
    """Maximum number of steps of a path."""
    width: PositiveInt = 20
    """Beam width. Each path is extended by this number of sources. At each length, this number of paths is kept."""
    attention_pairs: NonNegativeInt = 10
    """For each head edge of a circuit: number of pairs of sources, of query sources and of key sources that the table
    `attention_score` keeps. With 0, attention scores are not attributed."""
    seed: NonNegativeInt = 0
    """For the target `random`: seed of the choice of the feature."""
    subgraph: SubgraphConfig | None = None
    """Search for the smallest subgraph of each prompt. With null, there is no search."""

    @property
    def row_share(self) -> float:
        """Share of the influence to follow: 1 for all rows."""
        return 1.0 if self.rows == "all" else self.rows

    @model_validator(mode="after")
    def _names_differ(self) -> "Circuits":
        for name in self.prompts.keys() & self.behaviours.keys():
            raise ValueError(f"{name}: a prompt and a behaviour have this name; rename one")
        return self
