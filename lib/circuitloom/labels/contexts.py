"""Samples tokens of the scoring documents on which a label is judged: tokens with the feature, from all bands of its
activations, and tokens without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Int

from ..core.tables import read_table
from .firings import Firings, Neighbours, hard_negatives


@dataclass(frozen=True)
class FeatureActivations:
    """Tokens on which a feature fires, in text order."""

    index: Int[np.ndarray, " firing"]
    """Index of each token in the flattened token array."""
    value: Float[np.ndarray, " firing"]

    def inside(self, index: Int[np.ndarray, " position"]) -> "FeatureActivations":
        """Returns the activations at some tokens of the text, such as those of a half."""
        chosen = np.isin(self.index, index)
        return FeatureActivations(self.index[chosen], self.value[chosen])


def read_activations(file: Path, features: Sequence[int], context: int) -> dict[int, FeatureActivations]:
    """Returns the activations of some features from the table `activation`. Raises ValueError if it is damaged."""
    rows = read_table(
        file, pc.field("feature").isin(list(features)), ("feature", "sequence", "position", "activation")
    )
    feature, sequence, position, value = (rows[name].to_numpy() for name in rows.column_names)
    index = sequence.astype(np.int64) * context + position
    order = np.lexsort((index, feature))
    edges = np.searchsorted(feature[order], [(wanted, wanted + 1) for wanted in features])
    slices = (order[first:stop] for first, stop in edges.tolist())
    return {
        each: FeatureActivations(index[mine], value[mine].astype(np.float64))
        for each, mine in zip(features, slices, strict=True)
    }


@dataclass(frozen=True)
class Sample:
    """Tokens that are sampled from a stratum."""

    size: int
    """Number of tokens in the stratum."""
    position: Int[np.ndarray, " sampled"]
    """Positions in the scoring half."""


@dataclass(frozen=True)
class JudgedTokens:
    """The sampled tokens of a feature, in the strata of `model_scores.Verdicts`."""

    bands: Sequence[Sample]
    near: Sample
    hard: Sample
    others: Sample

    @property
    def strata(self) -> list[Sample]:
        """All strata: the bands, then `near`, `hard` and `others`."""
        return [*self.bands, self.near, self.hard, self.others]


def sample_tokens(
    feature: int,
    scoring: Firings,
    neighbours: Neighbours,
    activations: FeatureActivations,
    n: int,
    bands: int,
    seed: int,
) -> JudgedTokens:
    """Samples `n` scoring tokens of each sort: tokens with the feature, as evenly over `bands` bands of activation as
    possible, tokens near them, tokens of similar features, and others.

    `activations` are all activations of the feature. A larger `n` adds tokens to those of a smaller one.
    """
    half = scoring.half
    random = np.random.default_rng((seed, feature))
    position = scoring.of(feature)
    mine = activations.inside(half.index)
    assert len(mine.index) == len(position)
    groups = [position[rows] for rows in split_bands(mine.value, activations.value, bands)]
    fires = np.zeros(len(half), bool)
    fires[position] = True
    hard = hard_negatives(feature, scoring, neighbours)
    strata = (scoring.near(feature), hard, ~fires & ~hard)
    shuffled = [random.permutation(group) for group in groups]
    drawn = [random.permutation(np.flatnonzero(mask)) for mask in strata]
    shares = spread([len(group) for group in shuffled], n)
    return JudgedTokens(
        [Sample(len(group), group[:share]) for group, share in zip(shuffled, shares, strict=True)],
        *(Sample(len(group), group[:n]) for group in drawn),
    )


def split_bands(
    value: Float[np.ndarray, " firing"], all_values: Float[np.ndarray, " any"], bands: int
) -> list[Int[np.ndarray, " some"]]:
    """Returns the indices of the activations in each band. Bands are equal intervals from 0 to the largest of
    `all_values`. Empty bands are left out."""
    largest = all_values.max(initial=0)
    band = np.minimum(value / largest * bands, bands - 1).astype(int) if len(value) else np.zeros(0, int)
    groups = (np.flatnonzero(band == number) for number in range(bands))
    return [group for group in groups if len(group)]


def spread(sizes: Sequence[int], n: int) -> list[int]:
    """Returns how many of `n` tokens are taken from groups of these sizes: equal numbers, as far as a group has so
    many. If they cannot be equal, later groups get one more."""
    taken = [0] * len(sizes)
    while n > 0 and (open_ := [i for i, size in enumerate(sizes) if taken[i] < size]):
        for i in reversed(open_):
            if n > 0:
                taken[i] += 1
                n -= 1
    return taken
