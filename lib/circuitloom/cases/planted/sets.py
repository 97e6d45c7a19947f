"""Sets of features that say a concept together: it is there where any of them fires above its threshold."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST_FIRING = 8
"""Thresholds that a feature exceeds on more than so many times as many tokens as have the concept are not tried: the F1
would be below 2 / (1 + 8)."""


@dataclass(frozen=True)
class FeatureSet:
    """Some of the features that were to choose from, in the order in which they were taken."""

    columns: tuple[int, ...]
    thresholds: tuple[float, ...]
    """A feature says the concept where it is above."""
    f1_choosing: float
    f1: float
    """On the tokens that nothing was chosen on; NaN where none of them has the concept and no feature says so."""


def grow_set(
    values: Float[Tensor, "token feature"],
    positive: Bool[Tensor, " token"],
    choosing: Bool[Tensor, " token"],
    most: int,
) -> FeatureSet:
    """Up to `most` features for a concept, taken one after the other, each with the threshold that helps most.

    Features and thresholds are chosen on the tokens of `choosing`; it ends where no other feature raises the F1 there.
    Only positive values say anything.
    """
    chosen_from, truth = values[choosing], positive[choosing]
    total = int(truth.sum())
    ordered = [_descending(column, total) for column in chosen_from.unbind(1)]
    covered = torch.zeros_like(truth)
    columns: list[int] = []
    thresholds: list[float] = []
    best = 0.0
    while len(columns) < most and total:
        steps = [_best_cut(*each, truth, covered, total) for each in ordered]
        column = max(range(len(steps)), key=lambda number: steps[number][0])
        f1, threshold = steps[column]
        if f1 <= best:
            break
        best = f1
        columns.append(column)
        thresholds.append(threshold)
        covered |= chosen_from[:, column] > threshold
    said = torch.zeros_like(positive)
    for column, threshold in zip(columns, thresholds, strict=True):
        said |= values[:, column] > threshold
    return FeatureSet(tuple(columns), tuple(thresholds), best, _f1(said[~choosing], positive[~choosing]))


def _descending(column: Float[Tensor, " token"], positives: int) -> tuple[Tensor, Tensor]:
    """The largest positive values of a feature, one more than tokens: the last of them is only a threshold."""
    token = (column > 0).nonzero()[:, 0]
    value, place = column[token].sort(descending=True, stable=True)
    kept = MOST_FIRING * positives
    # behind all that fire stands 0; no token goes with it
    value = torch.cat([value, value.new_zeros(1)])[: kept + 1]
    return value, token[place][:kept]


def _best_cut(
    value: Float[Tensor, " rank_plus_1"],
    token: Int[Tensor, " rank"],
    truth: Bool[Tensor, " token"],
    covered: Bool[Tensor, " token"],
    total: int,
) -> tuple[float, float]:
    """The largest F1 that tokens above a threshold make with those that are covered, and that threshold."""
    new = ~covered[token]
    hits = int((truth & covered).sum()) + (new & truth[token]).cumsum(0)
    fires = int(covered.sum()) + new.cumsum(0)
    f1 = 2 * hits / (fires + total)
    # a threshold parts values that differ
    f1 = f1.where(value[:-1] > value[1:], 0.0)
    if not len(f1):
        return 0.0, 0.0
    place = int(f1.argmax())
    below = float(value[place + 1])
    # halfway, so that other tokens fall on either side alike; 0 where all that fires counts
    return float(f1[place]), (float(value[place]) + below) / 2 if below else 0.0


def _f1(said: Bool[Tensor, " token"], truth: Bool[Tensor, " token"]) -> float:
    total = int(said.sum()) + int(truth.sum())
    return 2 * int((said & truth).sum()) / total if total else float("nan")
