"""Defines slots and templates. A slot chooses one word of a template. `templates.py` describes the notation."""

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
"""Returns a random number from the uniform distribution on [0, 1)."""

Choice = tuple[str, float]
"""A word and its log probability, in nats."""


@dataclass
class DocumentState:
    """Earlier words of a document that slots refer to."""

    bound: dict[str, str] = field(default_factory=dict)
    """Maps each tag to its word in the current sentence."""
    names: list[tuple[str, str]] = field(default_factory=list)
    """Rare names that the document has introduced so far, each as (first word, second word)."""


class Slot(ABC):
    """Chooses the word at one position of a template."""

    support: frozenset[str]
    """All words that this slot can choose."""

    @abstractmethod
    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability. May use and change `state`.

        Different choices must give different words. Otherwise the log probability is wrong.
        """


class Draw(Slot):
    """Draws one of `words` uniformly.

    The drawn word is bound to the tag `bind`. The word of the tag `unlike` is never drawn. Each tag may be None.
    """

    def __init__(self, words: tuple[str, ...], bind: str | None = None, unlike: str | None = None) -> None:
        self.words, self.bind, self.unlike = words, bind, unlike
        self.support = frozenset(words)
        self._log_p = -log(len(words) - (unlike is not None))
        self._index = {word: index for index, word in enumerate(words)} if unlike else {}

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
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
        """Returns a word and its log probability."""
        return state.bound[self.source], 0.0


class Either(Slot):
    """Repeats the word of one tag in `pair`, chosen with probability 1/2. Binds this word to the tag `bind`."""

    def __init__(self, pair: tuple[str, str], bind: str, support: frozenset[str]) -> None:
        self.pair, self.bind, self.support = pair, bind, support
        self._log_p = -log(2)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
        state.bound[self.bind] = word = state.bound[self.pair[uniform() < 0.5]]
        return word, self._log_p


class Other(Slot):
    """Repeats the word of the tag in `pair` that an earlier `Either` did not choose."""

    def __init__(self, pair: tuple[str, str], taken: str, support: frozenset[str]) -> None:
        self.pair, self.taken, self.support = pair, taken, support

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
        first, second = (state.bound[tag] for tag in self.pair)
        return second if state.bound[self.taken] == first else first, 0.0


class LaterYear(Slot):
    """Draws a later year of the same century uniformly. The start year is the word of the tag `start`."""

    def __init__(self, start: str, numbers: tuple[str, ...]) -> None:
        self.start, self.numbers = start, numbers
        self.support = frozenset(numbers[1:])
        self._log_p = [-log(n) if n else 0.0 for n in range(len(numbers))]

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
        start = int(state.bound[self.start])
        n_later = len(self.numbers) - 1 - start
        return self.numbers[start + 1 + int(uniform() * n_later)], self._log_p[n_later]


class NewFirst(Slot):
    """Draws the first word of a new rare name, without first words that the document already has."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
        seen = {first for first, _ in state.names}
        unseen = [word for word in self.words if word not in seen] if seen else self.words
        word = unseen[int(uniform() * len(unseen))]
        state.bound["name"] = word
        return word, -log(len(unseen))


class NewSecond(Slot):
    """Draws the second word of the rare name that a `NewFirst` has begun."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.support = frozenset(words)
        self._log_p = -log(len(words))

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
        word = self.words[int(uniform() * len(self.words))]
        state.names.append((state.bound["name"], word))
        return word, self._log_p


class KnownFirst(Slot):
    """Repeats the first word of one of the document's rare names, drawn uniformly."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
        word = state.names[int(uniform() * len(state.names))][0]
        state.bound["name"] = word
        return word, -log(len(state.names))


class KnownSecond(Slot):
    """Repeats the second word of the rare name that a `KnownFirst` has begun."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, state: DocumentState) -> Choice:
        """Returns a word and its log probability."""
        return dict(state.names)[state.bound["name"]], 0.0


@dataclass(frozen=True)
class Template:
    """A sentence of fixed length with slots to fill."""

    behaviour: str
    text: str
    """The template in the notation of `templates.py`."""
    words: tuple[str, ...]
    """The word at each position, or an empty string for a slot."""
    slots: tuple[tuple[int, Slot], ...]
    """(position, slot) of each slot, in ascending order."""
    marks: tuple[tuple[int, str], ...]
    """(position, mark) of each mark, in ascending order."""

    @cached_property
    def supports(self) -> list[frozenset[str]]:
        """The set of possible words at each position."""
        slots = dict(self.slots)
        return [slots[i].support if i in slots else frozenset([word]) for i, word in enumerate(self.words)]


@dataclass(frozen=True)
class TemplateDistribution:
    """Probability distribution of the next sentence's template."""

    templates: tuple[Template, ...]
    cumulative: tuple[float, ...]
    """Cumulative probabilities of the templates. The last entry is 1."""
    log_p: tuple[float, ...]
    """Log probability of each template, in nats."""


@cache
def template_distributions() -> tuple[TemplateDistribution, TemplateDistribution, TemplateDistribution]:
    """Returns the distributions for documents with zero, one and two rare names so far."""
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
    # rounding can make the last sum less than 1, and then a random number above this sum would find no template
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
    """Returns the slot with the notation `code`, which is the text between angle brackets.

    `supports` maps each tag to its possible words. A `Draw` with a tag adds this tag.
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
