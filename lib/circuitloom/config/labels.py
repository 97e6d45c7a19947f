"""Config of the labels: how features are described."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from .base import Section
from .label_model import LabelModel


class Labels(Section):
    """Labels of features: short texts that say what a feature fires on, learned from the feature tables of half of the
    held-out documents and scored on the other half."""

    runs: list[str] | None = None
    """Names of the runs whose features are labelled; `neurons` are MLP neurons. With null, all runs with feature tables
    are labelled, and with [] none."""
    cost: NonNegativeFloat = 0.01
    """Cost of a word: a longer label must have an F1 that is higher by this much per word."""
    described: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Smallest F1 of a label. A feature whose best label has a lower one is shown as described by nothing."""
    beam: PositiveInt = 2
    """Number of descriptions that are refined at each step of the search."""
    steps: NonNegativeInt = 1
    """Number of times that descriptions are refined, by one condition each."""
    model: LabelModel | None = None
    """A language model that labels some features in addition. With null, none is used and nothing is sent anywhere."""
