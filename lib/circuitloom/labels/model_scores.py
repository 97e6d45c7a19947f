"""Scores of a label from the verdicts of a language model on a sample of tokens.

Tokens of the scoring documents are sampled in strata: tokens on which the feature fires, by band of activation, and
tokens on which it does not. A rate of all tokens is the mean of the strata's rates, weighted by their numbers of
tokens. With n tokens on which the feature fires, N on which it does not, the recall r, and the share f of the N that
the label predicts, the precision is n r / (n r + N f), and F1 is its harmonic mean with r.

Intervals are 95 % intervals of a Bayesian bootstrap over documents (Rubin 1981): every draw gives each document a
weight from an exponential distribution. Each rate gets one further verdict from Jeffreys' prior, because a sample in
which no token, or every token, is predicted says little about rare errors. For a single stratum with one token per
document, this is the interval of Jeffreys' prior for a proportion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .scores import LabelScore

DRAWS = 4000
"""Number of draws of the bootstrap."""


@dataclass(frozen=True)
class Stratum:
    """Verdicts on a sample from `size` tokens."""

    size: int
    document: Int[np.ndarray, " judged"]
    predicted: Float[np.ndarray, " judged"]
    """1 where the label predicts that the feature fires, else 0."""

    def __len__(self) -> int:
        """Returns the number of judged tokens."""
        return len(self.document)


NOT_MEASURED = LabelScore(None, None, None)
Rates = Float[np.ndarray, " draw"]


class DocumentBootstrap:
    """Draws of rates of strata, with the same weights of documents for all strata."""

    def __init__(self, strata: Sequence[Stratum], draws: int = DRAWS, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        documents = np.concatenate([stratum.document for stratum in strata]) if strata else np.zeros(0, int)
        self._documents = np.unique(documents)
        # the first draw is the estimate itself
        weights = self._random.standard_exponential((draws, len(self._documents)))
        self._weights = np.concatenate([np.ones((1, len(self._documents))), weights])

    def rate(self, strata: Sequence[Stratum]) -> Rates:
        """Returns the share of predicted tokens, first the estimate and then the draws. NaN if no token was judged.

        Strata without a judged token are left out.
        """
        judged = [stratum for stratum in strata if len(stratum)]
        total = sum(stratum.size for stratum in judged)
        result = np.zeros(len(self._weights)) if judged else np.full(len(self._weights), np.nan)
        for stratum in judged:
            share = stratum.size / total
            weights = self._weights[:, np.searchsorted(self._documents, stratum.document)]
            prior = self._random.standard_gamma(0.5 * share, (2, len(weights)))
            prior[:, 0] = 0
            yes, no = (
                weights @ each + prior[i] for i, each in enumerate((stratum.predicted, 1 - stratum.predicted))
            )
            result += stratum.size * yes / (yes + no)
        return result / max(total, 1)


def score(rates: Rates) -> LabelScore:
    """Returns the score whose estimate and draws are `rates`."""
    if not np.isfinite(rates[0]):
        return NOT_MEASURED
    draws = rates[1:][np.isfinite(rates[1:])]
    low, high = np.quantile(draws, (0.025, 0.975)) if len(draws) else (rates[0], rates[0])
    # a short interval around a value at the end of the scale may leave the value out
    return LabelScore(float(rates[0]), float(min(low, rates[0])), float(max(high, rates[0])))


def share_score(document: Int[np.ndarray, " judged"], yes: Float[np.ndarray, " judged"]) -> LabelScore:
    """Returns the score of a plain share, the mean of `yes` over tokens. Each is between 0 and 1."""
    stratum = Stratum(1, document, yes)
    return score(DocumentBootstrap([stratum]).rate([stratum]))


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on a label, in strata of tokens of the scoring documents."""

    bands: Sequence[Stratum]
    """Tokens on which the feature fires, by band of activation."""
    near: Stratum
    """Tokens without the feature near those with it. They are counted in `hard` or `others`, too."""
    hard: Stratum
    """Tokens without the feature on which a similar feature fires."""
    others: Stratum
    """The remaining tokens without the feature."""

    def columns(self) -> dict[str, float | int | None]:
        """Returns the columns of the table `label` with the scores of the label's predictions."""
        n = sum(stratum.size for stratum in self.bands)
        without = self.hard.size + self.others.size
        bootstrap = DocumentBootstrap([*self.bands, self.near, self.hard, self.others])
        recall = bootstrap.rate(self.bands)
        false = bootstrap.rate([self.hard, self.others])
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = n * recall / (n * recall + without * false)
            # without a predicted token the precision is 0 / 0, and F1 is 0
            f1 = 2 * n * recall / (n * recall + without * false + n)
        found: dict[str, float | int | None] = {
            "precision": _number(precision[0]),
            "recall": _number(recall[0]),
            **score(f1).columns("f1"),
            **score((recall + 1 - false) / 2).columns("balanced_accuracy"),
            **score((recall + 1 - bootstrap.rate([self.hard])) / 2).columns("hard_accuracy"),
            **score((recall + 1 - bootstrap.rate([self.near])) / 2).columns("fuzzing"),
        }
        return {**found, "n_tokens": n}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
