"""What generated corpora share: documents of known probability, and words with concepts that are known by rule."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol, runtime_checkable

BOS = -1
"""Position of the BOS, which comes before the word at position 0."""


@dataclass(frozen=True)
class GeneratedDocument:
    """A document of a grammar."""

    words: tuple[str, ...]
    log_probability: float
    """Log probability that the grammar generates exactly these words, in nats."""

    @property
    def text(self) -> str:
        """The words of the document, separated by spaces."""
        return " ".join(self.words)


class AnnotatedWord(NamedTuple):
    """A word that has a concept."""

    position: int
    """Position of the word in its document, from 0."""
    evidence_start: int
    """Position of the first word of the evidence, or `BOS`. The evidence is the span of words that determines the
    annotation. The annotated word is the last word of the evidence."""


class Cues(NamedTuple):
    """Cues and optional words of an annotation, as ascending positions in the document."""

    required: tuple[tuple[int, ...], ...]
    """The cues. A circuit must read at least one word of each cue."""
    optional: tuple[int, ...]
    """Words that are in no cue. A circuit may read these words, but need not."""


@runtime_checkable
class PlantedConcept(Protocol):
    """A concept that words of generated documents can have."""

    @property
    def name(self) -> str:
        """Name of the concept."""
        ...

    @property
    def rule(self) -> str:
        """Says which words have the concept. The corpus's page under docs/ shows this text."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether the concept annotates all tokens of a word. Other concepts annotate only the last token, because
        earlier tokens do not determine the word."""
        ...

    @property
    def find(self) -> Callable[[Any], Iterable[AnnotatedWord]]:
        """Finds the words of a document that have the concept."""
        ...

    def cues(self, document: Any, word: AnnotatedWord, /) -> Cues:
        """Returns the cues that show that `word` has this concept."""
        ...


@dataclass(frozen=True)
class Grammar:
    """A source of generated documents. A document depends only on (seed, split, index)."""

    name: str
    """Value of `corpus.source`. The page docs/NAME.md describes the grammar."""
    vocabulary: Callable[[], tuple[str, ...]]
    """Returns all words in the order of token ids."""
    write: Callable[[int, str, int], GeneratedDocument]
    """Returns document number `index` of a split, for (seed, split, index)."""
    concepts: tuple[PlantedConcept, ...]

    def documents(self, seed: int, split: str, start: int = 0) -> Iterator[GeneratedDocument]:
        """Yield documents of `split` without end, from document number `start`."""
        return (self.write(seed, split, index) for index in count(start))

    def select(self, names: Iterable[str] | None) -> tuple[PlantedConcept, ...]:
        """Returns the concepts with the given names. None means all concepts. Raises ValueError if a name is
        unknown."""
        if names is None:
            return self.concepts
        known = {concept.name: concept for concept in self.concepts}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"corpus.concepts: no concept is called {name}; docs/{self.name}.md lists them"
                )
        return tuple(known[name] for name in names)
