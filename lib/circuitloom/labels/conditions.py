"""Conditions on a position of a text, of which descriptions are made, and how a description is put into words.

A description is a conjunction of conditions, such as "the token is `by`" and "the token before is in the class: words
in -ed", which reads "`by` after words in -ed".
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from .text import BRACKETS, PLACES, QUOTES, REPEATED, SENTENCE, Half, LabelText

NEAR_PLACE = 100
"""Place of conditions on any of the tokens near before a position."""
_PLACE_WORDS = {
    1: "after",
    2: "two tokens after",
    3: "three tokens after",
    4: "four tokens after",
    NEAR_PLACE: "soon after",
    -1: "says",
}
"""Words for each place but that of the token itself."""
_ANY = "anything"
"""Word for the token itself if no condition is on it."""
_FLAGS = {
    REPEATED: ("repeated", "repeated tokens"),
    BRACKETS: ("in brackets", "anything in brackets"),
    QUOTES: ("in quotes", "anything in quotes"),
    SENTENCE: ("starting a sentence", "first token of a sentence"),
}
"""Maps a flag to its words behind a description of the token, and alone."""


Positions = Int[np.ndarray, " some"] | slice
EVERYWHERE = slice(None)


@dataclass(frozen=True)
class TokenAt:
    """The token at a place is one of some tokens, or in a class."""

    place: int
    """One of PLACES, or NEAR_PLACE: any of the tokens near before. A next token is one that the feature promotes."""
    units: tuple[int, ...] = ()
    name: str = ""
    """Name of the class. Empty if `units` are given."""

    @property
    def words(self) -> int:
        """Number of words."""
        about = 0 if self.place == 0 else len(_PLACE_WORDS[self.place].split())
        return about + (len(self.units) or len(self.name.split()))

    def holds(self, half: Half, text: LabelText, at: Positions = EVERYWHERE) -> Bool[np.ndarray, " some"]:
        """Returns whether the condition holds at positions of a half."""
        if self.name:
            member = text.classes[self.name]
        else:
            member = np.zeros(len(text.names) + 1, bool)
            member[list(self.units)] = True
        if self.place == NEAR_PLACE:
            return np.asarray(member[half.near[at]].any(1))
        return member[half.unit(self.place)[at]]

    def shown(self, text: LabelText) -> str:
        """Returns the tokens or the class in words."""
        return self.name or ", ".join(f"`{text.names[unit]}`" for unit in self.units)


@dataclass(frozen=True)
class Flag:
    """A flag of positions is set."""

    name: str

    @property
    def words(self) -> int:
        """Number of words."""
        return len(_FLAGS[self.name][0].split())

    def holds(self, half: Half, text: LabelText, at: Positions = EVERYWHERE) -> Bool[np.ndarray, " some"]:
        """Returns whether the condition holds at positions of a half."""
        return half.flags[self.name][at]


@dataclass(frozen=True)
class Start:
    """The position is among the first tokens of its document."""

    tokens: int

    @property
    def words(self) -> int:
        """Number of words."""
        return 5

    def holds(self, half: Half, text: LabelText, at: Positions = EVERYWHERE) -> Bool[np.ndarray, " some"]:
        """Returns whether the condition holds at positions of a half."""
        return half.document_position[at] < self.tokens


Condition = TokenAt | Flag | Start
"""A condition on a position."""


@dataclass(frozen=True)
class Description:
    """Conditions that hold together. Without conditions: every token."""

    conditions: tuple[Condition, ...] = ()
    upstream: bool = False
    """Whether the description comes from what a feature upstream fires on."""

    @cached_property
    def words(self) -> int:
        """Number of words of the label, with a token as a word."""
        has_subject = any(isinstance(each, TokenAt) and each.place in (0, -1) for each in self.conditions)
        return sum(each.words for each in self.conditions) + (not has_subject)

    def where(self, half: Half, text: LabelText) -> Int[np.ndarray, " some"]:
        """Returns the positions of a half where the description holds, in text order."""
        if not self.conditions:
            return np.arange(len(half))
        first, *others = self.conditions
        if isinstance(first, TokenAt) and first.units and first.place != NEAR_PLACE:
            found = half.positions_of(first.place, first.units)
        else:
            found = np.flatnonzero(first.holds(half, text))
        for condition in others:
            found = found[condition.holds(half, text, found)]
        return found

    @property
    def is_near(self) -> bool:
        """Whether a condition is on the tokens near before."""
        return any(isinstance(each, TokenAt) and each.place == NEAR_PLACE for each in self.conditions)

    @property
    def promoted(self) -> tuple[int, ...]:
        """Units that the description names as next tokens."""
        return next(
            (each.units for each in self.conditions if isinstance(each, TokenAt) and each.place == -1), ()
        )

    @property
    def kind(self) -> str:
        """Kind of the description, for the table `label`."""
        match self.conditions:
            case _ if self.upstream:
                kind = "upstream"
            case ():
                kind = "always"
            case (TokenAt(place=0) as only,):
                kind = "class" if only.name else "token"
            case (TokenAt() as only,):
                kind = "output" if only.place == -1 else "context"
            case (_,):
                kind = "position"
            case several:
                tokens = [each for each in several if isinstance(each, TokenAt) and len(each.units) == 1]
                in_a_row = sorted(each.place for each in tokens) == list(range(len(several)))
                kind = "n-gram" if in_a_row else "conjunction"
        return kind

    def text(self, text: LabelText) -> str:
        """Returns the label."""
        tokens = {each.place: each for each in self.conditions if isinstance(each, TokenAt)}
        flags = [each.name for each in self.conditions if isinstance(each, Flag)]
        starts = [each.tokens for each in self.conditions if isinstance(each, Start)]
        parts = []
        if here := tokens.get(0):
            parts.append(here.shown(text))
        after = _after(tokens, text)
        if said := tokens.get(-1):
            # what a feature promotes comes first: "says `by` after `was`"
            parts.insert(0, f"says {said.shown(text)}" + (" at" if here else ""))
        if not parts:
            if not self.conditions:
                return "almost every token"
            if flags and not after and not starts:
                first, *flags = flags
                parts.append(_FLAGS[first][1])
            elif not (starts and not after):
                parts.append(_ANY)
        parts += after
        parts += [_FLAGS[name][0] for name in flags]
        if starts:
            which = "token" if min(starts) == 1 else f"{min(starts)} tokens"
            parts.append(f"in the first {which} of a document" if parts else f"first {which} of a document")
        return " ".join(parts)


def _after(tokens: dict[int, TokenAt], text: LabelText) -> list[str]:
    """Returns the words for the tokens before a position. Single tokens in a row are written as a text."""
    places = [place for place in (*PLACES[1:5], NEAR_PLACE) if place in tokens]
    row: list[int] = []
    for place in places:
        if place == len(row) + 1 and len(tokens[place].units) == 1:
            row.append(place)
    parts = []
    if len(row) > 1:
        joined = " ".join(text.names[tokens[place].units[0]] for place in reversed(row))
        parts.append(f"after `{joined}`")
    else:
        row = []
    return parts + [
        f"{_PLACE_WORDS[place]} {tokens[place].shown(text)}" for place in places if place not in row
    ]
