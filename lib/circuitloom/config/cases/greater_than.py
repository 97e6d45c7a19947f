"""Keys of the case study of greater-than."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from ..base import Section
from ..templates import Slots, Texts, check_slots, slots_of
from .base import Bound, CommonCircuitCase
from .feature import is_feature

YEAR, CENTURY = "year", "century"
"""Names of the slots that the case study fills itself."""
Digits = Literal["both", "tens", "units"]
TwoDigits = Annotated[int, Field(ge=0, le=98)]
Metric = Annotated[float, Field(ge=-1, le=1)]


class Published(Section):
    """Published values of the metric, for the same model and template."""

    untouched: Metric | None = None
    """The metric of the untouched model."""
    replaced: Metric | None = None
    """The metric when a transcoder replaces the MLP of `layer`."""
    without_feature: Metric | None = None
    """The metric when `feature` is subtracted from the MLP's output."""


class GreaterThanCase(CommonCircuitCase):
    """A text names a start year and the century of an end year. Does the model predict an end year after the start
    year? Which components make it do so? (Hanna et al. 2023)"""

    tables: ClassVar = (
        "claim",
        "outcome",
        "source",
        "faithfulness",
        "year",
        "aggregate_node",
        "aggregate_edge",
    )
    figures: ClassVar = ("metric", "kept", "years", "common")
    no_cross_layer: ClassVar = (
        "greater_than replaces the MLP of one layer by the features that read it, as only transcoders of one layer do; "
        "name a run of transcoders"
    )
    kind: Literal["greater_than"]
    """Selects the case study of greater-than."""
    template: Annotated[str, Field(min_length=1)]
    """A text whose next token is the end year. `{year}` is replaced by the last two digits of the start year,
    `{century}` by a word of `centuries`, and any other `{name}` by a word of `slots`."""
    centuries: Texts = ["17"]
    """Words that replace `{century}`."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it."""
    first: TwoDigits = 2
    """First start year, as two digits. At most 98, because a later year must exist."""
    last: TwoDigits = 98
    """Last start year, as two digits."""
    answer: Annotated[str, Field(pattern=r"\{year\}")] = "{year}"
    """Template of the answer token. `{year}` is replaced by two digits, or by one (see `digits`). The answer follows
    the century as `{year}` does in `template`: with or without a space. A leading space in `answer` overrides this."""
    digits: Digits | Literal["auto"] = "auto"
    """Digits of the end year that the model is asked for. `both`: the answers are the two-digit years that are single
    tokens. `tens`: the answers are single digits, compared with the tens digit of the start year; the equal digit is
    left out, because the units decide there. `units`: the prompt goes on with the tens digit of the start year, and
    the answers are compared with its units digit. With `auto`, the first of these for which the tokenizer gives
    prompts."""
    fillings: PositiveInt = 2
    """Number of prompts per start year. The prompts of a year alternate between the finding half and the testing half.
    With one prompt per year, the years alternate."""
    prompts: Annotated[int, Field(ge=8)] | None = None
    """Largest number of prompts, evenly spaced over the start years of each half. With null, all are used."""
    layer: NonNegativeInt | None = None
    """Layer whose MLP is studied. With null, each MLP is mean-ablated at the last position, and the layer with the
    largest drop of the metric is chosen."""
    feature: Annotated[str, AfterValidator(is_feature)] | None = None
    """Feature to subtract from the MLP's output, written LAYER/NUMBER. With null, it is the feature of the layer with
    the largest variance over the prompts."""
    features: PositiveInt = 3
    """Number of features of the layer to describe by start year. The features with the largest variance over the
    prompts are chosen."""
    small: PositiveInt = 24
    """Maximum number of features to compare with the same number of neurons."""
    connections: PositiveInt = 10
    """Number of layer-0 features in a de-embedding score. The features with the largest connection weights are
    chosen."""
    traced: PositiveInt = 12
    """Number of prompts per half to trace."""
    length: PositiveInt = 6
    """Maximum number of steps of a path in the circuit."""
    width: PositiveInt = 20
    """Beam width: number of paths to keep at each length."""
    common: Annotated[float, Field(gt=0, le=1)] = 0.3
    """A node or edge is common if it is in the graphs of at least this share of the prompts. Features fire on some
    start years only, so that few are in most graphs."""
    untouched: Metric = 0.8
    """Claim: the metric of the untouched model is at least this value."""
    replaced: Metric = 0.75
    """Claim: with transcoders in place of MLPs, the metric is at least this value."""
    destroyed: Metric = 0.75
    """Claim: with the layer's MLP ablated, the metric is at most this value."""
    carried: Bound = 0.5
    """Claim: the strongest head carries at least this share of the effect of the start year."""
    deembedded: Bound = 0.5
    """Claim: de-embedding scores and activations have at least this correlation over start years."""
    circuit: Bound = 0.75
    """Claim: the circuit alone recovers at least this share of the metric."""
    left: Bound = 0.5
    """Claim: without the circuit's features, at most this share of the metric remains."""
    published: Published = Published()
    """Published values to compare with the measured values."""

    @model_validator(mode="after")
    def _complete(self) -> "GreaterThanCase":
        check_slots([self.template], self.slots, (YEAR, CENTURY))
        if YEAR not in slots_of(self.template):
            raise ValueError(f"{self.template!r} has no {{year}}; put it in place of the start year")
        if self.first >= self.last:
            raise ValueError(f"first {self.first} is not before last {self.last}; give two or more")
        if self.layer is not None and self.feature and not self.feature.startswith(f"{self.layer}/"):
            raise ValueError(f"feature {self.feature} is not of layer {self.layer}; name one that is")
        return self
