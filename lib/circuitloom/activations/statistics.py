"""Computes the mean, scale and variance of activations from running sums."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


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
