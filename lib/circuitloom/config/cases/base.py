"""Keys that all kinds of case study share."""

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from ..base import Section
from ..templates import Aggregation

Bound = Annotated[float, Field(ge=0, le=1)]


class Case(Section):
    """A case study: a question about the model and its transcoders. Some keys are bounds of its claims."""

    tables: ClassVar[tuple[str, ...]]
    """Names of the tables that the case study writes."""
    figures: ClassVar[tuple[str, ...]]
    """Names of the pictures that the case study draws, without the suffix .png."""
    no_cross_layer: ClassVar[str] = ""
    """Why the case study takes no cross-layer transcoder, with the remedy. Empty if it takes one."""
    alone: ClassVar[bool] = False
    """Whether the case study makes its own model and dictionaries, and reads none of the study."""
    run: str | None = None
    """Run of transcoders, or cross-layer transcoder, to study. With null, it is `circuits.run`."""
    seed: NonNegativeInt = 0
    """Seed of all random choices: words in templates, bootstrap samples and random features."""
    resamples: PositiveInt = 2000
    """Number of bootstrap samples per interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the bootstrap intervals."""

    @property
    def generated(self) -> bool:
        """Whether the case study needs the concepts of every token. Only the generated corpus has these concepts."""
        return False

    @property
    def first_run(self) -> str | None:
        """Run under study. With None, it is `circuits.run`."""
        return self.run

    @property
    def runs_named(self) -> list[str]:
        """Names of the runs that the case study reads in addition to `run`."""
        return []


class CommonCircuitCase(Case, Aggregation):
    """A case study of prompts of templates, whose attribution graphs are aggregated."""

    common_alone: Bound = 0.5
    """Claim: on the testing half, the features of the common circuit alone recover at least this share of what all
    features add to the metric. All heads and errors stay."""
    common_without: Bound = 0.5
    """Claim: without the features of the common circuit, at most this share of what all features add remains."""
    over_random: Bound = 0.2
    """Claim: the common circuit alone recovers at least this much more of that share than as many random features per
    layer."""
