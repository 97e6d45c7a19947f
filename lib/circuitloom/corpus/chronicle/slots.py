"""A slot chooses the word at one position of a template and returns its log probability. Templates are parsed from
the notation that `templates.py` describes."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from math import log

from .templates import BEHAVIOURS
from .vocabulary import CLASSES, NUMBERS, UNIONS

Uniform = Callable[[], float]
"""Source of numbers uniform on [0, 1)."""

Choice = tuple[str, float]
"""A word and its log probability, in nats."""


@dataclass
class DocumentState:
    """The part of a document's history on which its later words depend."""

    bound: dict[str, str] = field(default_factory=dict)
    """Maps each tag to the word that is bound to it in the current sentence."""
    names: list[tuple[str, str]] = field(default_factory=list)
    """Rare names introduced so far, each as (first word, second word)."""


class Slot(ABC):
    """A position of a template that chooses its word."""

    support: frozenset[str]
    """All possible words."""

    @abstractmethod
    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose a word, given `state`, and return it with its log probability.

        Different choices give different words.
        """


class Draw(Slot):
    """Draws a word uniformly from `words`, and binds it to the tag `bind`.

    If `unlike` is given, the word bound to that tag is not drawn.
    """

    def __init__(self, words: tuple[str, ...], bind: str | None = None, unlike: str | None = None) -> None:
        self.words, self.bind, self.unlike = words, bind, unlike
        self.support = frozenset(words)
        self._log_p = -log(len(words) - (unlike is not None))
        self._index = {word: index for index, word in enumerate(words)} if unlike else {}

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        if self.unlike:
            index = int(uniform() * (len(self.words) - 1))
            word = self.words[index + (index >= self._index[state.bound[self.unlike]])]
        else:
            word = self.words[int(uniform() * len(self.words))]
        if self.bind:
            state.bound[self.bind] = word
        return word, self._log_p


class Copy(Slot):
    """Repeats the word that is bound to a tag."""

    def __init__(self, source: str, support: frozenset[str]) -> None:
        self.source, self.support = source, support

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        return state.bound[self.source], 0.0


class Either(Slot):
    """Repeats the word of one of two tags, each with probability 1/2. The word is also bound to `bind`."""

    def __init__(self, pair: tuple[str, str], bind: str, support: frozenset[str]) -> None:
        self.pair, self.bind, self.support = pair, bind, support
        self._log_p = -log(2)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        state.bound[self.bind] = word = state.bound[self.pair[uniform() < 0.5]]
        return word, self._log_p


class Other(Slot):
    """Repeats the word of the one of two tags that an `Either` did not choose."""

    def __init__(self, pair: tuple[str, str], taken: str, support: frozenset[str]) -> None:
        self.pair, self.taken, self.support = pair, taken, support

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        first, second = (state.bound[tag] for tag in self.pair)
        return second if state.bound[self.taken] == first else first, 0.0


class LaterYear(Slot):
    """Draws a later year than the one bound to a tag, uniformly from the remaining years of the same century."""

    def __init__(self, start: str, numbers: tuple[str, ...]) -> None:
        self.start, self.numbers = start, numbers
        self.support = frozenset(numbers[1:])
        self._log_p = [-log(n) if n else 0.0 for n in range(len(numbers))]

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        start = int(state.bound[self.start])
        n_later = len(self.numbers) - 1 - start
        return self.numbers[start + 1 + int(uniform() * n_later)], self._log_p[n_later]


class NewFirst(Slot):
    """Draws the first word of a rare name that is new in the document."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        seen = {first for first, _ in state.names}
        unseen = [word for word in self.words if word not in seen] if seen else self.words
        word = unseen[int(uniform() * len(unseen))]
        state.bound["name"] = word
        return word, -log(len(unseen))


class NewSecond(Slot):
    """Draws the second word of the rare name that a `NewFirst` began."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.support = frozenset(words)
        self._log_p = -log(len(words))

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        word = self.words[int(uniform() * len(self.words))]
        state.names.append((state.bound["name"], word))
        return word, self._log_p


class KnownFirst(Slot):
    """Repeats the first word of a rare name, drawn uniformly from those introduced so far."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        word = state.names[int(uniform() * len(state.names))][0]
        state.bound["name"] = word
        return word, -log(len(state.names))


class KnownSecond(Slot):
    """Repeats the second word of the rare name that a `KnownFirst` began."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Choose the word and return it with its log probability."""
        return dict(state.names)[state.bound["name"]], 0.0


