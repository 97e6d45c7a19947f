"""Time of a function call."""

import time
from collections.abc import Callable


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call of `work`: wall-clock time, and CPU time of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def wall_seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call of `work`."""
    return timed(work)[0]
