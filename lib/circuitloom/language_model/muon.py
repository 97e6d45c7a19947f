"""The optimizer Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for many matrices at once.

The update rule is that of `torch.optim.Muon`. That optimizer orthogonalizes one matrix after the other, always in
bfloat16. Here all matrices of one shape are one batch, in any number format: processors without bfloat16
instructions emulate bfloat16, which made Muon a fifth of a step of pretraining (docs/log.md).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def orthogonalize(
    matrices: Float[Tensor, "matrix out in"], dtype: torch.dtype
) -> Float[Tensor, "matrix out in"]:
    """Returns matrices with the same singular vectors and with singular values between about 0.7 and 1.2.

    The method is Newton-Schulz iteration. The result is in `dtype`.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    # the iteration needs singular values of at most 1
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Updates matrices, each [out, in], with Nesterov momentum and decoupled weight decay.

    Products are in `dtype`. The momentum is in the format of the matrices.
    """

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float, dtype: torch.dtype) -> None:
        self._matrices = list(matrices)
        self._weight_decay = weight_decay
        self._dtype = dtype
        self._places: dict[torch.Size, list[int]] = defaultdict(list)
        for place, matrix in enumerate(self._matrices):
            self._places[matrix.shape].append(place)
        self._momenta = [
            self._matrices[places[0]].new_zeros(len(places), *shape) for shape, places in self._places.items()
        ]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Update the matrices in place. `gradients` has one gradient per matrix."""
        for ((rows, columns), places), momentum in zip(self._places.items(), self._momenta, strict=True):
            gradient = torch.stack([gradients[place] for place in places])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalize(gradient.lerp_(momentum, MOMENTUM), self._dtype)
            scaled = learning_rate * math.sqrt(max(1.0, rows / columns))
            for place, part in zip(places, update, strict=True):
                matrix = self._matrices[place]
                matrix.mul_(1 - learning_rate * self._weight_decay).add_(part, alpha=-scaled)

    def state_dict(self) -> dict[str, Any]:
        """Returns the momenta."""
        return {"momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the momenta that `state_dict` has returned."""
        for momentum, stored in zip(self._momenta, state["momenta"], strict=True):
            momentum.copy_(stored)
