"""Batches for training: input and output of the same tokens, read ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .store import Activations

T = TypeVar("T")
Pair = tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]

AHEAD = 3
"""Batches that are read before they are asked for."""


def read_pairs(
    source: Activations,
    target: Activations,
    batch: int,
    steps: int,
    start_step: int = 0,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[Pair]:
    """(x, y) of the steps from `start_step` up to `steps`, `batch` rows each; y is x where the two are one.

    Step i is rows i * batch and on, in stored order, a pure function of i. The first row follows the last: a
    batch across the end of an epoch takes its rest from the next, and every row is read once an epoch.
    What both need is read once; the MLP is applied in the thread that reads ahead.
    Raises ValueError where the two have their rows in different orders, or one is damaged.
    """
    if source.stored.order != target.stored.order:
        raise ValueError(
            f"{source.stored.folder} and {target.stored.folder} were cached in different orders; "
            f"delete {target.stored.folder.parent} and run again"
        )

    # no_grad, not inference_mode: autograd may save these tensors
    @torch.no_grad()
    def load(step: int) -> Pair:
        rows = source.stored.read(step, batch, device)
        x = source.from_stored(rows)
        if target is source or (target.site, target.layer) == (source.site, source.layer):
            return x, x
        if target.stored.folder != source.stored.folder:
            rows = target.stored.read(step, batch, device)
        return x, target.from_stored(rows)

    return read_ahead(load, range(start_step, steps))


def read_ahead(load: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """`load` of each step, in order, computed by another thread up to `AHEAD` steps early."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for step in steps:
                waiting.append(pool.submit(load, step))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
