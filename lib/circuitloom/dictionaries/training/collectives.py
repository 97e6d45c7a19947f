"""Collective operations of the processes that train one dictionary together.

`Collectives` is for a single process. With `DataParallel`, each process has all features and a part of the batch. With
`TensorParallel`, each process has the complete batch and a part of the features.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from typing_extensions import override

from .parameters import PER_FEATURE, Parameters

T = TypeVar("T")


class Collectives:
    """The operations for a single process. Subclasses are for several processes.

    All processes must call the same methods in the same order.
    """

    rank = 0
    world_size = 1
    is_tensor_parallel = False
    """Whether each process holds a different part of the features."""

    def batch_slice(self, batch: int) -> slice:
        """Returns the rows that this process reads of a batch of `batch` rows."""
        return slice(0, batch)

    def gather_batch(self, batch_by_site: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the rows on which this process trains. With tensor parallelism, these are the rows of all processes.

        `batch_by_site` contains the rows that this process has read.
        """
        return batch_by_site

    def feature_slice(self, width: int) -> slice:
        """Returns the slice of the `width` features that this process has."""
        return slice(0, width)

    def global_tokens(self, local: int) -> int:
        """Returns the number of tokens in the global batch. `local` is the number of tokens in this process."""
        return local

    def sum_feature_counts(self, local: int) -> int:
        """Returns a number of features, summed over all processes. `local` is the number in this process."""
        return local

    def sum_over_tokens(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Returns the sum over the global batch, without gradient. `partial` is the sum over this process's tokens."""
        return partial

    def sum_over_features(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Returns the sum over all features. `partial` is the sum over this process's features.

        In every process, `partial` gets the gradient of the result.
        """
        return partial

    def grad_on_first_rank(self, parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Returns `parameter`. With tensor parallelism, ranks other than 0 get a detached `parameter`.

        Gradients are summed over ranks later. The gradient of `parameter` must be counted only once.
        """
        return parameter

    def all_gather(self, values: Tensor) -> Tensor:
        """Returns `values` of all processes, stacked as [process, ...]. The shape must be equal in all processes."""
        return values[None]

    def any(self, value: Tensor) -> bool:
        """Whether `value` is true in any process."""
        return bool(self.all_gather(value.int()).any())

    def kth_largest_per_token(self, scores: Float[Tensor, "token some"], k: int) -> Float[Tensor, " token"]:
        """Returns the k-th largest score of each token over the features of all processes.

        `scores` contains only this process's features. The result is -inf if a token has fewer than k scores in total.
        """
        lacking = max(0, k - scores.shape[1])
        best = torch.nn.functional.pad(scores, (0, lacking), value=-torch.inf).topk(k, dim=1).values
        return self.all_gather(best).movedim(0, 1).flatten(1).topk(k, dim=1).values[:, -1]

    def replicated_parameters(self, p: Parameters) -> list[Tensor]:
        """Returns the parameters that every process has a copy of."""
        return []

    def broadcast_parameters(self, p: Parameters) -> None:
        """Copy rank 0's replicated parameters to all processes."""

    def all_reduce_gradients(self, p: Parameters) -> None:
        """Sum the gradient of each replicated parameter over all processes."""

    def replicas_are_equal(self, p: Parameters) -> bool:
        """Whether replicated parameters are bit-identical in all processes."""
        return True

    def broadcast(self, value: T) -> T:
        """Returns the `value` of rank 0."""
        return value

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""

    def gather_features(self, local: Tensor) -> Tensor:
        """On rank 0, returns the rows of all features on the CPU. Other ranks get `local` back.

        `local` contains the rows of this process's features.
        """
        return local


SINGLE_PROCESS = Collectives()


class _ProcessGroup(Collectives):
    """Common methods of `DataParallel` and `TensorParallel`. They use torch.distributed's default process group."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    @override
    def batch_slice(self, batch: int) -> slice:
        return self._equal_part(batch)

    @override
    def all_gather(self, values: Tensor) -> Tensor:
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values.contiguous())
        return torch.stack(gathered)

    @override
    @torch.no_grad()
    def broadcast_parameters(self, p: Parameters) -> None:
        for tensor in self.replicated_parameters(p):
            dist.broadcast(tensor, 0)

    @override
    @torch.no_grad()
    def all_reduce_gradients(self, p: Parameters) -> None:
        for tensor in self.replicated_parameters(p):
            # the gradient is None if this process's loss does not depend on the parameter
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            dist.all_reduce(tensor.grad)

    @override
    @torch.no_grad()
    def replicas_are_equal(self, p: Parameters) -> bool:
        bits = [tensor.view(torch.int32).sum(dtype=torch.int64) for tensor in self.replicated_parameters(p)]
        sums = self.all_gather(torch.stack(bits))
        return bool((sums == sums[0]).all())

    @override
    def broadcast(self, value: T) -> T:
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    @override
    def barrier(self) -> None:
        dist.barrier()

    def _equal_part(self, total: int) -> slice:
        size = total // self.world_size
        assert size * self.world_size == total
        return slice(self.rank * size, (self.rank + 1) * size)


class DataParallel(_ProcessGroup):
    """Each process has all features and an equal part of the batch's tokens."""

    @override
    def global_tokens(self, local: int) -> int:
        return local * self.world_size

    @override
    def sum_over_tokens(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        return _all_reduce(partial)

    @override
    def replicated_parameters(self, p: Parameters) -> list[Tensor]:
        return p.tensors()


class TensorParallel(_ProcessGroup):
    """Each process has the complete batch and an equal, contiguous part of the features."""

    is_tensor_parallel = True

    @override
    def gather_batch(self, batch_by_site: dict[str, Tensor]) -> dict[str, Tensor]:
        return {site: self.all_gather(rows).flatten(0, 1) for site, rows in batch_by_site.items()}

    @override
    def feature_slice(self, width: int) -> slice:
        return self._equal_part(width)

    @override
    def sum_feature_counts(self, local: int) -> int:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return int(_all_reduce(torch.tensor(local, device=device)))

    @override
    def sum_over_features(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        return _SumOverFeatures.apply(partial)  # type: ignore[return-value]

    @override
    def grad_on_first_rank(self, parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return parameter if self.rank == 0 else parameter.detach()

    @override
    def replicated_parameters(self, p: Parameters) -> list[Tensor]:
        return p.tensors(without=PER_FEATURE)

    @override
    @torch.no_grad()
    def gather_features(self, local: Tensor) -> Tensor:
        if self.rank > 0:
            dist.send(local.contiguous(), 0)
            return local
        parts = [local.cpu()]
        for other in range(1, self.world_size):
            # parts are received one at a time, because the GPU may not hold all of them
            part = torch.empty_like(local)
            dist.recv(part, other)
            parts.append(part.cpu())
        return torch.cat(parts)


class _SumOverFeatures(torch.autograd.Function):
    """Returns the sum of `partial` over all processes. In each process, `partial` gets the gradient of the sum.

    No gradients are summed, because all processes compute the same loss from the sum.
    """

    @staticmethod
    def forward(ctx, partial: Tensor) -> Tensor:
        return _all_reduce(partial)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient


def _all_reduce(partial: Tensor) -> Tensor:
    total = partial.detach().clone()
    dist.all_reduce(total)
    return total
