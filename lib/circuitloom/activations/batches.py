"""Batches for training: several sites of the same tokens, read ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .store import Activations, check_origins

T = TypeVar("T")

AHEAD = 3
"""Batches that are read before they are asked for."""


def read_sites(
    sources: Mapping[str, Activations],
    batch: int,
    steps: int,
    start_step: int = 0,
    *,
    share: slice | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[dict[str, Float[Tensor, "row d"]]]:
    """`batch` rows of every source a step, float32, on `device`, from `start_step` up to `steps`.

    Step i is rows i * batch and on, in stored order, a pure function of i. The first row follows the last: a
    batch across the end of an epoch takes its rest from the next, and every row is read once an epoch.
    With a `share`, only those rows of each batch are read.
    What several sources need is read once; MLPs are applied in the thread that reads ahead.
    Raises ValueError where the sources are of different models or row orders, or one is damaged.
    """
    stored = {source.stored.folder: source.stored for source in sources.values()}
    check_origins(list(stored.values()))
    first, last, _ = (share or slice(None)).indices(batch)

    # no_grad, not inference_mode: autograd may save these tensors
    @torch.no_grad()
    def load(step: int) -> dict[str, Tensor]:
        rows = {
            folder: each.read(step * batch + first, last - first, device) for folder, each in stored.items()
        }
        return {name: source.from_stored(rows[source.stored.folder]) for name, source in sources.items()}

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
