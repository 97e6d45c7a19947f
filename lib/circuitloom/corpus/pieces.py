"""Tokenizes a long document piece by piece: in little memory, and only as far as its tokens are wanted.

The text is encoded in windows that overlap. Two consecutive windows are joined where they agree on a run of tokens in
their overlap: same ids, same characters. The result is the same as encoding the whole text. For BPE one common token is
enough, because a sequence of tokens is what BPE gives if and only if each pair of neighbours is. A longer run is asked
for, because pre-tokenizers and Unigram may look further. Windows that do not agree become one larger window, so that a
text without any agreement is encoded as a whole in the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from .tokenizer import Tokenizer

LONG = 100_000
"""Texts of more characters are encoded in windows. Also the number of characters from one window to the next."""
_OVERLAP = 2_000
"""Number of characters that two consecutive windows share."""
_RUN = 16
"""Minimum number of consecutive tokens on which two windows must agree."""
_VARIETY = 4
"""Minimum number of different tokens among these. A repetition can agree with itself at a wrong place."""
_WINDOWS = 16
"""Maximum number of windows that are encoded at the same time."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a document."""

    tokens: Int[np.ndarray, " token"]
    character: int
    """First character of the window that gave the tokens."""
    skip: int
    """Number of the window's tokens before `tokens`. Encoding can resume from (character, skip)."""
    is_last: bool = False
    """Whether the document ends with this piece."""


@dataclass(frozen=True)
class _Window:
    """The tokens of `text[begin:end]`."""

    begin: int
    end: int
    ids: Int[np.ndarray, " token"]
    offsets: Int[np.ndarray, "token 2"]
    """Characters (start, end) of each token, counted from the start of the whole text."""

    def token_at(self, character: int) -> int:
        """Returns the index of the first token that starts at `character` or later."""
        return int(np.searchsorted(self.offsets[:, 0], character))

    def rows(self, first: int, last: int) -> list[tuple[int, ...]]:
        """Returns (start, end, id) of the tokens `first` to `last` (exclusive)."""
        table = np.column_stack([self.offsets[first:last], self.ids[first:last]])
        return [tuple(row) for row in table.tolist()]


def encode_pieces(tokenizer: Tokenizer, text: str, character: int = 0, skip: int = 0) -> Iterator[Piece]:
    """Yields the tokens of `text` in consecutive pieces. Together they are `tokenizer.encode([text])`.

    (`character`, `skip`) is the place of an earlier piece at which encoding resumes. Tokens before it are left out.
    """
    windows = _Windows(tokenizer, text)
    left = windows.at(character)
    while left.end < len(text):
        right = windows.at(left.end - _OVERLAP)
        joint = _joint(left, right)
        if joint is None and (at := left.token_at(right.begin)) < len(left.ids):
            # windows agree more often if the second begins with a token of the first, as in a long number
            right = windows.between(int(left.offsets[at, 0]), right.end)
            joint = _joint(left, right)
        if joint is None:
            left = windows.between(left.begin, windows.end(left.begin, 2 * windows.size(left)))
            continue
        last, first = joint
        yield Piece(left.ids[skip:last], left.begin, skip)
        left, skip = right, first
    yield Piece(left.ids[skip:], left.begin, skip, is_last=True)


class _Windows:
    """Encodes windows of a text. Windows begin at multiples of `LONG`, or shortly after, and are encoded in advance."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self._ahead: dict[int, _Window] = {}
        self._count = 1

    def size(self, window: _Window) -> int:
        """Returns the number of multiples of `LONG` that the window covers."""
        return (window.end - _OVERLAP) // LONG - window.begin // LONG

    def end(self, begin: int, size: int = 1) -> int:
        """Returns the end of a window that begins at `begin`."""
        return min(len(self.text), (begin // LONG + size) * LONG + _OVERLAP)

    def at(self, begin: int) -> _Window:
        """Returns the window that begins at `begin`. Encodes it together with some of the following ones."""
        if begin not in self._ahead:
            following = range((begin // LONG + 1) * LONG, len(self.text), LONG)[: self._count - 1]
            self._ahead = {w.begin: w for w in self._encode([begin, *following])}
            # few windows at first, because few tokens may be wanted
            self._count = min(2 * self._count, _WINDOWS)
        return self._ahead[begin]

    def between(self, begin: int, end: int) -> _Window:
        """Returns the window of the characters `begin` to `end`."""
        ((ids, offsets),) = self.tokenizer.encode_with_offsets([self.text[begin:end]])
        return _Window(begin, end, ids, offsets + begin)

    def _encode(self, begins: list[int]) -> list[_Window]:
        ends = [self.end(begin) for begin in begins]
        encoded = self.tokenizer.encode_with_offsets(
            [self.text[begin:end] for begin, end in zip(begins, ends, strict=True)]
        )
        return [
            _Window(begin, end, ids, offsets + begin)
            for begin, end, (ids, offsets) in zip(begins, ends, encoded, strict=True)
        ]


def _joint(left: _Window, right: _Window) -> tuple[int, int] | None:
    """Returns (last, first): the tokens of both windows are `left.ids[:last]` and `right.ids[first:]`.

    Returns None if the windows do not agree on enough tokens.
    """
    start = left.token_at(right.begin)
    index = {row: number for number, row in enumerate(left.rows(start, len(left.ids)), start)}
    rows = right.rows(0, right.token_at(left.end))
    best: list[int] = []
    run: list[int] = []
    previous = None
    for number, row in enumerate(rows):
        same = index.get(row)
        if same is None:
            run = []
        elif previous is None or same != previous + 1:
            run = [number]
        else:
            run.append(number)
        best = max(best, run, key=len)
        previous = same
    if len(best) < _RUN or len(set(right.ids[best].tolist())) < _VARIETY:
        return None
    first = best[len(best) // 2]
    return index[rows[first]], first
