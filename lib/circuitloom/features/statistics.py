"""Computes statistics and histograms of the activations of each feature."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from .external_sort import FeatureRange, SortedActivations


@dataclass(frozen=True)
class FeatureTotals:
    """Sums over the activations of each feature."""

    n: Int[np.ndarray, " feature"]
    """Number of tokens on which the feature fires."""
    total: Float64[np.ndarray, " feature"]
    square: Float64[np.ndarray, " feature"]
    largest: Float32[np.ndarray, " feature"]
    """Largest activation. 0 if the feature never fires."""

    @property
    def mean(self) -> Float64[np.ndarray, " feature"]:
        """Mean activation over the tokens on which the feature fires. NaN if the feature never fires."""
        return _ratio(self.total, self.n)

    @property
    def rms(self) -> Float64[np.ndarray, " feature"]:
        """Root mean square activation over the tokens on which the feature fires. NaN if the feature never fires."""
        return np.sqrt(_ratio(self.square, self.n))


def feature_totals(features: FeatureRange) -> FeatureTotals:
    """Returns the sums over the activations of each feature in a range."""
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
    """Returns the bin index of each entry.

    `bins` bins of equal width divide the interval from 0 to `largest[feature]`, the feature's largest activation.
    """
    # with float64, the largest activation gives exactly `bins`, and values at the edges of bins are rounded in the
    # same way on all machines
    position = activations.value.astype(np.float64) * bins
    position /= largest.astype(np.float64)[activations.feature]
    return np.minimum(position.astype(np.int64), bins - 1)


def bin_counts(
    batches: Iterable[SortedActivations], largest: Float32[np.ndarray, " feature"], bins: int
) -> Int[np.ndarray, "feature bin"]:
    """Returns counts[feature, bin], the number of activations in each bin. `bin_indices` defines the bins."""
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
