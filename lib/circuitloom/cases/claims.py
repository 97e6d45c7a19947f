"""Claims: what is measured, its interval by bootstrap, and whether it keeps its bound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

CHUNK = 2**22
"""Numbers of resampled rows held at once."""

Statistic = Callable[[Float[np.ndarray, "sample row column"]], Float[np.ndarray, " sample"]]
"""Of rows (prompts, documents), each of some columns, to one number; for many samples at once."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentiles over samples of the rows, drawn with replacement (Efron 1979)."""

    resamples: int
    confidence: float
    seed: int

    def interval(
        self, rows: Float[np.ndarray, "row column"], statistic: Statistic
    ) -> tuple[float | None, float | None, float | None]:
        """`statistic` of the rows, and both ends of its interval; samples on which it is not defined are left out.

        None, three times, where it is not defined on the rows themselves. No ends where there is but one row, or it is
        undefined on most samples.
        """
        rows = np.asarray(rows, float)
        value = float(statistic(rows[None])[0]) if len(rows) else np.nan
        if not np.isfinite(value):
            return None, None, None
        generator = np.random.default_rng(self.seed)
        size = max(1, CHUNK // rows.size)
        found = []
        for done in range(0, self.resamples, size):
            n = min(size, self.resamples - done)
            found.append(statistic(rows[generator.integers(0, len(rows), (n, len(rows)))]))
        samples = np.concatenate(found)
        defined = samples[np.isfinite(samples)]
        if len(rows) < 2 or 2 * len(defined) < len(samples):
            return value, None, None
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return value, float(low), float(high)


def mean(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """The mean of the first column."""
    return rows[:, :, 0].mean(1)


def ratio(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """The sum of the first column over that of the second; not defined where that is not positive."""
    return share_of(rows[:, :, 0].sum(1), rows[:, :, 1].sum(1))


def share_of(
    part: Float[np.ndarray, "sample ..."], whole: Float[np.ndarray, "sample ..."]
) -> Float[np.ndarray, "sample ..."]:
    """Shares; not a number where there is no whole: of what is zero or less nothing is a share."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def f1(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """F1 of rows (hits, said, true): twice the hits over all that was said or is true."""
    said, true = rows[:, :, 1].sum(1), rows[:, :, 2].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * rows[:, :, 0].sum(1) / (said + true)


@dataclass(frozen=True)
class Claim:
    """A value, its interval, and the side of a bound on which it is claimed to lie."""

    name: str
    statement: str
    """What is measured, in words, such that `statement is 0.93` reads well."""
    value: float | None
    """None where it could not be measured: the claim then fails."""
    low: float | None
    high: float | None
    bound: float
    n: int
    of: str = "prompts"
    relation: Literal["above", "below"] = "above"
    published: float | None = None

    @property
    def holds(self) -> bool:
        """The whole interval lies on the claimed side of the bound, or on it."""
        if self.low is None or self.high is None:
            return False
        return self.low >= self.bound if self.relation == "above" else self.high <= self.bound

    def row(self, case: str) -> dict[str, Any]:
        """The row of the table."""
        names = ("statement", "value", "low", "high", "relation", "bound", "holds", "n", "of", "published")
        return {
            "case_study": case,
            "claim": self.name,
            **{name: getattr(self, name) for name in names},
        }


def measured(
    name: str,
    statement: str,
    rows: Sequence[float] | Float[np.ndarray, "row ..."],
    bound: float,
    bootstrap: Bootstrap,
    statistic: Statistic = mean,
    of: str = "prompts",
    relation: Literal["above", "below"] = "above",
    published: float | None = None,
) -> Claim:
    """A claim about `statistic` of rows, one a prompt: of one column where they are plain numbers."""
    table = np.asarray(rows, float)
    table = table[:, None] if table.ndim == 1 else table
    value, low, high = bootstrap.interval(table, statistic)
    return Claim(name, statement, value, low, high, bound, len(table), of, relation, published)
