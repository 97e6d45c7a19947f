"""Computes the mean, scale and variance of activations from running sums, and the distribution of their norms."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

TOP_FRACTION = 1000
"""One row in this number is among the rows of largest norm, whose share of the squared norm is reported."""
MULTIPLES = (10, 100)
"""Rows are counted whose norm exceeds these multiples of the median norm."""


@dataclass
class RowSums:
    """Running sums over the rows of several arrays, in float64."""

    total: Float[Tensor, "array d"]
    square: Float[Tensor, " array"]
    """Sum of squared row norms, per array."""
    largest: Float[Tensor, " array"]
    """Largest absolute value, per array. NaN if a value is NaN."""

    @classmethod
    def zeros(cls, arrays: int, d: int, device: torch.device | str = "cpu") -> "RowSums":
        """Returns empty sums, before any row is added."""
        total = torch.zeros(arrays, d, dtype=torch.float64, device=device)
        return cls(total, torch.zeros_like(total[:, 0]), torch.zeros_like(total[:, 0]))

    def add(self, array: int, x: Float[Tensor, "row d"]) -> None:
        """Add the rows `x` to the sums of array number `array`."""
        if not len(x):
            return
        # float32 is accurate enough within a batch, because torch sums pairwise; batches are summed in float64
        self.total[array] += x.float().sum(0)
        self.square[array] += torch.linalg.vector_norm(x, dtype=torch.float32).double().square()
        low, high = torch.aminmax(x)
        self.largest[array] = torch.maximum(self.largest[array], torch.maximum(-low, high))

    def __add__(self, other: "RowSums") -> "RowSums":
        """Returns the sums over the rows of `self` and `other` together."""
        largest = torch.maximum(self.largest, other.largest)
        return RowSums(self.total + other.total, self.square + other.square, largest)


class Moments(NamedTuple):
    """Mean, scale and variance of the rows of an array."""

    mean: Float[Tensor, " d"]
    scale: float
    """sqrt(E|x|² / d) for rows x of width d. Rows divided by the scale have the mean squared norm d."""
    variance: float
    """E|x - mean|² for rows x."""

    def to_json(self) -> dict:
        """Returns the fields as plain Python values."""
        return {"mean": self.mean.tolist(), "scale": self.scale, "variance": self.variance}

    @classmethod
    def from_json(cls, values: dict) -> "Moments":
        """Returns the moments that `to_json` converted to `values`."""
        return cls(torch.tensor(values["mean"]), values["scale"], values["variance"])


def moments(sums: RowSums, array: int, rows: int) -> Moments:
    """Returns the moments of array number `array` from the sums over `rows` rows."""
    mean, square = sums.total[array] / rows, float(sums.square[array] / rows)
    return Moments(mean.float(), (square / len(mean)) ** 0.5, square - float(mean.square().sum()))


class NormStatistics(NamedTuple):
    """Distribution of the norms of an array's rows.

    In many models a few tokens have norms hundreds of times the others' (massive activations, Sun et al. 2024). Scale,
    loss and FVU are then those of these tokens.
    """

    median: float
    largest: float
    largest_row: int
    """Index of the row with the largest norm."""
    top_share: float
    """Share of the sum of squared norms held by the 0.1 % of the rows (at least one) with the largest norms."""
    n_over: dict[int, int]
    """Maps each of `MULTIPLES` to the number of rows whose norm exceeds this multiple of the median."""

    @property
    def largest_over_median(self) -> float:
        """Largest norm divided by the median norm. Infinite if the median is 0."""
        return self.largest / self.median if self.median else float("inf")

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain Python values."""
        return self._asdict() | {"n_over": {str(multiple): n for multiple, n in self.n_over.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "NormStatistics":
        """Returns the statistics that `to_json` converted to `values`."""
        n_over = {int(multiple): n for multiple, n in values["n_over"].items()}
        return cls(values["median"], values["largest"], values["largest_row"], values["top_share"], n_over)


def norm_statistics(norms: Float[np.ndarray, " row"]) -> NormStatistics:
    """Returns the distribution of the norms of all rows, in the order of rows."""
    median, largest, count = float(np.median(norms)), int(norms.argmax()), max(1, len(norms) // TOP_FRACTION)
    top = np.partition(norms, -count)[-count:]
    total, held = (float(np.square(each, dtype=np.float64).sum()) for each in (norms, top))
    return NormStatistics(
        median,
        float(norms[largest]),
        largest,
        held / total if total else 0.0,
        {multiple: int((norms > multiple * median).sum()) for multiple in MULTIPLES},
    )
