"""Absorption (Chanin et al. 2024) on nested planted concepts: the feature of a parent concept is silent on tokens of a
child concept, and a feature of the child writes the parent's direction instead.

Chanin et al. know the parent (a first letter) only through a probe, and find the children (words) by looking. Here both
are planted, so every child is known. docs/dictionary_benchmark.md compares the definitions.

1. `nested_pairs` finds the concepts that contain others.
2. The main feature of a pair is the one that best predicts the parent outside the child.
3. The parent's direction at the output is the difference of mean outputs, also outside the child.
4. A token of the child is absorbed if the main feature is silent, and the feature that writes most along the direction
   fires mostly on the child and writes enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .concepts import SparseActivations
from .probing import ProbeTasks, Score, ratio_score

MAIN_F1 = 0.5
"""Least F1 of the main feature on the training half. Without such a feature, nothing can be absorbed."""
CHILD_PRECISION = 0.5
"""Least share of an absorbing feature's tokens that have the child concept."""
LEAST_COSINE = 0.025
"""Least cosine of an absorbing feature's decoder row and the direction (Chanin et al.)."""
LEAST_SHARE = 0.4
"""Least share of the token's projection on the direction that an absorbing feature writes (SAEBench)."""


class NestedPair(NamedTuple):
    """Two concepts: every token of the child has the parent too."""

    parent: int
    child: int


@dataclass(frozen=True)
class Absorption:
    """Scores of a pair on the testing half. Tokens of the child, unless said otherwise."""

    main_feature: int
    absorbed: Score
    """Share of tokens on which the main feature is silent and a feature of the child stands in for it."""
    silent: Score
    """Share of tokens on which the main feature is silent."""
    silent_outside: Score
    """The same share of the parent's tokens outside the child."""


def nested_pairs(tasks: ProbeTasks, least: int) -> list[NestedPair]:
    """Returns the pairs of concepts of which one contains the other, by the labels of all tokens.

    In each half of the documents, at least `least` tokens of the parent lie outside the child.
    """
    label = tasks.label.float()
    both, count = label.T @ label, label.sum(0)
    inside = (both == count[:, None]) & (count[:, None] < count)
    halves = [tasks.label[half].sum(0) for half in (tasks.training, ~tasks.training)]
    pairs = []
    for child, parent in inside.nonzero().tolist():
        if min(int(half[parent] - half[child]) for half in halves) >= least:
            pairs.append(NestedPair(parent, child))
    return sorted(pairs)


def measure_absorption(
    z: SparseActivations,
    W_dec: Float[Tensor, "feature d_out"],
    y: Float[Tensor, "token d_out"],
    tasks: ProbeTasks,
    pairs: Sequence[NestedPair],
) -> dict[NestedPair, Absorption | None]:
    """Returns the scores of each pair, or None if no feature stands for the parent.

    `y` is the output of which the features' decoder rows are parts.
    """
    counts = _FiringCounts.of(z, tasks)
    return {pair: _measure(pair, z, W_dec, y, tasks, counts) for pair in pairs}


@dataclass(frozen=True)
class _FiringCounts:
    """Numbers of tokens of the training half on which features fire."""

    fires: Float[Tensor, " feature"]
    hits: Float[Tensor, "feature task"]
    """Tokens with the label."""
    positives: Float[Tensor, " task"]
    """Tokens with the label, whether the feature fires or not."""

    @staticmethod
    def of(z: SparseActivations, tasks: ProbeTasks) -> "_FiringCounts":
        # the last column is for all tokens of the half
        label = F.pad(tasks.label, (0, 1), value=True) & tasks.training[:, None]
        order = z.feature.argsort(stable=True)
        counts = torch.bincount(z.feature, minlength=z.width)
        hits = F.embedding_bag(z.token[order].long(), label.float(), counts.cumsum(0) - counts, mode="sum")
        return _FiringCounts(hits[:, -1], hits[:, :-1], label[:, :-1].sum(0).float())

    def main_feature(self, pair: NestedPair) -> tuple[int, float]:
        """Returns the feature with the best F1 for the parent on tokens without the child, and this F1."""
        hits = self.hits[:, pair.parent] - self.hits[:, pair.child]
        fires = self.fires - self.hits[:, pair.child]
        f1 = 2 * hits / (fires + self.positives[pair.parent] - self.positives[pair.child])
        best = int(f1.argmax())
        return best, float(f1[best])


def _measure(
    pair: NestedPair, z: SparseActivations, W_dec: Tensor, y: Tensor, tasks: ProbeTasks, counts: _FiringCounts
) -> Absorption | None:
    main, f1 = counts.main_feature(pair)
    if f1 < MAIN_F1:
        return None
    parent, child = tasks.label[:, pair.parent], tasks.label[:, pair.child]
    without = y[tasks.training & ~parent].mean(0)
    direction = y[tasks.training & parent & ~child].mean(0) - without
    direction = direction / torch.linalg.vector_norm(direction)
    written = W_dec @ direction
    norm = torch.linalg.vector_norm(W_dec, dim=1).clamp_min(torch.finfo(W_dec.dtype).tiny)
    of_child = counts.hits[:, pair.child] >= CHILD_PRECISION * counts.fires.clamp_min(1)
    can_absorb = of_child & (written / norm >= LEAST_COSINE)
    token, feature = z.token.long(), z.feature.long()
    silent = torch.ones_like(parent)
    silent[token[feature == main]] = False
    tested = child & ~tasks.training
    mine = (tested & silent)[token]
    projection = (y - without) @ direction
    absorbed = _absorbed(token[mine], feature[mine], z.value[mine], written, can_absorb, projection)
    outside = parent & ~child & ~tasks.training
    return Absorption(
        main, _share(absorbed, tested, tasks), _share(silent, tested, tasks), _share(silent, outside, tasks)
    )


def _absorbed(
    token: Int[Tensor, " entry"],
    feature: Int[Tensor, " entry"],
    value: Float[Tensor, " entry"],
    written: Float[Tensor, " feature"],
    can_absorb: Bool[Tensor, " feature"],
    projection: Float[Tensor, " token"],
) -> Bool[Tensor, " token"]:
    """Returns whether the feature that writes most along the direction can absorb and writes enough."""
    part = value * written[feature]
    most = torch.full_like(projection, -torch.inf).scatter_reduce(0, token, part, "amax")
    enough = (part == most[token]) & (part >= LEAST_SHARE * projection[token]) & (projection[token] > 0)
    absorbed = torch.zeros_like(projection, dtype=torch.bool)
    absorbed[token[enough & can_absorb[feature]]] = True
    return absorbed


def _share(having: Bool[Tensor, " token"], among: Bool[Tensor, " token"], tasks: ProbeTasks) -> Score:
    """Returns the share of the tokens `among` that have `having`. `among` are of the testing half."""
    document, n = tasks.testing_documents
    testing = ~tasks.training
    counts = [
        torch.bincount(document[tokens[testing]], minlength=n).double() for tokens in (having & among, among)
    ]
    return ratio_score(*counts)
