"""Per-feature statistics and histograms of activations."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from .external_sort import FeatureRange, SortedActivations


@dataclass(frozen=True)
class FeatureTotals:
    """Sums over the activations of each feature."""

    n: Int[np.ndarray, " feature"]
    """Number of tokens on which it fires."""
    total: Float64[np.ndarray, " feature"]
    square: Float64[np.ndarray, " feature"]
    largest: Float32[np.ndarray, " feature"]
    """Largest activation; 0 if it never fires."""

    @property
    def mean(self) -> Float64[np.ndarray, " feature"]:
        """Mean over the tokens on which it fires; NaN if it never fires."""
        return _ratio(self.total, self.n)

    @property
    def rms(self) -> Float64[np.ndarray, " feature"]:
        """Root mean square over the tokens on which it fires; NaN if it never fires."""
        return np.sqrt(_ratio(self.square, self.n))


def feature_totals(features: FeatureRange) -> FeatureTotals:
    """Sums over the activations of a feature range."""
    total, square = np.zeros(features.width), np.zeros(features.width)
    largest = np.zeros(features.width, np.float32)
    for batch in features.batches():
        value = batch.value.astype(np.float64)
        total += batch.reduce(value, np.add, features.width)
        square += batch.reduce(value * value, np.add, features.width)
        np.maximum(largest, batch.reduce(batch.value, np.maximum, features.width), out=largest)
    return FeatureTotals(features.n, total, square, largest)


def bin_indices(
    activations: SortedActivations, largest: Float32[np.ndarray, " feature"], bins: int
) -> Int[np.ndarray, " entry"]:
    """Bin of each entry, among `bins` bins of equal width between 0 and its feature's largest activation."""
    # in float64, so that the largest activation gives exactly `bins`, and rounding at edges is the same on all machines
    position = activations.value.astype(np.float64) * bins
    position /= largest.astype(np.float64)[activations.feature]
    return np.minimum(position.astype(np.int64), bins - 1)


def bin_counts(
    batches: Iterable[SortedActivations], largest: Float32[np.ndarray, " feature"], bins: int
) -> Int[np.ndarray, "feature bin"]:
    """Histogram of each feature's activations, in `bins` bins of equal width between 0 and its largest."""
    n_features = len(largest)
    count = np.zeros(n_features * bins, np.int64)
    for batch in batches:
        key = batch.feature.astype(np.int64) * bins + bin_indices(batch, largest, bins)
        count += np.bincount(key, minlength=n_features * bins)
    return count.reshape(n_features, bins)


def _ratio(
    a: Float64[np.ndarray, " feature"], n: Int[np.ndarray, " feature"]
) -> Float64[np.ndarray, " feature"]:
    return np.divide(a, n, out=np.full(len(a), np.nan), where=n > 0)
