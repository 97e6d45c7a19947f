"""Keys of the case study of greater-than."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from ..base import Section
from .base import Bound, Case, Slots, Texts, check_slots, slots_of
from .feature import is_feature

YEAR, CENTURY = "year", "century"
"""Slots that the case study fills."""
TwoDigits = Annotated[int, Field(ge=0, le=98)]
Metric = Annotated[float, Field(ge=-1, le=1)]


class Published(Section):
    """Published values for the same model and template."""

    untouched: Metric | None = None
    """The metric of the untouched model."""
    replaced: Metric | None = None
    """The metric with the MLP of `layer` replaced by its transcoder."""
    without_feature: Metric | None = None
    """The metric without `feature`."""


class GreaterThanCase(Case):
    """Given a start year and the century of the end, does the model prefer later years, and how? (Hanna et al. 2023)"""

    tables: ClassVar = ("claim", "outcome", "source", "faithfulness", "year")
    figures: ClassVar = ("metric", "kept", "years")
    kind: Literal["greater_than"]
    """The case study of greater-than."""
    template: Annotated[str, Field(min_length=1)]
    """A text whose next token is the end year; `{year}` is replaced by the two digits of the start year, `{century}` by
    a century, `{name}` by a word of `slots`."""
    centuries: Texts = ["17"]
    """Words for `{century}`."""
    slots: Slots = {}
    """Slot to its words."""
    first: TwoDigits = 2
    """First start year; at most 98, since only one year is later."""
    last: TwoDigits = 98
    """Last start year."""
    answer: Annotated[str, Field(pattern=r"\{year\}")] = "{year}"
    """How an answer is written as a token; a leading space is optional."""
    fillings: PositiveInt = 2
    """Prompts per start year, alternately for finding and testing; with one, years alternate."""
    layer: NonNegativeInt | None = None
    """Layer whose MLP is studied; null: the one whose mean ablation at the last position lowers the metric most."""
    feature: Annotated[str, AfterValidator(is_feature)] | None = None
    """Feature to subtract from the MLP's output, LAYER/NUMBER; null: the layer's feature with the largest variance."""
    features: PositiveInt = 3
    """Number of features of the layer to describe by year, those with the largest variance first."""
    small: PositiveInt = 24
    """Largest number of features to compare with the same number of neurons."""
    connections: PositiveInt = 10
    """Number of layer 0's features, those with the largest connections, in a de-embedding score."""
    traced: PositiveInt = 12
    """Number of prompts per half to trace."""
    length: PositiveInt = 6
    """Maximum number of steps of a path of the circuit."""
    width: PositiveInt = 20
    """Beam width: paths kept at each length."""
    untouched: Metric = 0.8
    """Claim: metric of the untouched model, at least."""
    replaced: Metric = 0.75
    """Claim: metric with MLPs replaced by transcoders, at least."""
    destroyed: Metric = 0.75
    """Claim: metric with the layer's MLP ablated, at most."""
    carried: Bound = 0.5
    """Claim: share of the start year's effect that the strongest head carries, at least."""
    deembedded: Bound = 0.5
    """Claim: correlation of de-embedding scores and activations over start years, at least."""
    circuit: Bound = 0.75
    """Claim: share of the metric that the circuit recovers alone, at least."""
    left: Bound = 0.5
    """Claim: share of the metric that remains without the circuit's features, at most."""
    published: Published = Published()
    """Published values to compare with."""

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
