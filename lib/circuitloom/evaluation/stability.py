"""Stability of features between seeds: how similar the features of two dictionaries are that differ only in the seed.

Paulo and Belrose (2025) match the features of two SAEs one to one with the Hungarian algorithm, which needs the cosines
of all pairs in memory and cubic time. Here features are matched if each is the other's nearest neighbour, which needs
neither. Such pairs are disjoint too, and a pair of cosine 0.7 or more that only the Hungarian algorithm finds has a
member with a still nearer neighbour.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionaries.cross_layer import CrossLayerDictionary, LayerDictionary

CHUNK = 2048
"""Number of features whose cosines with all others are computed at once."""
MATCHED = (0.7, 0.9)
"""Cosines from which features count as matched."""


@dataclass(frozen=True)
class Stability:
    """Similarity of two dictionaries. Cosines are of decoder rows, unless said otherwise."""

    decoder: float
    """Mean over the features of both of the largest cosine with a feature of the other."""
    encoder: float
    """The same for encoder rows."""
    matched: dict[float, float]
    """Share of features with a mutual nearest neighbour of at least this cosine."""
    shared: float
    """Share of features whose mutual nearest neighbour is the same by decoder and encoder, and whose mean cosine is at
    least 0.7."""
    n_features: int
    """Number of compared features, of both together."""


def seed_pairs(configs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns the pairs of runs whose configs differ in the seed and in nothing else but the name.

    `configs` maps runs to their configs. Imported runs, whose seed is unknown, are in no pair.
    """
    groups: dict[str, list[str]] = {}
    for run, config in configs.items():
        if config.get("seed") is not None and not config.get("files"):
            rest = {key: value for key, value in config.items() if key not in ("seed", "name")}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    return [
        (runs[i], other)
        for runs in groups.values()
        for i in range(len(runs))
        for other in runs[i + 1 :]
        if configs[runs[i]]["seed"] != configs[other]["seed"]
    ]


def compare_features(
    first: LayerDictionary,
    second: LayerDictionary,
    alive: tuple[Bool[Tensor, " feature"], Bool[Tensor, " feature"]],
) -> Stability | None:
    """Returns the similarity of the features that are alive, or None if a dictionary has none."""
    if not all(bool(own.any()) for own in alive):
        return None
    decoders = [
        _decoder(each)[own.to(each.W_enc.device)] for each, own in zip((first, second), alive, strict=True)
    ]
    encoders = [
        each.W_enc[own.to(each.W_enc.device)] for each, own in zip((first, second), alive, strict=True)
    ]
    by_decoder, by_encoder = NearestNeighbours.of(*decoders), NearestNeighbours.of(*encoders)
    n = len(decoders[0]) + len(decoders[1])
    partner, cosine = by_decoder.mutual()
    other, other_cosine = by_encoder.mutual()
    shared = (partner >= 0) & (partner == other) & ((cosine + other_cosine) / 2 >= MATCHED[0])
    return Stability(
        decoder=by_decoder.mean_cosine(),
        encoder=by_encoder.mean_cosine(),
        # a pair has two features
        matched={least: 2 * int(((partner >= 0) & (cosine >= least)).sum()) / n for least in MATCHED},
        shared=2 * int(shared.sum()) / n,
        n_features=n,
    )


def _decoder(dictionary: LayerDictionary) -> Float[Tensor, "feature d"]:
    """Returns the decoder rows, those of all outputs of a cross-layer transcoder in units of their outputs' scales."""
    if not isinstance(dictionary, CrossLayerDictionary):
        return dictionary.W_dec
    scales = torch.tensor(dictionary.scales).to(dictionary.W_dec)
    return (dictionary.W_dec / scales[:, None]).flatten(1)


@dataclass(frozen=True)
class NearestNeighbours:
    """The nearest row of the other matrix, for each row of two matrices, by cosine."""

    forth: Int[Tensor, " first"]
    forth_cosine: Float[Tensor, " first"]
    back: Int[Tensor, " second"]
    back_cosine: Float[Tensor, " second"]

    @staticmethod
    def of(first: Float[Tensor, "first d"], second: Float[Tensor, "second d"]) -> "NearestNeighbours":
        """Returns the neighbours of the rows of both matrices."""
        a, b = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
        back = torch.zeros(len(b), dtype=torch.int64, device=b.device)
        back_cosine = torch.full((len(b),), -torch.inf, device=b.device)
        forth = []
        for start in range(0, len(a), CHUNK):
            cosines = a[start : start + CHUNK] @ b.T
            forth.append(cosines.max(1))
            nearest = cosines.max(0)
            better = nearest.values > back_cosine
            back = torch.where(better, nearest.indices + start, back)
            back_cosine = torch.where(better, nearest.values, back_cosine)
        return NearestNeighbours(
            torch.cat([each.indices for each in forth]),
            torch.cat([each.values for each in forth]),
            back,
            back_cosine,
        )

    def mean_cosine(self) -> float:
        """Returns the mean over the rows of both matrices of the cosine with the nearest row of the other."""
        return float(torch.cat([self.forth_cosine, self.back_cosine]).double().mean())

    def mutual(self) -> tuple[Int[Tensor, " first"], Float[Tensor, " first"]]:
        """Returns the partner of each row of the first matrix, or -1 without one, and the cosine with it."""
        mutual = self.back[self.forth] == torch.arange(len(self.forth), device=self.back.device)
        return torch.where(mutual, self.forth, -1), self.forth_cosine


def mean_largest_cosine(rows: Float[Tensor, "feature d"]) -> float:
    """Returns the mean over rows of the largest cosine with another row. NaN for a single row."""
    if len(rows) < 2:
        return float("nan")
    unit = F.normalize(rows.float(), dim=1)
    largest = []
    for start in range(0, len(unit), CHUNK):
        cosines = unit[start : start + CHUNK] @ unit.T
        # a row's cosine with itself
        cosines.diagonal(start).fill_(-torch.inf)
        largest.append(cosines.amax(1))
    return float(torch.cat(largest).double().mean())
