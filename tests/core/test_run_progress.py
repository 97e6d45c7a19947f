"""The count of finished jobs and the estimate of the time that is left."""

import math
from pathlib import Path

import pytest

from circuitloom.core.run_progress import RunProgress, measured_seconds, rough_duration

STAGES = {1: "corpus", 2: "features", 3: "features", 4: "report"}


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_job_is_counted_once_and_other_numbers_are_not_counted() -> None:
    progress = RunProgress("small", STAGES)
    assert progress.opening() == "small: 4 jobs to run: corpus 1, features 2, report 1"
    lines = [progress.finish(job) for job in (1, 1, 0, 3, 2, 4)]
    assert lines == [
        "small: 1 of 4 jobs done", "", "", "small: 2 of 4 jobs done", "small: 3 of 4 jobs done",
        "small: 4 of 4 jobs done",
    ]  # fmt: skip


def test_measured_times_replace_planned_ones() -> None:
    progress = RunProgress("small", STAGES)
    assert progress.duration() == ""
    progress.expect({2: 700.0}, {"corpus": 100.0, "features": 500.0})
    assert progress.seconds == {1: 100, 2: 700, 3: 500, 4: 8}
    assert progress.duration() == "small: takes about 22 minutes"


def test_the_time_left_is_what_was_expected_if_jobs_take_what_was_expected() -> None:
    clock = Clock()
    progress = RunProgress("small", STAGES, clock)
    progress.expect({}, {"corpus": 100.0, "features": 500.0})
    clock.now += 100
    assert progress.finish(1) == "small: 1 of 4 jobs done, about 17 minutes left"
    assert progress.seconds_left() == pytest.approx(1008)


def test_the_time_left_grows_if_jobs_take_longer() -> None:
    clock = Clock()
    progress = RunProgress("small", {job: "features" for job in range(10)}, clock)
    progress.expect({}, {"features": 10.0})
    for job in range(5):
        progress.finish(job)
    # 15 s per job so far, and a weight of one expected job
    clock.now += 75
    assert progress.seconds_left() == pytest.approx(50 * 85 / 60)


@pytest.mark.parametrize("expected", [0.0, 1e-9, 1e9])
def test_the_time_left_is_finite(expected: float) -> None:
    progress = RunProgress("small", STAGES)
    progress.expect(dict.fromkeys(STAGES, expected), {})
    assert math.isfinite(progress.seconds_left())
    assert "left" in progress.finish(1)


def test_a_benchmark_file_gives_the_run_time(tmp_path: Path) -> None:
    file = tmp_path / "job.tsv"
    assert measured_seconds(file) is None
    for content, seconds in (("s\th:m:s\n69.5\t0:01:09\n", 69.5), ("s\tx\nNA\t1\n", None), ("", None)):
        file.write_text(content)
        assert measured_seconds(file) == seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (60, "about a minute"),
        (660, "about 11 minutes"),
        (9000, "about 2.5 hours"),
        (360_000, "about 100 hours"),
    ],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert rough_duration(seconds) == words
