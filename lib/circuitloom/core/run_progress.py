"""Counts the jobs of a run and estimates the time that is left."""

import csv
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

UNPLANNED_SECONDS = 8.0
"""Seconds of a job whose stage has no plan (catalogue and report). This is the time that a job needs to start."""
TRUST = 0.1
"""Weight of the expected times when they are compared with measured times, as a share of the whole run."""


class RunProgress:
    """Counts finished jobs and estimates the remaining time. A number that is not a job of the study is ignored."""

    def __init__(
        self, study: str, stages: Mapping[int, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stages` maps the number of each job that will run to its stage."""
        self.study, self.stages = study, dict(stages)
        self.seconds: dict[int, float] = {}
        """Expected seconds per job: by how much each job lengthens the run. Empty if they are not known."""
        self._clock, self._start = clock, clock()
        self._finished: set[int] = set()

    def expect(self, measured: Mapping[int, float], planned: Mapping[str, float]) -> None:
        """Set the expected seconds of each job: measured ones, or else `planned`, the seconds per job of a stage."""
        self.seconds = {
            job: measured.get(job, planned.get(stage, UNPLANNED_SECONDS))
            for job, stage in self.stages.items()
        }

    def opening(self) -> str:
        """Returns a line with the number of jobs of each stage."""
        counts = dict.fromkeys(self.stages.values(), 0)
        for stage in self.stages.values():
            counts[stage] += 1
        parts = ", ".join(f"{stage} {count}" for stage, count in counts.items())
        return f"{self.study}: {_jobs(len(self.stages))} to run: {parts}"

    def duration(self) -> str:
        """Returns a line with the expected time of the whole run. It is empty if the time is not known."""
        return f"{self.study}: takes {rough_duration(sum(self.seconds.values()))}" if self.seconds else ""

    def finish(self, job: int) -> str:
        """Count a finished job. Returns a line for it, or an empty text if the job is not counted (again)."""
        if job not in self.stages or job in self._finished:
            return ""
        self._finished.add(job)
        line = f"{self.study}: {len(self._finished)} of {_jobs(len(self.stages))} done"
        if not self.seconds or len(self._finished) == len(self.stages):
            return line
        return f"{line}, {rough_duration(self.seconds_left())} left"

    def seconds_left(self) -> float:
        """Returns the estimated seconds until the last job ends.

        The expected seconds are scaled by what the finished jobs took.
        """
        total = sum(self.seconds.values())
        done = sum(self.seconds[job] for job in self._finished)
        # a few short jobs say little about the long ones
        prior = TRUST * total
        return (total - done) * (self._clock() - self._start + prior) / (done + prior) if total else 0.0


def measured_seconds(benchmark: Path) -> float | None:
    """Returns the run time in the benchmark file of an earlier run, or None if there is none."""
    try:
        with benchmark.open(newline="") as lines:
            seconds = float(next(csv.DictReader(lines, delimiter="\t"))["s"])
    except (OSError, StopIteration, KeyError, TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) else None


def rough_duration(seconds: float) -> str:
    """Returns a duration in words, such as "about 11 minutes"."""
    if seconds < 45:
        return "less than a minute"
    if seconds < 90:
        return "about a minute"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours" if seconds < 36_000 else f"about {seconds / 3600:.0f} hours"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
