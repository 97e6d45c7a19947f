"""How long something takes, once."""

import time
from collections.abc import Callable


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that `work` takes: on the clock, and of all cores."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def wall_seconds(work: Callable[[], object]) -> float:
    """Seconds that `work` takes on the clock."""
    return timed(work)[0]
