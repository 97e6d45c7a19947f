"""Where the features of a layer fire, and which features are similar by the tokens they fire on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int

from ..core.tables import read_table
from .text import NEAR, Half, LabelText

NEIGHBOURS = 5
"""Number of similar features whose tokens are hard negatives."""
PROJECTED = 1024
"""Number of random directions onto which counts of more units are projected to find similar features."""


@dataclass(frozen=True)
class Firings:
    """Positions of a half on which each feature fires."""

    half: Half
    start: Int[np.ndarray, " feature_plus_1"]
    """Feature i fires at positions[start[i]:start[i + 1]]."""
    position: Int[np.ndarray, " entry"]

    def of(self, feature: int) -> Int[np.ndarray, " firing"]:
        """Returns the positions where a feature fires, in text order."""
        return self.position[self.start[feature] : self.start[feature + 1]]

    def near(self, feature: int) -> Bool[np.ndarray, " position"]:
        """Returns the positions within `NEAR` tokens of those where a feature fires, in the same document and without
        them."""
        index, document = self.half.index, self.half.document
        mine = self.of(feature)[:, None]
        found = np.zeros(len(self.half), bool)
        steps = np.arange(-NEAR, NEAR + 1)
        other = np.clip(mine + steps, 0, len(found) - 1)
        # other documents lie between tokens of one half, so positions of the text are compared
        close = (np.abs(index[other] - index[mine]) <= NEAR) & (document[other] == document[mine])
        found[other[close]] = True
        found[mine] = False
        return found


def read_firings(path: Path, width: int, context: int, text: LabelText) -> tuple[Firings, Firings]:
    """Returns where the features of a table `activation` fire on the learning and on the scoring half.

    Takes 14 bytes per activation. Raises ValueError if the table is damaged.
    """
    rows = read_table(path, columns=["feature", "sequence", "position"])
    feature, sequence, position = (
        rows.column(name).to_numpy() for name in ("feature", "sequence", "position")
    )
    index = sequence.astype(np.int64) * context + position
    found = []
    for half in (text.learning, text.scoring):
        size = int(max(index.max(initial=-1), half.index.max(initial=-1))) + 1
        number = np.full(size, -1, np.int32)
        number[half.index] = np.arange(len(half), dtype=np.int32)
        place = number[index]
        mine = place >= 0
        start = np.append(0, np.bincount(feature[mine], minlength=width).cumsum())
        found.append(Firings(half, start, place[mine]))
    return found[0], found[1]


@dataclass(frozen=True)
class Neighbours:
    """Similar features, by the cosine of the square roots of how often they fire on each unit."""

    firings: Firings
    """On the learning half."""
    units: int

    @cached_property
    def _profile(self) -> Float32[np.ndarray, "feature direction"]:
        here, start = self.firings.half.unit(0), self.firings.start
        width = len(start) - 1
        directions = None
        if self.units > 2 * PROJECTED:
            random = np.random.default_rng(0)
            directions = random.choice(np.array([-1, 1], np.float32), (self.units, PROJECTED))
        profile = np.zeros((width, self.units if directions is None else PROJECTED), np.float32)
        for feature in range(width):
            unit, n = np.unique(here[self.firings.of(feature)], return_counts=True)
            root = np.sqrt(n.astype(np.float32))
            if directions is None:
                profile[feature, unit] = root
            else:
                profile[feature] = root @ directions[unit]
        norm = np.linalg.norm(profile, axis=1, keepdims=True)
        return profile / np.where(norm > 0, norm, 1)

    @cached_property
    def similar(self) -> Int[np.ndarray, "feature neighbour"]:
        """The most similar other features of each feature, the most similar one first."""
        profile = self._profile
        width = len(profile)
        kept = min(NEIGHBOURS, width - 1)
        found = np.zeros((width, kept), np.int64)
        for low in range(0, width, 1024):
            product = profile[low : low + 1024] @ profile.T
            row = np.arange(len(product))
            product[row, row + low] = -np.inf
            found[low : low + 1024] = np.argsort(-product, 1, kind="stable")[:, :kept]
        return found


def hard_negatives(feature: int, firings: Firings, neighbours: Neighbours) -> Bool[np.ndarray, " position"]:
    """Returns the positions of a half where a similar feature fires and this one does not."""
    found = np.zeros(len(firings.half), bool)
    for other in neighbours.similar[feature].tolist():
        found[firings.of(other)] = True
    found[firings.of(feature)] = False
    return found
