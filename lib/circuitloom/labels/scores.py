"""Scores of labels: how well a prediction, per token, tells where a feature fires.

Every score is a smooth function of sums over documents, such as F1 = 2 hits / (predicted + fires). `core.intervals`
has its interval, for which the tokens of a document need not be independent.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from ..core.intervals import half_interval


@dataclass(frozen=True)
class LabelScore:
    """A score and its 95 % interval. None or NaN, which a table writes as null: not measured, 0 / 0, or an interval of
    fewer than two documents."""

    value: float | None
    low: float | None
    high: float | None

    def columns(self, name: str) -> dict[str, float | None]:
        """Returns the columns of the table `label` of the score `name`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


UNKNOWN_SCORE = LabelScore(float("nan"), float("nan"), float("nan"))


def interval(value: float, influence: Float[np.ndarray, " document"]) -> LabelScore:
    """Returns a score with its interval, within 0 and 1, from the influence of each document on it."""
    n = int(np.count_nonzero(~np.isnan(influence)))
    if np.isnan(value) or n < 2:
        return LabelScore(value, float("nan"), float("nan"))
    half = half_interval(np.nan_to_num(influence), n)
    return LabelScore(value, max(0.0, value - half), min(1.0, value + half))


def f1(
    hits: Float[np.ndarray, " document"],
    predicted: Float[np.ndarray, " document"],
    fires: Float[np.ndarray, " document"],
) -> LabelScore:
    """Returns F1, given the number of tokens of each document where the feature fires as predicted, where it is
    predicted to fire, and where it fires."""
    part, whole = 2 * hits, predicted + fires
    total = float(whole.sum())
    if not total:
        return UNKNOWN_SCORE
    value = float(part.sum()) / total
    return interval(value, np.where(whole > 0, (part - value * whole) / total, np.nan))


def balanced_accuracy(
    hits: Float[np.ndarray, " document"],
    fires: Float[np.ndarray, " document"],
    false: Float[np.ndarray, " document"],
    negatives: Float[np.ndarray, " document"],
) -> LabelScore:
    """Returns the mean of recall and of the share of negatives that are not predicted.

    `false` is the number of predicted negatives per document. Negatives are tokens without the feature.
    """
    n_fires, n_negatives = float(fires.sum()), float(negatives.sum())
    if not n_fires or not n_negatives:
        return UNKNOWN_SCORE
    recall, wrong = float(hits.sum()) / n_fires, float(false.sum()) / n_negatives
    influence = ((hits - recall * fires) / n_fires - (false - wrong * negatives) / n_negatives) / 2
    return interval((recall + 1 - wrong) / 2, np.where(fires + negatives > 0, influence, np.nan))


@dataclass(frozen=True)
class Truth:
    """Where a feature fires on the scoring documents, and which other tokens are compared."""

    fires: Bool[np.ndarray, " position"]
    hard: Bool[np.ndarray, " position"]
    """Tokens on which a similar feature fires and this one does not."""
    near: Bool[np.ndarray, " position"]
    """Tokens near a token on which the feature fires, in its document, on which it does not fire."""
    document: Int[np.ndarray, " position"]
    """Document of each position, from 0, in order."""

    tokens: Float[np.ndarray, " document"]
    """Number of tokens of each document."""

    @cached_property
    def _fires(self) -> Float[np.ndarray, " document"]:
        return self.per_document(np.flatnonzero(self.fires))

    def per_document(self, positions: Int[np.ndarray, " some"]) -> Float[np.ndarray, " document"]:
        """Returns the number of positions in each document."""
        return np.bincount(self.document[positions], minlength=len(self.tokens)).astype(np.float64)

    def f1(self, predicted: Int[np.ndarray, " some"]) -> dict[str, float | None]:
        """Returns precision, recall and F1 of predicted positions, as columns of the table `label`."""
        positive, hits = self._predicted(predicted)
        n_hits, n_predicted, n_fires = hits.sum(), positive.sum(), self._fires.sum()
        return {
            "precision": n_hits / n_predicted if n_predicted else float("nan"),
            "recall": n_hits / n_fires if n_fires else float("nan"),
            **(f1(hits, positive, self._fires) if n_fires else UNKNOWN_SCORE).columns("f1"),
        }

    def accuracies(self, predicted: Int[np.ndarray, " some"]) -> dict[str, float | None]:
        """Returns the balanced accuracies of predicted positions against each kind of negatives, as columns."""
        positive, hits = self._predicted(predicted)
        fires = self._fires
        columns = balanced_accuracy(hits, fires, positive - hits, self.tokens - fires).columns(
            "balanced_accuracy"
        )
        for name, negative in {"hard_accuracy": self.hard, "fuzzing": self.near}.items():
            false, others = (
                self.per_document(each) for each in (predicted[negative[predicted]], np.flatnonzero(negative))
            )
            columns |= balanced_accuracy(hits, fires, false, others).columns(name)
        return columns

    def _predicted(self, predicted: Int[np.ndarray, " some"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number of predicted positions in each document, and of those where the feature fires."""
        return self.per_document(predicted), self.per_document(predicted[self.fires[predicted]])
