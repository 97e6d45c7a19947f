"""Runs of a sweep side by side on a CPU, each with a share of the threads.

Much of a small run's step is work of one thread: what a second one adds to it is little, and a run of its own is more.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from .trainee import Trainee

SMALL = 2**22
"""Weights of a run's two matrices up to which runs are taken side by side.

What larger ones allocate does not fit the arenas that glibc has for threads, and gets fresh pages each time.
"""
SERIAL = 0.5
"""Share of a small run's step that one thread does: at d = 64, F = 2048 two take 0.75 of the time of one."""

T = TypeVar("T")
ForEach = Callable[[Callable[[Trainee], None]], None]
"""Calls a function for each run, and returns when all are done; raises what one raised."""


@contextmanager
def in_turn_or_abreast(trainees: list[Trainee]) -> Iterator[ForEach]:
    """How to take each run's step; for as long as the body runs, torch has the threads of one run.

    Which, depends on the runs and on torch's threads alone, as do then the last bits of what is trained.
    """
    threads = torch.get_num_threads()
    abreast = runs_abreast(len(trainees), threads) if all(map(_is_small, trainees)) else 1
    if abreast == 1:
        yield lambda function: _in_turn(function, trainees)
        return
    share = threads // abreast
    torch.set_num_threads(share)
    try:
        # each of a pool's threads has a number of its own
        with ThreadPoolExecutor(abreast, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield lambda function: _in_turn(Future.result, [pool.submit(function, each) for each in trainees])
    finally:
        torch.set_num_threads(threads)


def runs_abreast(runs: int, threads: int) -> int:
    """How many runs to take side by side, for a step of all to take the least time; where several do, the most."""

    def time(abreast: int) -> float:
        rounds, share = -(-runs // abreast), threads // abreast
        return rounds * (SERIAL + (1 - SERIAL) / share)

    return min(range(1, min(runs, threads) + 1), key=lambda abreast: (time(abreast), -abreast))


def _is_small(trainee: Trainee) -> bool:
    weights = trainee.parameters.W_enc, trainee.parameters.W_dec
    alone = trainee.reduction.processes == 1
    return alone and not weights[0].is_cuda and sum(each.numel() for each in weights) <= SMALL


def _in_turn(function: Callable[[T], None], items: Iterable[T]) -> None:
    for item in items:
        function(item)
