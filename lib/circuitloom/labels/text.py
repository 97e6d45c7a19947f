"""The held-out text on which labels are learned and scored, as arrays with an entry per position."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from ..corpus.token_arrays import TokenArrays, scored_positions
from ..corpus.token_names import token_name
from ..corpus.word_classes import word_classes

PLACES = (0, 1, 2, 3, 4, -1)
"""Places of a condition: 0 is the token itself, 1 the token before it, -1 the next token."""
NEAR = 8
"""Number of tokens before a token that count as near."""
STARTS = (1, 2, 4, 8)
"""Numbers of first tokens of a document that are tried as a condition."""
UNKNOWN = np.iinfo(np.int32).max
"""Value of `document_position` where the document began in an earlier sequence."""
REPEATED, BRACKETS, QUOTES, SENTENCE = "repeated", "brackets", "quotes", "sentence"
FLAGS = (REPEATED, BRACKETS, QUOTES, SENTENCE)
"""Names of flags of positions."""


@dataclass(frozen=True)
class Half:
    """The scored positions of half of the documents, in text order. Units are numbers of displayed texts of tokens."""

    index: Int[np.ndarray, " position"]
    """Index of each position in the flattened token array."""
    outside: int
    """Number of units, which stands for what is outside the document or the sequence."""
    codes: Int[np.ndarray, "position column"]
    """The unit at each of PLACES, those of the last `NEAR` tokens, each of FLAGS, and the number of STARTS that are at
    most `document_position`. The columns have codes of their own, so that one count of all codes counts each column by
    itself: units of column i are counted from (outside + 1) min(i, len(PLACES)), flags and starts after them."""
    document_position: Int[np.ndarray, " position"]
    """Number of tokens of the document before each position, or `UNKNOWN`."""
    flags: dict[str, Bool[np.ndarray, " position"]]
    """Maps the name of a flag to its value at each position."""
    document: Int[np.ndarray, " position"]
    """Document of each position, numbered from 0 within the half."""

    def __len__(self) -> int:
        """Returns the number of positions."""
        return len(self.index)

    @cached_property
    def document_tokens(self) -> Float64[np.ndarray, " document"]:
        """Number of positions in each document."""
        return np.bincount(self.document).astype(np.float64)

    def unit(self, place: int) -> Int[np.ndarray, " position"]:
        """Returns the unit at a place of each position."""
        return self._columns[PLACES.index(place)]

    @cached_property
    def _columns(self) -> list[Int[np.ndarray, " position"]]:
        # a column of the matrix is not contiguous, and would be slow to read
        return [self.codes[:, i] - i * (self.outside + 1) for i in range(len(PLACES))]

    @cached_property
    def _sorted(self) -> list[tuple[Int[np.ndarray, " position"], Int[np.ndarray, " unit_plus_2"]]]:
        """Positions sorted by the unit at each of PLACES, and where each unit begins."""
        bounds = np.arange(self.outside + 2)
        orders = [np.argsort(column, kind="stable").astype(np.int32) for column in self._columns]
        return [
            (order, np.searchsorted(column[order], bounds))
            for column, order in zip(self._columns, orders, strict=True)
        ]

    def positions_of(self, place: int, units: Sequence[int]) -> Int[np.ndarray, " some"]:
        """Returns the positions at which the unit at a place is one of `units`, in text order."""
        order, start = self._sorted[PLACES.index(place)]
        parts = [order[start[unit] : start[unit + 1]] for unit in units]
        return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))

    @cached_property
    def near(self) -> Int[np.ndarray, "position near"]:
        """Units of the last `NEAR` tokens before each position."""
        first = len(PLACES)
        return self.codes[:, first : first + NEAR] - first * (self.outside + 1)

    def count(
        self, positions: Int[np.ndarray, " some"] | None = None
    ) -> tuple[Int[np.ndarray, "row unit"], Int[np.ndarray, " flag"], Int[np.ndarray, " start"]]:
        """Returns how often each unit occurs at each of PLACES and in the last row near before, each of FLAGS, and how
        many positions are among the first tokens of a document, for each of STARTS.

        Counts are over `positions`, or the whole half. A unit that occurs twice near a position counts twice.
        """
        codes = self.codes if positions is None else self.codes.take(positions, 0)
        rows, size = len(PLACES) + 1, self.outside + 1
        end = rows * size
        counts = np.bincount(codes.ravel(), minlength=end + 2 * len(FLAGS) + len(STARTS) + 1)
        units = counts[:end].reshape(rows, size)[:, :-1]
        flags = counts[end + 1 : end + 2 * len(FLAGS) : 2]
        starts = counts[end + 2 * len(FLAGS) :][: len(STARTS)].cumsum()
        return units, flags, starts


@dataclass(frozen=True)
class LabelText:
    """Held-out text in two halves of documents: labels are learned on even document numbers and scored on odd ones."""

    names: Sequence[str]
    """Text of each unit, without the space before it."""
    classes: dict[str, Bool[np.ndarray, " unit"]]
    """Maps the name of a class of tokens to its members. The last entry, outside the document, is false."""
    learning: Half
    scoring: Half

    @cached_property
    def members(self) -> Float32[np.ndarray, "unit class"]:
        """All classes as one matrix of 0 and 1."""
        columns = np.zeros((len(self.names) + 1, len(self.classes)), np.float32)
        for i, member in enumerate(self.classes.values()):
            columns[:, i] = member
        return columns

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the columns of `members`."""
        return list(self.classes)

    @cached_property
    def class_words(self) -> Int[np.ndarray, " class"]:
        """Number of words of each class's name."""
        return np.array([len(name.split()) for name in self.classes], np.int64)

    @cached_property
    def number(self) -> dict[str, int]:
        """Maps the text of a token to its unit."""
        return {name: i for i, name in enumerate(self.names)}


