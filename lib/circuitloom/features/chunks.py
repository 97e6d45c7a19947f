"""The activations of a pass, feature after feature: blocks merged, some features at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from .spill import Block, read_block, stable_order

ENTRIES_AT_ONCE = 2**22
"""Activations held at once."""
FEATURES_AT_ONCE = 2**12
"""Features held at once: their examples are held with their surroundings."""


@dataclass(frozen=True)
class Piece:
    """Activations of some features, by feature and then by token; all of them, or those of a stretch of the text."""

    feature: Int[np.ndarray, " entry"]
    """Number of the feature, from 0 for the first of the chunk."""
    token: Int[np.ndarray, " entry"]
    """Position in the flattened token array."""
    value: Float32[np.ndarray, " entry"]

    def totals(
        self, values: Float[np.ndarray, " entry"], reduce: np.ufunc, n_features: int
    ) -> Float[np.ndarray, " feature"]:
        """`values` of each feature's entries reduced; 0 where it has none."""
        total = np.zeros(n_features, values.dtype)
        if len(values):
            first = np.flatnonzero(np.diff(self.feature, prepend=-1))
            total[self.feature[first]] = reduce.reduceat(values, first)
        return total


@dataclass(frozen=True)
class Chunk:
    """Consecutive features whose activations are held together: one piece, or several of a single feature."""

    low: int
    high: int
    n: Int[np.ndarray, " feature"]
    """Activations of each feature."""
    blocks: Sequence[Path]
    block_positions: int

    @property
    def width(self) -> int:
        """Number of features."""
        return self.high - self.low

    def pieces(self) -> Iterator[Piece]:
        """The activations, in the order of the text where there are several pieces; sequences are not torn."""
        if self.n.sum() <= ENTRIES_AT_ONCE:
            yield self._whole
        else:
            yield from self._read()

    @cached_property
    def _whole(self) -> Piece:
        return next(self._read(), None) or _empty()

    def _read(self) -> Iterator[Piece]:
        parts: list[Piece] = []
        held = 0
        for number, folder in enumerate(self.blocks):
            part = self._part(read_block(folder), number)
            if parts and held + len(part.value) > ENTRIES_AT_ONCE:
                yield _merge(parts, self.width)
                parts, held = [], 0
            parts.append(part)
            held += len(part.value)
        if parts:
            yield _merge(parts, self.width)

    def _part(self, block: Block, number: int) -> Piece:
        start = np.asarray(block.start[self.low : self.high + 1])
        mine = slice(start[0], start[-1])
        feature = np.repeat(np.arange(self.width, dtype=np.int32), np.diff(start))
        token = block.place[mine].astype(np.int64) + number * self.block_positions
        return Piece(feature, token, np.array(block.value[mine]))


def chunks(blocks: Sequence[Path], block_positions: int, width: int) -> Iterator[Chunk]:
    """All features in order, as many at a time as `ENTRIES_AT_ONCE` allows."""
    n = np.zeros(width, np.int64)
    for folder in blocks:
        n += np.diff(read_block(folder).start)
    low = 0
    while low < width:
        within = int(np.searchsorted(n[low:].cumsum(), ENTRIES_AT_ONCE, side="right"))
        high = min(width, low + max(1, min(within, FEATURES_AT_ONCE)))
        yield Chunk(low, high, n[low:high], blocks, block_positions)
        low = high


def _merge(parts: Sequence[Piece], width: int) -> Piece:
    joined = Piece(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("feature", "token", "value"))
    )
    if width == 1 or len(parts) == 1:
        return joined
    order = stable_order(joined.feature, width)
    return Piece(joined.feature[order], joined.token[order], joined.value[order])


def _empty() -> Piece:
    return Piece(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32))
