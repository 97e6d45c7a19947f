"""Claims about measured values. A claim holds if its bootstrap interval lies on the claimed side of a bound."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

CHUNK = 2**22
"""Maximum number of resampled values in memory."""

Statistic = Callable[[Float[np.ndarray, "sample row column"]], Float[np.ndarray, " sample"]]
"""Maps each bootstrap sample to one number, or to NaN if undefined. A row is one unit, such as a prompt."""


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap over rows (Efron 1979)."""

    resamples: int
    confidence: float
    seed: int

    def interval(
        self, rows: Float[np.ndarray, "row column"], statistic: Statistic
    ) -> tuple[float | None, float | None, float | None]:
        """Returns (value, low, high). `value` is the statistic on `rows`. `low` and `high` are the ends of its
        interval.

        Returns (None, None, None) if the statistic is undefined on `rows`. Returns (value, None, None) if there is only
        one row, or if the statistic is undefined on most samples.
        """
        rows = np.asarray(rows, float)
        value = float(statistic(rows[None])[0]) if len(rows) else np.nan
        if not np.isfinite(value):
            return None, None, None
        generator = np.random.default_rng(self.seed)
        size = max(1, CHUNK // rows.size)
        parts = []
        for done in range(0, self.resamples, size):
            n = min(size, self.resamples - done)
            parts.append(statistic(rows[generator.integers(0, len(rows), (n, len(rows)))]))
        samples = np.concatenate(parts)
        defined = samples[np.isfinite(samples)]
        if len(rows) < 2 or 2 * len(defined) < len(samples):
            return value, None, None
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return value, float(low), float(high)

    def means(
        self, columns: Iterable[Sequence[float] | Float[np.ndarray, " row"]]
    ) -> Float[np.ndarray, "3 column"]:
        """Returns, for each column, the mean and the two ends of the mean's interval. Undefined values are NaN."""
        rows = [self.interval(np.asarray(column, float)[:, None], mean) for column in columns]
        return np.array(rows, float).reshape(-1, 3).T


@dataclass(frozen=True)
class Claim:
    """A claim that a measured value lies above or below a bound."""

    name: str
    statement: str
    """Noun phrase that says what is measured, such as `F1 on unseen documents`."""
    value: float | None
    """None if the statistic is undefined. In this case the claim fails."""
    low: float | None
    high: float | None
    bound: float
    n: int
    """Number of resampled rows."""
    of: str = "prompts"
    """Plural name of the rows, such as `documents`."""
    relation: Literal["above", "below"] = "above"
    published: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the whole interval lies on the claimed side of the bound. The interval may touch the bound."""
        if self.low is None or self.high is None:
            return False
        return self.low >= self.bound if self.relation == "above" else self.high <= self.bound

    def row(self, case: str) -> dict[str, Any]:
        """Returns the claim as a row of the table `claim`."""
        names = ("statement", "value", "low", "high", "relation", "bound", "holds", "n", "of", "published")
        return {"case_study": case, "claim": self.name, **{name: getattr(self, name) for name in names}}


def make_claim(
    name: str,
    statement: str,
    rows: Sequence[float] | Float[np.ndarray, "row ..."],
    bound: float,
    bootstrap: Bootstrap,
    statistic: Statistic | None = None,
    of: str = "prompts",
    relation: Literal["above", "below"] = "above",
    published: float | None = None,
) -> Claim:
    """Returns a claim about `statistic` on `rows`. The default statistic is the mean of the first column."""
    table = np.asarray(rows, float)
    table = table[:, None] if table.ndim == 1 else table
    value, low, high = bootstrap.interval(table, mean if statistic is None else statistic)
    return Claim(name, statement, value, low, high, bound, len(table), of, relation, published)


def mean(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns the mean of the first column."""
    return rows[:, :, 0].mean(1)


def ratio(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns sum(first column) / sum(second column), or NaN if the second sum is not positive."""
    return fraction_of(rows[:, :, 0].sum(1), rows[:, :, 1].sum(1))


def fraction_of(
    part: Float[np.ndarray, "sample ..."], total: Float[np.ndarray, "sample ..."]
) -> Float[np.ndarray, "sample ..."]:
    """Returns part / total, or NaN where the total is not positive."""
    return np.where(total > 0, part / np.where(total > 0, total, 1), np.nan)


def f1(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns the F1. The columns are counts of true positives, predicted positives and positives."""
    predicted, positives = rows[:, :, 1].sum(1), rows[:, :, 2].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * rows[:, :, 0].sum(1) / (predicted + positives)


def least_mean(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns the smallest column mean."""
    return rows.mean(1).min(-1)


def lead(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns the mean of the first column minus the largest mean of the other columns."""
    means = rows.mean(1)
    return means[:, 0] - means[:, 1:].max(-1)


def leading_share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns `lead` of all columns but the last, divided by the mean of the last column. Returns NaN if this mean is
    not positive."""
    return fraction_of(lead(rows[:, :, :-1]), rows[:, :, -1].mean(1))


def mean_correlation(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns the mean of the Pearson correlations of columns 0 and 1, of columns 2 and 3, and so on. The result is not
    finite if a column is constant."""
    x = rows - rows.mean(1, keepdims=True)
    product = (x[:, :, ::2] * x[:, :, 1::2]).sum(1)
    size = (x**2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (product / np.sqrt(size[:, ::2] * size[:, 1::2])).mean(-1)


def mean_ranks(values: Sequence[float]) -> Float[np.ndarray, " value"]:
    """Returns the rank of each value, ascending from 0. Equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[inverse]
