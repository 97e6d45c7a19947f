"""The case study of greater-than: a span of years ends after it starts."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from ..base import Section
from .base import Bound, Case, Slots, Texts, check_slots, slots_of
from .feature import is_feature

YEAR, CENTURY = "year", "century"
"""Slots of the template that the case itself fills."""
TwoDigits = Annotated[int, Field(ge=0, le=98)]
Metric = Annotated[float, Field(ge=-1, le=1)]


class Published(Section):
    """Values that were published for the same model and template."""

    untouched: Metric | None = None
    """The metric of the untouched model."""
    replaced: Metric | None = None
    """The metric with the MLP of `layer` replaced by its transcoder."""
    without_feature: Metric | None = None
    """The metric without `feature`."""


class GreaterThanCase(Case):
    """Given the year in which something started, and the century of its end, the model prefers later years."""

    tables: ClassVar = ("claim", "outcome", "source", "faithfulness", "year")
    figures: ClassVar = ("metric", "kept", "years")
    kind: Literal["greater_than"]
    """The metric, what it depends on, and the circuit behind it."""
    template: Annotated[str, Field(min_length=1)]
    """A text up to where the year of the end is due; `{year}` stands for the two digits of the start, `{century}` for
    the century, `{name}` for a word of `slots`."""
    centuries: Texts = ["17"]
    """What stands for `{century}`."""
    slots: Slots = {}
    """Words by name of the slot."""
    first: TwoDigits = 2
    """First start year; 98, after which one year alone is later, is the last that is of use."""
    last: TwoDigits = 98
    """Last start year."""
    answer: Annotated[str, Field(pattern=r"\{year\}")] = "{year}"
    """How the token of a year of the end is written; a blank in front of it need not be."""
    fillings: PositiveInt = 2
    """Prompts of each start year, other words in each: every other one is to find on, the rest to test on. With one,
    it is every other year."""
    layer: NonNegativeInt | None = None
    """Layer whose MLP is studied; null: that whose MLP matters most behind the last token."""
    feature: Annotated[str, AfterValidator(is_feature)] | None = None
    """Feature that is removed, LAYER/NUMBER; null: of the layer's, that of the highest variance."""
    features: PositiveInt = 3
    """Features of the layer, those of the highest variance, that are looked at year by year."""
    small: PositiveInt = 24
    """Up to so many features are compared with as many neurons."""
    connections: PositiveInt = 10
    """Largest connections to layer 0's features that a de-embedding score goes through."""
    traced: PositiveInt = 12
    """Prompts of each half that are traced."""
    length: PositiveInt = 6
    """Steps of the circuit's longest paths."""
    width: PositiveInt = 20
    """Paths that are kept at each length."""
    untouched: Metric = 0.8
    """Metric that the untouched model must reach."""
    replaced: Metric = 0.75
    """Metric that must be reached with MLPs replaced by transcoders."""
    destroyed: Metric = 0.75
    """Metric that must not be exceeded where the MLP of the layer is ablated."""
    carried: Bound = 0.5
    """Share of the start year's effect that the head found must carry."""
    deembedded: Bound = 0.5
    """Correlation of de-embedding scores with activations, over start years, that features must reach."""
    circuit: Bound = 0.75
    """Share of the behaviour that the circuit alone must keep."""
    left: Bound = 0.5
    """Share of the behaviour that must not be exceeded without the circuit's features."""
    published: Published = Published()
    """What to compare with."""

    @model_validator(mode="after")
    def _complete(self) -> "GreaterThanCase":
        check_slots([self.template], self.slots, (YEAR, CENTURY))
        if YEAR not in slots_of(self.template):
            raise ValueError(f"{self.template!r} has no {{year}}; say where the start year stands")
        if self.first >= self.last:
            raise ValueError(f"first {self.first} is no earlier year than last {self.last}; give two or more")
        if self.layer is not None and self.feature and not self.feature.startswith(f"{self.layer}/"):
            raise ValueError(f"feature {self.feature} is not of layer {self.layer}; name one that is")
        return self
