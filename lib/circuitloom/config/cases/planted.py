"""The benchmark of planted concepts: whether dictionaries have a feature for each, and circuits come from its cues."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from .base import Bound, Case


class PlantedCase(Case):
    """Of every planted concept: was a feature found, and does its circuit come from the words that tell the concept."""

    tables: ClassVar = ("claim", "planted")
    figures: ClassVar = ("concepts", "sources")
    generated: ClassVar = True
    kind: Literal["planted"]
    """The concepts of the generated corpus are looked for."""
    runs: Annotated[list[str], Field(min_length=1)]
    """Runs of transcoders and of SAEs that are compared, beside `run`."""
    neurons: bool = True
    """Compare the model's own neurons too."""
    found: Bound = 0.8
    """F1 on held-out documents at which a concept counts as found."""
    together: PositiveInt = 5
    """Features of one layer, at most, that may say a concept together."""
    occurrences: PositiveInt = 8
    """Documents of each half on which the sources of a feature are looked at."""
    shares: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    """Shares of what all tokens contribute that a circuit's sources may hold; that of each run is chosen on one half of
    the documents."""
    discovered: Bound = 0.9
    """Share of the concepts that the best transcoders are to find."""
    told: Bound = 0.8
    """Precision and recall that the sources of the transcoders' circuits are to reach."""

    @property
    def runs_named(self) -> list[str]:
        """The runs that are compared."""
        return self.runs
