"""Keys of the benchmark of planted concepts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from .base import Bound, Case


class PlantedCase(Case):
    """Does each planted concept have a feature, and does the feature come from the cues of the concept?"""

    tables: ClassVar = ("claim", "planted")
    figures: ClassVar = ("concepts", "sources")
    generated: ClassVar = True
    kind: Literal["planted"]
    """The benchmark of planted concepts."""
    runs: Annotated[list[str], Field(min_length=1)]
    """Other runs of transcoders and SAEs to compare with `run`."""
    neurons: bool = True
    """Compare with the model's neurons too."""
    found: Bound = 0.8
    """F1 on held-out documents at which a concept counts as found."""
    together: PositiveInt = 5
    """Maximum number of features of one layer that predict a concept together."""
    occurrences: PositiveInt = 8
    """Maximum number of documents per half on which a feature's sources are traced."""
    shares: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    """Sources are the fewest tokens that hold a share of all tokens' contributions. Candidates for that share; each
    run's is chosen on one half of the documents."""
    discovered: Bound = 0.9
    """Claim: share of the concepts that the best transcoders find, at least."""
    told: Bound = 0.8
    """Claim: precision and recall of the sources of the transcoders' circuits, at least."""

    @property
    def runs_named(self) -> list[str]:
        """Runs to compare with."""
        return self.runs
