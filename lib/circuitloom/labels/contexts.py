"""Samples tokens of the scoring documents on which a label is judged: tokens with the feature, from all bands of its
activations, and tokens without it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from ..core.errors import first_line
from ..core.progress import progress
from ..core.tables import read_table
from ..corpus.token_arrays import TokenArrays, scored_positions

NEAR = 8
"""Tokens at most this far from a token on which a feature fires are near it."""
NEIGHBOURS = 5
"""Number of similar features on whose tokens a label is judged."""
_ROWS = 2**20
"""Number of activations that are read at once."""


@dataclass(frozen=True)
class HeldOutText:
    """Tokens of the held-out text as flat arrays. Labels are learned on documents with even numbers, and scored on
    those with odd numbers."""

    context: int
    """Number of tokens per sequence."""
    document: Int[np.ndarray, " token"]
    scored: Bool[np.ndarray, " token"]
    """Whether the tables of features have the token. Separators and the first token of a sequence are left out."""

    @cached_property
    def scoring(self) -> Bool[np.ndarray, " token"]:
        """Whether labels are scored on the token."""
        return self.scored & (self.document % 2 == 1)

    @cached_property
    def learning(self) -> Bool[np.ndarray, " token"]:
        """Whether labels are learned from the token."""
        return self.scored & (self.document % 2 == 0)

    def near(self, index: Int[np.ndarray, " firing"]) -> Int[np.ndarray, " some"]:
        """Returns the scored tokens at most `NEAR` tokens from those at `index`, in their document and sequence."""
        around = index[:, None] + np.arange(-NEAR, NEAR + 1)
        position = index[:, None] % self.context + np.arange(-NEAR, NEAR + 1)
        inside = (position >= 0) & (position < self.context)
        around = np.where(inside, around, index[:, None])
        inside &= (self.document[around] == self.document[index][:, None]) & self.scored[around]
        return np.unique(around[inside])


def read_held_out(tokens: TokenArrays, sequences: int) -> HeldOutText:
    """Returns the first `sequences` sequences. Raises ValueError if the stored tokens are damaged."""
    rows = slice(sequences)
    token, document = tokens.read(tokens.token, rows), tokens.read(tokens.document, rows)
    return HeldOutText(tokens.context, document.ravel(), scored_positions(token, tokens.separator_id).ravel())


@dataclass(frozen=True)
class FeatureFirings:
    """Tokens on which a feature fires, in text order."""

    index: Int[np.ndarray, " firing"]
    """Index of each token in the flattened token array."""
    value: Float[np.ndarray, " firing"]

    def take(self, chosen: np.ndarray) -> "FeatureFirings":
        """Returns the firings at `chosen`, indices or a mask."""
        return FeatureFirings(self.index[chosen], self.value[chosen])


def read_firings(file: Path, features: Sequence[int], context: int) -> dict[int, FeatureFirings]:
    """Returns the activations of some features from the table `activation`. Raises ValueError if it is damaged."""
    rows = read_table(
        file, pc.field("feature").isin(list(features)), ("feature", "sequence", "position", "activation")
    )
    feature, index = rows["feature"].to_numpy(), _flat_index(rows, context)
    value = rows["activation"].to_numpy().astype(np.float64)
    order = np.lexsort((index, feature))
    edges = np.searchsorted(feature[order], [(wanted, wanted + 1) for wanted in features])
    slices = (order[first:stop] for first, stop in edges.tolist())
    return {
        each: FeatureFirings(index[rows], value[rows]) for each, rows in zip(features, slices, strict=True)
    }


def find_neighbours(
    file: Path, firings: Mapping[int, FeatureFirings], text: HeldOutText, width: int, description: str
) -> dict[int, list[int]]:
    """Returns the `NEIGHBOURS` features that are most similar to each feature of `firings`, best first.

    The similarity is the cosine between the sets of tokens of the learning documents on which two features fire: the
    number of common tokens over the geometric mean of their numbers. Features without a common token are left out.
    `file` is the table `activation`. Raises ValueError if it is damaged.
    """
    features = list(firings)
    member = np.zeros((len(features), len(text.document)), bool)
    for row, each in zip(member, firings.values(), strict=True):
        row[each.index] = True
    member &= text.learning
    common, n = np.zeros((len(features), width)), np.zeros(width)
    with progress(description, pq.read_metadata(file).num_rows, "activations") as bar:
        for fired, where in _activations(file, text.context):
            learning = text.learning[where]
            feature, index = fired[learning], where[learning]
            n += np.bincount(feature, minlength=width)
            for i, row in enumerate(member):
                common[i] += np.bincount(feature[row[index]], minlength=width)
            bar.update(len(fired))
    cosine = common / np.sqrt(np.maximum(n * n[features][:, None], 1))
    cosine[np.arange(len(features)), features] = 0
    best = np.argsort(-cosine, axis=1, kind="stable")[:, :NEIGHBOURS]
    return {
        each: [int(other) for other in order if row[other] > 0]
        for each, order, row in zip(features, best, cosine, strict=True)
    }


def _activations(file: Path, context: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            for batch in table.iter_batches(_ROWS, columns=["feature", "sequence", "position"]):
                yield batch["feature"].to_numpy(), _flat_index(batch, context)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file}: damaged ({first_line(error)}); delete it and run again") from error


def _flat_index(rows: pa.Table | pa.RecordBatch, context: int) -> Int[np.ndarray, " row"]:
    return rows["sequence"].to_numpy().astype(np.int64) * context + rows["position"].to_numpy()


@dataclass(frozen=True)
class Sample:
    """Tokens that are sampled from a stratum."""

    size: int
    """Number of tokens in the stratum."""
    index: Int[np.ndarray, " sampled"]


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
    text: HeldOutText,
    firings: FeatureFirings,
    neighbours: Sequence[FeatureFirings],
    n: int,
    bands: int,
    seed: Sequence[int],
) -> JudgedTokens:
    """Samples `n` scoring tokens of each sort: tokens with the feature, as evenly over `bands` bands of activation as
    possible, tokens near them, tokens of the neighbours, and others.

    A larger `n` adds tokens to those of a smaller one. `seed` belongs to the feature.
    """
    random = np.random.default_rng(list(seed))
    fires = np.zeros(len(text.document), bool)
    fires[firings.index] = True
    hard = np.zeros_like(fires)
    for each in neighbours:
        hard[each.index] = True
    without = text.scoring & ~fires
    mine = firings.take(text.scoring[firings.index])
    members = [
        mine.index[rows] for rows in split_bands(mine.value, float(firings.value.max(initial=0)), bands)
    ]
    shuffled = [random.permutation(group) for group in members]
    near = text.near(mine.index)
    drawn = [random.permutation(group) for group in (
        near[without[near]], np.flatnonzero(without & hard), np.flatnonzero(without & ~hard)
    )]  # fmt: skip
    shares = spread([len(group) for group in shuffled], n)
    return JudgedTokens(
        [Sample(len(group), group[:share]) for group, share in zip(shuffled, shares, strict=True)],
        *(Sample(len(group), group[:n]) for group in drawn),
    )


def split_bands(
    value: Float[np.ndarray, " firing"], largest: float, bands: int
) -> list[Int[np.ndarray, " some"]]:
    """Returns the indices of the activations in each band. Bands are equal intervals from 0 to `largest`. Empty bands
    are left out."""
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
