"""Long work of one reader at a time: it says how far it is, and what it gave is kept for a while."""

import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..errors import first_line

KEPT = 16
"""Finished jobs whose results are kept, the latest."""
Say = Callable[[str], None]
"""Takes a line that says what is being done."""


@dataclass
class Job:
    """Work that was asked for."""

    key: Hashable
    said: str = "waiting"
    """What is being done."""
    done: bool = False
    result: Any = None
    error: str | None = None
    """What went wrong, in one line."""
    finished: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """One job at a time, in the order in which they were asked for; asking again gives the same job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        # models are watched and changed through hooks: one pass at a time
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explorer")

    def start(self, key: Hashable, work: Callable[[Say], Any], again: bool = True) -> Job:
        """The job called `key`: the one that is there, else a new one that does `work`.

        A failed one is tried once more with `again`; those who ask how far it is leave that out.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is None or (again and job.error is not None):
                job = self._jobs[key] = Job(key)
                self._pool.submit(self._run, job, work)
            self._jobs.move_to_end(key)
            finished = [each for each, other in self._jobs.items() if other.done]
            for old in finished[: max(0, len(finished) - KEPT)]:
                del self._jobs[old]
            return job

    def _run(self, job: Job, work: Callable[[Say], Any]) -> None:
        def say(text: str) -> None:
            job.said = text

        try:
            job.result = work(say)
        except Exception as error:
            # whatever it is, the page says it, and the next job runs; what nobody expects goes to the terminal too
            if not isinstance(error, ValueError):
                traceback.print_exception(error)
            job.error = first_line(error)
        job.done = True
        job.finished.set()