def shown(token: str) -> str:
    """Returns the text of a token as labels show it: without the space before it, and white space by name."""
    text = token.strip(" ")
    if text:
        return text.replace("\n", "⏎").replace("\t", "⇥")
    return "space" if token else "nothing"


def read_text(tokens: TokenArrays, sequences: int, strings: list[str]) -> LabelText:
    """Returns the first `sequences` sequences as text for labels. `strings` has the text of each token id.

    Tokens that differ only in the space before them are one unit. Raises ValueError if the stored tokens are damaged.
    """
    rows = slice(sequences)
    token = np.asarray(tokens.read(tokens.token, rows))
    document = np.asarray(tokens.read(tokens.document, rows))
    ids, local = np.unique(token, return_inverse=True)
    texts = [shown(token_name(strings, i)) for i in ids.tolist()]
    names = sorted(set(texts))
    number = {name: i for i, name in enumerate(names)}
    unit = np.array([number[text] for text in texts])[local].reshape(token.shape).astype(np.int32)
    classes = {
        name: np.append(np.array(members), False)
        for name, members in word_classes([name.replace("⏎", "\n") for name in names]).items()
    }
    separator = np.zeros(token.shape, bool) if tokens.separator_id is None else token == tokens.separator_id
    positions = _Positions(unit, document, separator, names)
    return LabelText(names, classes, *map(positions.half, _split(token, document, tokens.separator_id)))


def scoring_index(tokens: TokenArrays, sequences: int) -> Int[np.ndarray, " position"]:
    """Returns `LabelText.scoring.index` of the first `sequences` sequences, without reading the text.

    Raises ValueError if the stored tokens are damaged.
    """
    rows = slice(sequences)
    token = np.asarray(tokens.read(tokens.token, rows))
    document = np.asarray(tokens.read(tokens.document, rows))
    return np.flatnonzero(_split(token, document, tokens.separator_id)[1])


def _split(
    token: Int[np.ndarray, "sequence position"],
    document: Int[np.ndarray, "sequence position"],
    separator_id: int | None,
) -> tuple[Bool[np.ndarray, "sequence position"], Bool[np.ndarray, "sequence position"]]:
    """Returns masks of the scored positions of the learning and of the scoring documents."""
    scored = scored_positions(token, separator_id)
    return scored & (document % 2 == 0), scored & (document % 2 == 1)


