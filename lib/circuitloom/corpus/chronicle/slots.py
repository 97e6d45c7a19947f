"""What may stand at one place of a template, and with which probability."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log

Uniform = Callable[[], float]
"""Source of numbers uniform on [0, 1)."""

Choice = tuple[str, float]
"""A word and the log of the probability with which it was chosen, in nats."""


@dataclass
class Memory:
    """What later words of a document depend on."""

    bound: dict[str, str] = field(default_factory=dict)
    """Words of the current sentence by the tags of its template."""
    names: list[tuple[str, str]] = field(default_factory=list)
    """Rare names that the document has introduced."""


class Slot(ABC):
    """A place in a template that chooses its word."""

    support: frozenset[str]
    """Every word that can stand here."""

    @abstractmethod
    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """The word of this place, given what `memory` holds; different choices give different words."""


class Draw(Slot):
    """A word of a set, uniformly; it may have to differ from the word bound to a tag."""

    def __init__(self, words: tuple[str, ...], bind: str | None = None, unlike: str | None = None) -> None:
        self.words, self.bind, self.unlike = words, bind, unlike
        self.support = frozenset(words)
        self._log_p = -log(len(words) - (unlike is not None))
        self._place = {word: place for place, word in enumerate(words)} if unlike else {}

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        if self.unlike:
            place = int(uniform() * (len(self.words) - 1))
            word = self.words[place + (place >= self._place[memory.bound[self.unlike]])]
        else:
            word = self.words[int(uniform() * len(self.words))]
        if self.bind:
            memory.bound[self.bind] = word
        return word, self._log_p


class Copy(Slot):
    """The word bound to a tag."""

    def __init__(self, source: str, support: frozenset[str]) -> None:
        self.source, self.support = source, support

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        return memory.bound[self.source], 0.0


class Either(Slot):
    """One of the words bound to two tags, each with probability 1/2; `bind` keeps which."""

    def __init__(self, pair: tuple[str, str], bind: str, support: frozenset[str]) -> None:
        self.pair, self.bind, self.support = pair, bind, support
        self._log_p = -log(2)

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        memory.bound[self.bind] = word = memory.bound[self.pair[uniform() < 0.5]]
        return word, self._log_p


class Other(Slot):
    """Of the words bound to two tags, the one that an `Either` left."""

    def __init__(self, pair: tuple[str, str], taken: str, support: frozenset[str]) -> None:
        self.pair, self.taken, self.support = pair, taken, support

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        first, second = (memory.bound[tag] for tag in self.pair)
        return second if memory.bound[self.taken] == first else first, 0.0


class Later(Slot):
    """A year within the century later than the one bound to a tag, uniform over those left."""

    def __init__(self, start: str, numbers: tuple[str, ...]) -> None:
        self.start, self.numbers = start, numbers
        self.support = frozenset(numbers[1:])
        self._log_p = [-log(left) if left else 0.0 for left in range(len(numbers))]

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        start = int(memory.bound[self.start])
        left = len(self.numbers) - 1 - start
        return self.numbers[start + 1 + int(uniform() * left)], self._log_p[left]


class NewFirst(Slot):
    """The first word of a rare name that the document has not seen."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        seen = {first for first, _ in memory.names}
        unseen = [word for word in self.words if word not in seen] if seen else self.words
        word = unseen[int(uniform() * len(unseen))]
        memory.bound["name"] = word
        return word, -log(len(unseen))


class NewSecond(Slot):
    """The second word of the rare name that a `NewFirst` began; the name is remembered."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.support = frozenset(words)
        self._log_p = -log(len(words))

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        word = self.words[int(uniform() * len(self.words))]
        memory.names.append((memory.bound["name"], word))
        return word, self._log_p


class KnownFirst(Slot):
    """The first word of a rare name that the document has introduced, uniformly."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        word = memory.names[int(uniform() * len(memory.names))][0]
        memory.bound["name"] = word
        return word, -log(len(memory.names))


class KnownSecond(Slot):
    """What followed the rare word that a `KnownFirst` repeated."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, memory: Memory) -> Choice:
        """See `Slot`."""
        return dict(memory.names)[memory.bound["name"]], 0.0
