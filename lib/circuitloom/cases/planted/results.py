"""What runs made of the planted concepts."""

from dataclasses import dataclass
from functools import cached_property

from .found import ConceptFeature
from .sources import SourceScore

TRANSCODER, SAE = "transcoder", "sae"


@dataclass(frozen=True)
class ConceptOutcome:
    """What a run made of one concept."""

    kind: str
    found: ConceptFeature
    is_found: bool
    circuit: SourceScore | None
    """Of what was found, through the circuit; None for other kinds than transcoders."""
    gradient: SourceScore | None
    shares: tuple[float | None, float | None]
    """Of the sources through circuits, and by gradient."""
    contextual: bool
    """A label needs more than the word itself."""

    @property
    def told(self) -> SourceScore | None:
        """By what the kind is judged: circuits of transcoders, gradients of others."""
        return self.circuit if self.kind == TRANSCODER else self.gradient


@dataclass(frozen=True)
class PlantedResults:
    """Outcomes of all runs."""

    runs: dict[str, dict[str, ConceptOutcome]]
    """By run, then concept."""

    @cached_property
    def concepts(self) -> list[str]:
        """Names of the concepts, in order."""
        return sorted({concept for outcomes in self.runs.values() for concept in outcomes})

    def best(self, kind: str, bound: float) -> str | None:
        """The run of a kind that finds most concepts on the documents that features are chosen on; None without one."""

        def quality(run: str) -> tuple[int, float]:
            f1 = [outcome.found.f1_choosing for outcome in self.runs[run].values()]
            return sum(value >= bound for value in f1), sum(f1)

        mine = [run for run, outcomes in self.runs.items() if next(iter(outcomes.values())).kind == kind]
        return max(mine, key=quality) if mine else None