@dataclass(frozen=True)
class Template:
    """A sentence of fixed length with slots to fill."""

    behaviour: str
    text: str
    """The notation that it was parsed from."""
    words: tuple[str, ...]
    """The fixed words, with an empty string at each slot."""
    slots: tuple[tuple[int, Slot], ...]
    """Each slot as (position, slot), in ascending order."""
    marks: tuple[tuple[int, str], ...]
    """Each mark as (position, mark), in ascending order."""

    @cached_property
    def supports(self) -> list[frozenset[str]]:
        """The possible words at each position."""
        slots = dict(self.slots)
        return [slots[i].support if i in slots else frozenset([word]) for i, word in enumerate(self.words)]


@dataclass(frozen=True)
class TemplateDistribution:
    """The distribution of a sentence's template, in a document with a given number of rare names so far."""

    templates: tuple[Template, ...]
    cumulative: tuple[float, ...]
    """Cumulative probabilities of the templates. The last is 1."""
    log_p: tuple[float, ...]
    """Log probability of each template, in nats."""


@cache
def template_distributions() -> tuple[TemplateDistribution, TemplateDistribution, TemplateDistribution]:
    """Returns the distributions for documents that have zero, one and two rare names so far."""
    parsed = {
        (name, text): _parse(name, text)
        for name, behaviour in BEHAVIOURS.items()
        for text in behaviour.templates
    }
    return _distribution(parsed, 0), _distribution(parsed, 1), _distribution(parsed, 2)


def templates() -> tuple[Template, ...]:
    """Returns all templates."""
    return tuple(
        dict.fromkeys(
            template for distribution in template_distributions() for template in distribution.templates
        )
    )


def _distribution(parsed: dict[tuple[str, str], Template], names: int) -> TemplateDistribution:
    total = sum(behaviour.weight[names] for behaviour in BEHAVIOURS.values())
    shares: dict[Template, float] = {}
    for (name, text), template in parsed.items():
        behaviour = BEHAVIOURS[name]
        within = behaviour.templates[text] / sum(behaviour.templates.values())
        if behaviour.weight[names]:
            shares[template] = behaviour.weight[names] / total * within
    cumulative = list(accumulate(shares.values()))
    # rounding can make the sum less than 1, and a random number above it would find no template
    cumulative[-1] = 1.0
    return TemplateDistribution(
        tuple(shares), tuple(cumulative), tuple(log(share) for share in shares.values())
    )


def _parse(behaviour: str, text: str) -> Template:
    words: list[str] = []
    slots: list[tuple[int, Slot]] = []
    marks: list[tuple[int, str]] = []
    supports: dict[str, frozenset[str]] = {}
    for position, item in enumerate(text.split()):
        word, *marked = item.split("@")
        marks += [(position, mark) for mark in marked]
        if word.startswith("<"):
            slots.append((position, _slot(word[1:-1], supports)))
        words.append("" if word.startswith("<") else word)
    return Template(behaviour, text, tuple(words), tuple(slots), tuple(marks))


_SPECIAL = {
    "new_first": lambda: NewFirst(CLASSES["rare_first"]),
    "new_second": lambda: NewSecond(CLASSES["rare_second"]),
    "known_first": lambda: KnownFirst(CLASSES["rare_first"]),
    "known_second": lambda: KnownSecond(CLASSES["rare_second"]),
}


def _slot(code: str, supports: dict[str, frozenset[str]]) -> Slot:
    """Parse a slot from the text between its angle brackets.

    If a `Draw` binds its word to a tag, `supports[tag]` is set to the words that it can draw.
    """
    if code in _SPECIAL:
        return _SPECIAL[code]()
    if match := re.fullmatch(r"=(\w+)", code):
        return Copy(match[1], supports[match[1]])
    if match := re.fullmatch(r"later=(\w+)", code):
        return LaterYear(match[1], NUMBERS)
    if match := re.fullmatch(r"(\w+)\|(\w+)([:!])(\w+)", code):
        kind = Either if match[3] == ":" else Other
        return kind((match[1], match[2]), match[4], supports[match[1]] | supports[match[2]])
    match = re.fullmatch(r"(\w+)(?:!(\w+))?(?::(\w+))?", code)
    assert match, code
    slot = Draw(CLASSES.get(match[1]) or UNIONS[match[1]], bind=match[3], unlike=match[2])
    if match[3]:
        supports[match[3]] = slot.support
    return slot
