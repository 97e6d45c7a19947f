"""Keys of the benchmark of planted concepts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from .base import Bound, Case


class PlantedCase(Case):
    """Does each planted concept have a feature? Are the source tokens of this feature the cues of the concept?"""

    tables: ClassVar = ("claim", "planted")
    figures: ClassVar = ("concepts", "sources")
    kind: Literal["planted"]
    """Selects the benchmark of planted concepts."""
    runs: Annotated[list[str], Field(min_length=1)]
    """Runs of transcoders and SAEs to compare with `run`."""
    neurons: bool = True
    """Whether to compare `run` with the model's neurons too."""
    found: Bound = 0.8
    """A concept is found if its feature has at least this F1 on held-out documents."""
    together: PositiveInt = 5
    """Maximum number of features in a set that predicts a concept. All features of a set are in one layer."""
    occurrences: PositiveInt = 8
    """Maximum number of documents per half on which the sources of each feature are traced."""
    shares: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    """Candidate shares. A feature's sources are the fewest tokens that together have this share of all contributions.
    For each run, the best candidate is chosen on one half of the documents."""
    discovered: Bound = 0.9
    """Two claims: the best run of transcoders finds at least this share of the concepts, with single features and with
    sets."""
    told: Bound = 0.8
    """Two claims: the precision and the recall of the sources that the best transcoders' circuits give are at least
    this value."""

    @property
    def generated(self) -> bool:
        """True: the concepts are known."""
        return True

    @property
    def runs_named(self) -> list[str]:
        """Names of the runs to compare with."""
        return self.runs
