"""Templates as slots: the compact notation of `templates` made executable."""

import re
from dataclasses import dataclass
from functools import cache
from math import log

from .slots import Copy, Draw, Either, KnownFirst, KnownSecond, Later, NewFirst, NewSecond, Other, Slot
from .templates import BEHAVIOURS
from .vocabulary import CLASSES, NUMBERS, UNIONS


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
