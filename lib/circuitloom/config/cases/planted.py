"""Keys of the benchmark of planted concepts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from .base import Bound, Case


class PlantedCase(Case):
    """Does each planted concept have a feature, and are the source tokens of this feature the cues of the concept?"""

    tables: ClassVar = ("claim", "planted")
    figures: ClassVar = ("concepts", "sources")
    generated: ClassVar = True
    kind: Literal["planted"]
    """Selects the benchmark of planted concepts."""
    runs: Annotated[list[str], Field(min_length=1)]
    """Other runs of transcoders and SAEs, which are compared with `run`."""
    neurons: bool = True
    """Whether to compare with the model's neurons too."""
    found: Bound = 0.8
    """A concept counts as found if the F1 of its feature on held-out documents is at least this."""
    together: PositiveInt = 5
    """Maximum number of features of a layer in a set that predicts a concept together."""
    occurrences: PositiveInt = 8
    """Maximum number of documents per half on which a feature's sources are traced."""
    shares: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    """Candidate shares. The sources of a feature are the fewest tokens that hold a given share of all tokens'
    contributions. For each run, the best candidate is chosen on one half of the documents."""
    discovered: Bound = 0.9
    """Claim: the best run of transcoders finds at least this share of the concepts."""
    told: Bound = 0.8
    """Two claims: the precision of the sources that are found through the transcoders' circuits is at least this, and
    so is the recall."""

    @property
    def runs_named(self) -> list[str]:
        """Names of the runs to compare with."""
        return self.runs
