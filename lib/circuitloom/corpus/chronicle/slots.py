"""What may stand at one place of a template, and with which probability. Templates as slots: the compact notation of
`templates` made executable."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import log

from .templates import BEHAVIOURS
from .vocabulary import CLASSES, NUMBERS, UNIONS

Uniform = Callable[[], float]
"""Source of numbers uniform on [0, 1)."""

Choice = tuple[str, float]
"""A word and the log of the probability with which it was chosen, in nats."""


@dataclass
class DocumentState:
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
    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """The word of this place, given what `memory` holds; different choices give different words."""


class Draw(Slot):
    """A word of a set, uniformly; it may have to differ from the word bound to a tag."""

    def __init__(self, words: tuple[str, ...], bind: str | None = None, unlike: str | None = None) -> None:
        self.words, self.bind, self.unlike = words, bind, unlike
        self.support = frozenset(words)
        self._log_p = -log(len(words) - (unlike is not None))
        self._place = {word: place for place, word in enumerate(words)} if unlike else {}

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
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

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """See `Slot`."""
        return memory.bound[self.source], 0.0


class Either(Slot):
    """One of the words bound to two tags, each with probability 1/2; `bind` keeps which."""

    def __init__(self, pair: tuple[str, str], bind: str, support: frozenset[str]) -> None:
        self.pair, self.bind, self.support = pair, bind, support
        self._log_p = -log(2)

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """See `Slot`."""
        memory.bound[self.bind] = word = memory.bound[self.pair[uniform() < 0.5]]
        return word, self._log_p


class Other(Slot):
    """Of the words bound to two tags, the one that an `Either` left."""

    def __init__(self, pair: tuple[str, str], taken: str, support: frozenset[str]) -> None:
        self.pair, self.taken, self.support = pair, taken, support

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """See `Slot`."""
        first, second = (memory.bound[tag] for tag in self.pair)
        return second if memory.bound[self.taken] == first else first, 0.0


class Later(Slot):
    """A year within the century later than the one bound to a tag, uniform over those left."""

    def __init__(self, start: str, numbers: tuple[str, ...]) -> None:
        self.start, self.numbers = start, numbers
        self.support = frozenset(numbers[1:])
        self._log_p = [-log(left) if left else 0.0 for left in range(len(numbers))]

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """See `Slot`."""
        start = int(memory.bound[self.start])
        left = len(self.numbers) - 1 - start
        return self.numbers[start + 1 + int(uniform() * left)], self._log_p[left]


class NewFirst(Slot):
    """The first word of a rare name that the document has not seen."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
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

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """See `Slot`."""
        word = self.words[int(uniform() * len(self.words))]
        memory.names.append((memory.bound["name"], word))
        return word, self._log_p


class KnownFirst(Slot):
    """The first word of a rare name that the document has introduced, uniformly."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """See `Slot`."""
        word = memory.names[int(uniform() * len(memory.names))][0]
        memory.bound["name"] = word
        return word, -log(len(memory.names))


class KnownSecond(Slot):
    """What followed the rare word that a `KnownFirst` repeated."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.support = frozenset(words)

    def fill(self, uniform: Uniform, memory: DocumentState) -> Choice:
        """See `Slot`."""
        return dict(memory.names)[memory.bound["name"]], 0.0


@dataclass(frozen=True)
class Template:
    """A sentence of fixed length with places to fill."""

    behaviour: str
    text: str
    """The notation that it was parsed from."""
    words: tuple[str, ...]
    """The words that stand fast; blanks where a slot is."""
    slots: tuple[tuple[int, Slot], ...]
    """(position, slot) of each place to fill, in order."""
    marks: tuple[tuple[int, str], ...]
    """(position, mark) of each marked place."""

    @property
    def supports(self) -> list[frozenset[str]]:
        """The words that can stand at each position."""
        slots = dict(self.slots)
        return [slots[i].support if i in slots else frozenset([word]) for i, word in enumerate(self.words)]


@dataclass(frozen=True)
class Menu:
    """The templates to choose from, in one state of a document."""

    templates: tuple[Template, ...]
    cumulative: tuple[float, ...]
    """Running sum of their probabilities; the last is 1."""
    log_p: tuple[float, ...]
    """Log of each one's probability, in nats."""


@cache
def menus() -> tuple[Menu, Menu, Menu]:
    """The menu of a document that has introduced no rare name, one, and two."""
    parsed = {
        (name, text): _parse(name, text)
        for name, behaviour in BEHAVIOURS.items()
        for text in behaviour.templates
    }
    return _menu(parsed, 0), _menu(parsed, 1), _menu(parsed, 2)


def templates() -> tuple[Template, ...]:
    """Every template, once."""
    return tuple(dict.fromkeys(template for menu in menus() for template in menu.templates))


def _menu(parsed: dict[tuple[str, str], Template], names: int) -> Menu:
    total = sum(behaviour.weight[names] for behaviour in BEHAVIOURS.values())
    shares: dict[Template, float] = {}
    for (name, text), template in parsed.items():
        behaviour = BEHAVIOURS[name]
        within = behaviour.templates[text] / sum(behaviour.templates.values())
        if behaviour.weight[names]:
            shares[template] = behaviour.weight[names] / total * within
    cumulative: list[float] = []
    for share in shares.values():
        cumulative.append(share + (cumulative[-1] if cumulative else 0.0))
    # the sum may fall short of 1 by a rounding error, and a number between the two would find no template
    cumulative[-1] = 1.0
    return Menu(tuple(shares), tuple(cumulative), tuple(log(share) for share in shares.values()))


def _parse(behaviour: str, text: str) -> Template:
    words: list[str] = []
    slots: list[tuple[int, Slot]] = []
    marks: list[tuple[int, str]] = []
    supports: dict[str, frozenset[str]] = {}
    for position, item in enumerate(text.split()):
        place, *marked = item.split("@")
        marks += [(position, mark) for mark in marked]
        if place.startswith("<"):
            slots.append((position, _slot(place[1:-1], supports)))
        words.append("" if place.startswith("<") else place)
    return Template(behaviour, text, tuple(words), tuple(slots), tuple(marks))


_SPECIAL = {
    "new_first": lambda: NewFirst(CLASSES["rare_first"]),
    "new_second": lambda: NewSecond(CLASSES["rare_second"]),
    "known_first": lambda: KnownFirst(CLASSES["rare_first"]),
    "known_second": lambda: KnownSecond(CLASSES["rare_second"]),
}


def _slot(code: str, supports: dict[str, frozenset[str]]) -> Slot:
    """The slot that `code` (a place without its angle brackets) describes; `supports` gains the tags it binds."""
    if code in _SPECIAL:
        return _SPECIAL[code]()
    if match := re.fullmatch(r"=(\w+)", code):
        return Copy(match[1], supports[match[1]])
    if match := re.fullmatch(r"later=(\w+)", code):
        return Later(match[1], NUMBERS)
    if match := re.fullmatch(r"(\w+)\|(\w+)([:!])(\w+)", code):
        kind = Either if match[3] == ":" else Other
        return kind((match[1], match[2]), match[4], supports[match[1]] | supports[match[2]])
    match = re.fullmatch(r"(\w+)(?:!(\w+))?(?::(\w+))?", code)
    assert match, code
    slot = Draw(CLASSES.get(match[1]) or UNIONS[match[1]], bind=match[3], unlike=match[2])
    if match[3]:
        supports[match[3]] = slot.support
    return slot
