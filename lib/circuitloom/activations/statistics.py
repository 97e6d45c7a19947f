"""Mean, scale and variance of activations, summed up while they pass."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class RowSums:
    """Sums over rows, of several arrays at once, in float64; and the largest magnitude met."""

    total: Float[Tensor, "array d"]
    square: Float[Tensor, " array"]
    """Of the squared norm of each row."""
    largest: Float[Tensor, " array"]
    """NaN where a NaN was met."""

    @classmethod
    def zeros(cls, arrays: int, d: int, device: torch.device | str = "cpu") -> "RowSums":
        """Nothing summed yet."""
        total = torch.zeros(arrays, d, dtype=torch.float64, device=device)
        return cls(total, torch.zeros_like(total[:, 0]), torch.zeros_like(total[:, 0]))

    def add(self, array: int, x: Float[Tensor, "row d"]) -> None:
        """Add rows to one array's sums."""
        if not len(x):
            return
        # within a batch float32 will do: torch sums by halves; float64 is for the sum of batches
        self.total[array] += x.float().sum(0)
        self.square[array] += torch.linalg.vector_norm(x, dtype=torch.float32).double().square()
        low, high = torch.aminmax(x)
        self.largest[array] = torch.maximum(self.largest[array], torch.maximum(-low, high))

    def __add__(self, other: "RowSums") -> "RowSums":
        """Sums over the rows of both."""
        largest = torch.maximum(self.largest, other.largest)
        return RowSums(self.total + other.total, self.square + other.square, largest)


class Moments(NamedTuple):
    """What normalising an array of activations takes."""

    mean: Float[Tensor, " d"]
    scale: float
    """sqrt(E|x|² / d): x / scale has an expected squared norm of d."""
    variance: float
    """E|x - mean|²."""

    def to_json(self) -> dict:
        """As plain values, exactly."""
        return {"mean": self.mean.tolist(), "scale": self.scale, "variance": self.variance}

    @classmethod
    def from_json(cls, values: dict) -> "Moments":
        """What `to_json` made."""
        return cls(torch.tensor(values["mean"]), values["scale"], values["variance"])


def moments(sums: RowSums, array: int, rows: int) -> Moments:
    """The moments of one of the arrays that `sums` sums up, each of `rows` rows."""
    mean, square = sums.total[array] / rows, float(sums.square[array] / rows)
    return Moments(mean.float(), (square / len(mean)) ** 0.5, square - float(mean.square().sum()))
