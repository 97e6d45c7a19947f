"""What each feature's activations add up to, and how they are distributed."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from .external_sort import Chunk, Piece


@dataclass(frozen=True)
class Totals:
    """Sums over all tokens."""

    n: Int[np.ndarray, " feature"]
    """Tokens on which it fires."""
    total: Float64[np.ndarray, " feature"]
    square: Float64[np.ndarray, " feature"]
    largest: Float32[np.ndarray, " feature"]
    """0 where it never fires."""

    @property
    def mean(self) -> Float64[np.ndarray, " feature"]:
        """Mean over the tokens on which it fires; NaN where there are none."""
        return _ratio(self.total, self.n)

    @property
    def rms(self) -> Float64[np.ndarray, " feature"]:
        """Root of the mean square over the tokens on which it fires; NaN where there are none."""
        return np.sqrt(_ratio(self.square, self.n))


def totals(chunk: Chunk) -> Totals:
    """The totals of a chunk's features."""
    total, square = np.zeros(chunk.width), np.zeros(chunk.width)
    largest = np.zeros(chunk.width, np.float32)
    for piece in chunk.pieces():
        value = piece.value.astype(np.float64)
        total += piece.totals(value, np.add, chunk.width)
        square += piece.totals(value * value, np.add, chunk.width)
        np.maximum(largest, piece.totals(piece.value, np.maximum, chunk.width), out=largest)
    return Totals(chunk.n, total, square, largest)


def bins_of(piece: Piece, largest: Float32[np.ndarray, " feature"], bins: int) -> Int[np.ndarray, " entry"]:
    """Which of `bins` equal parts, from 0 to its feature's largest activation, each entry lies in, from 0."""
    # in float64, so that the largest is bins exactly, and edges fall the same way whatever the machine
    share = piece.value.astype(np.float64) * bins
    share /= largest.astype(np.float64)[piece.feature]
    return np.minimum(share.astype(np.int64), bins - 1)


def counts(
    pieces: Iterable[Piece], largest: Float32[np.ndarray, " feature"], bins: int
) -> Int[np.ndarray, "feature bin"]:
    """Activations of each feature in each of `bins` equal parts from 0 to its largest."""
    n_features = len(largest)
    count = np.zeros(n_features * bins, np.int64)
    for piece in pieces:
        key = piece.feature.astype(np.int64) * bins + bins_of(piece, largest, bins)
        count += np.bincount(key, minlength=n_features * bins)
    return count.reshape(n_features, bins)


def _ratio(
    a: Float64[np.ndarray, " feature"], n: Int[np.ndarray, " feature"]
) -> Float64[np.ndarray, " feature"]:
    return np.divide(a, n, out=np.full(len(a), np.nan), where=n > 0)