@dataclass(frozen=True)
class _Positions:
    """All positions of some sequences."""

    unit: Int[np.ndarray, "sequence position"]
    document: Int[np.ndarray, "sequence position"]
    separator: Bool[np.ndarray, "sequence position"]
    names: Sequence[str]

    def half(self, mine: Bool[np.ndarray, "sequence position"]) -> Half:
        """Returns the positions where `mine` is true."""
        chosen = mine.ravel()
        document = self.document.ravel()[chosen]
        size = len(self.names) + 1
        columns = [
            self._at(place).ravel()[chosen] + np.int32(size * min(i, len(PLACES)))
            for i, place in enumerate((*PLACES, *range(1, NEAR + 1)))
        ]
        document_position = self._document_position.ravel()[chosen]
        flags = {name: self._flags[name].ravel()[chosen] for name in FLAGS}
        first = size * (len(PLACES) + 1)
        columns += [flag + np.int32(first + 2 * i) for i, flag in enumerate(flags.values())]
        started = np.searchsorted(STARTS, document_position, side="right").astype(np.int32)
        columns.append(started + first + 2 * len(FLAGS))
        return Half(
            index=np.flatnonzero(chosen),
            outside=len(self.names),
            codes=np.stack(columns, 1),
            document_position=document_position,
            flags=flags,
            document=np.unique(document, return_inverse=True)[1].astype(np.int32),
        )

    def _at(self, place: int) -> Int[np.ndarray, "sequence position"]:
        """Returns the units `place` positions before each position."""
        outside = len(self.names)
        found = np.full_like(self.unit, outside)
        n = self.unit.shape[1]
        if abs(place) < n:
            to, source = slice(max(0, place), n + min(0, place)), slice(max(0, -place), n - max(0, place))
            same = (self.document[:, to] == self.document[:, source]) & ~self.separator[:, source]
            found[:, to] = np.where(same, self.unit[:, source], outside)
        return found

    @cached_property
    def _starts(self) -> Bool[np.ndarray, "sequence position"]:
        """Whether a position is the first of its document in its sequence."""
        starts = np.ones_like(self.separator)
        starts[:, 1:] = self.document[:, 1:] != self.document[:, :-1]
        return starts

    @cached_property
    def _document_position(self) -> Int[np.ndarray, "sequence position"]:
        position = np.broadcast_to(np.arange(self.unit.shape[1]), self.unit.shape)
        first = np.maximum.accumulate(np.where(self._starts, position, 0), 1)
        before = (~self.separator).cumsum(1) - ~self.separator
        # a sequence may begin with a separator within a document
        continues = self.document[:, 0] == np.append(-1, self.document[:-1, -1])
        known = (first > 0) | ~continues[:, None]
        return np.where(known, before - np.take_along_axis(before, first, 1), UNKNOWN)

    @cached_property
    def _flags(self) -> dict[str, Bool[np.ndarray, "sequence position"]]:
        names = np.array(self.names, dtype=object)
        kind = {
            text: np.array([name in members for name in names])[self.unit]
            for text, members in {
                "open": {"(", "["},
                "close": {")", "]"},
                "quote": {'"', "\u201c", "\u201d"},
                "stop": {".", "!", "?", '."', '!"', '?"', ".\u201d"},
            }.items()
        }
        sentence = np.zeros_like(self.separator)
        sentence[:, 1:] = kind["stop"][:, :-1]
        return {
            REPEATED: self._repeated(),
            BRACKETS: self._count(kind["open"]) > self._count(kind["close"]),
            QUOTES: self._count(kind["quote"]) % 2 == 1,
            SENTENCE: sentence,
        }

    def _count(self, which: Bool[np.ndarray, "sequence position"]) -> Int[np.ndarray, "sequence position"]:
        """Returns the number of such tokens before each position, in its document and sequence."""
        total = which.cumsum(1) - which
        return total - np.maximum.accumulate(np.where(self._starts, total, 0), 1)

    def _repeated(self) -> Bool[np.ndarray, "sequence position"]:
        """Returns whether a position's unit occurs before it, in its document and sequence."""
        sequence = np.broadcast_to(np.arange(len(self.unit))[:, None], self.unit.shape)
        key = np.stack([sequence.ravel(), self.document.ravel(), self.unit.ravel()])
        first = np.unique(key, axis=1, return_index=True)[1]
        repeated = np.ones(self.unit.size, bool)
        repeated[first] = False
        return repeated.reshape(self.unit.shape)
