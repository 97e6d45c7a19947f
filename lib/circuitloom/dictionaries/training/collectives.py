"""What the processes that train one dictionary must agree on: sums over all tokens and features, the largest of all.

One process has all tokens and all features; `Reduction` then leaves everything as it is. Of several, each has all
features and a share of the batch (`BatchSplit`), or the whole batch and a share of the features (`FeatureSplit`).
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
    """One process, which has everything. Where there are several, all must call the same methods in the same order."""

    rank = 0
    """Number of this process."""
    processes = 1
    splits_features = False
    """Each process has features of its own."""

    def share(self, batch: int) -> slice:
        """The rows of a batch that this process reads."""
        return slice(0, batch)

    def whole(self, read: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process trains on, of what all have read."""
        return read

    def features(self, width: int) -> slice:
        """The features that this process holds."""
        return slice(0, width)

    def tokens(self, here: int) -> int:
        """Tokens of the whole batch, of which `here` are in this process."""
        return here

    def count_features(self, here: int) -> int:
        """Of all features so many as the processes count `here` of theirs."""
        return here

    def over_tokens(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over all tokens, of a sum over those that are here; no gradient goes through it."""
        return partial

    def over_features(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over all features, of a sum over those that are here; its gradient is that of the partial sum."""
        return partial

    def once(self, replicated: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """A parameter that all hold, its gradient in one of them alone where each would find all of it."""
        return replicated

    def gather(self, values: Tensor) -> Tensor:
        """[process, ...]: the values of all processes, of one shape."""
        return values[None]

    def any(self, value: Tensor) -> bool:
        """Whether `value` is true in any process."""
        return bool(self.gather(value.int()).any())

    def kth_of_tokens(self, scores: Float[Tensor, "token some"], k: int) -> Float[Tensor, " token"]:
        """The k-th largest of each token's scores over the features of all processes, -inf where there are fewer."""
        lacking = max(0, k - scores.shape[1])
        best = torch.nn.functional.pad(scores, (0, lacking), value=-torch.inf).topk(k, dim=1).values
        return self.gather(best).movedim(0, 1).flatten(1).topk(k, dim=1).values[:, -1]

    def replicated(self, p: Parameters) -> list[Tensor]:
        """Parameters that every process holds."""
        return []

    def spread(self, p: Parameters) -> None:
        """Give every process the first one's replicated parameters."""

    def sum_gradients(self, p: Parameters) -> None:
        """Sum the gradients of replicated parameters, each process having those of its share."""

    def same(self, p: Parameters) -> bool:
        """Whether replicated parameters are the same in all processes, to the bit."""
        return True

    def first(self, value: T) -> T:
        """The first process' value."""
        return value

    def wait(self) -> None:
        """Go on when all processes have come here."""

    def join(self, shard: Tensor) -> Tensor:
        """[feature, ...] of all features, on the CPU, in the first process; in the others of their own."""
        return shard


ALONE = Collectives()


class _ProcessGroup(Collectives):
    """What both splits share, over the default process group of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()

    @override
    def share(self, batch: int) -> slice:
        return self._part(batch)

    @override
    def gather(self, values: Tensor) -> Tensor:
        pieces = [torch.empty_like(values) for _ in range(self.processes)]
        dist.all_gather(pieces, values.contiguous())
        return torch.stack(pieces)

    @override
    @torch.no_grad()
    def spread(self, p: Parameters) -> None:
        for tensor in self.replicated(p):
            dist.broadcast(tensor, 0)

    @override
    @torch.no_grad()
    def sum_gradients(self, p: Parameters) -> None:
        for tensor in self.replicated(p):
            # where the loss of this process does not depend on it
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            dist.all_reduce(tensor.grad)

    @override
    @torch.no_grad()
    def same(self, p: Parameters) -> bool:
        bits = [tensor.view(torch.int32).sum(dtype=torch.int64) for tensor in self.replicated(p)]
        sums = self.gather(torch.stack(bits))
        return bool((sums == sums[0]).all())

    @override
    def first(self, value: T) -> T:
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    @override
    def wait(self) -> None:
        dist.barrier()

    def _part(self, whole: int) -> slice:
        size = whole // self.processes
        assert size * self.processes == whole
        return slice(self.rank * size, (self.rank + 1) * size)


class DataParallel(_ProcessGroup):
    """Each process has all features and an equal share of the batch's tokens."""

    @override
    def tokens(self, here: int) -> int:
        return here * self.processes

    @override
    def over_tokens(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        return _summed(partial)

    @override
    def replicated(self, p: Parameters) -> list[Tensor]:
        return p.tensors()


class TensorParallel(_ProcessGroup):
    """Each process has the whole batch and an equal share of the features, in order."""

    splits_features = True

    @override
    def whole(self, read: dict[str, Tensor]) -> dict[str, Tensor]:
        return {site: self.gather(rows).flatten(0, 1) for site, rows in read.items()}

    @override
    def features(self, width: int) -> slice:
        return self._part(width)

    @override
    def count_features(self, here: int) -> int:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return int(_summed(torch.tensor(here, device=device)))

    @override
    def over_features(self, partial: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        return _OverFeatures.apply(partial)  # type: ignore[return-value]

    @override
    def once(self, replicated: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return replicated if self.rank == 0 else replicated.detach()

    @override
    def replicated(self, p: Parameters) -> list[Tensor]:
        return p.tensors(without=PER_FEATURE)

    @override
    @torch.no_grad()
    def join(self, shard: Tensor) -> Tensor:
        if self.rank > 0:
            dist.send(shard.contiguous(), 0)
            return shard
        pieces = [shard.cpu()]
        for other in range(1, self.processes):
            # one shard at a time: all together may not fit the GPU
            piece = torch.empty_like(shard)
            dist.recv(piece, other)
            pieces.append(piece.cpu())
        return torch.cat(pieces)


class _OverFeatures(torch.autograd.Function):
    """A sum over processes that each go on with it to the same loss: each part's gradient is the sum's."""

    @staticmethod
    def forward(ctx, partial: Tensor) -> Tensor:
        return _summed(partial)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient


def _summed(partial: Tensor) -> Tensor:
    total = partial.detach().clone()
    dist.all_reduce(total)
    return total
