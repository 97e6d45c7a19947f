"""Killed jobs, damaged files and full disks: finished outputs are never wrong, and interrupted work resumes.

Jobs run without Snakemake here: tiny's, and in slow tests those of a smaller study. `test_kills` and `test_faults` run
some with Snakemake.
"""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.comparing import data_files, differences
from tests.workflow.jobs import STAGES, Job, StudyRun, run_study
from tests.workflow.project import STUDY, link_project

from circuitloom.core.checksums import find_damage

KILLS = 20
SMALL = {
    "corpus": {"train_tokens": 20_000, "validation_tokens": 4_000, "context": 64},
    "language_model": {"tokens": 32_000, "checkpoint_every": 5},
    "activations": {"shard_rows": 4096},
    "training": {"batch": 512, "tokens": 20_000},
    "evaluation": {"thresholds": 16},
    "features": {"neurons": 4, "examples": 5},
    "circuits": {
        "prompts": {
            "war": {"text": "the war lasted from the year 17 43 to the year 17", "target": "random @4"}
        },
        "weights": {"blind_features": 10, "context_tokens": 1024, "scored_tokens": 2048},
    },
}
"""Changes to tiny's sections."""
CASES = ("caught", "century")
"""Cases of tiny that are kept; other kinds write their files in the same way."""
RESULTS = Path("results", "tiny")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[StudyRun]:
    project = link_project(tmp_path_factory.mktemp("study"))
    tiny = yaml.safe_load((project.folder / STUDY).read_text())
    cases = {name: tiny["cases"][name] for name in CASES}
    with run_study(project, project.config("small", replace=("cases",), cases=cases, **SMALL)) as study:
        yield study


def test_an_undisturbed_study_is_complete_and_undamaged(finished_run: StudyRun) -> None:
    assert {job.stage for job in finished_run.jobs} == set(STAGES)
    assert list(find_damage(finished_run.project.results)) == []
    made = data_files(finished_run.project.results)
    assert len(made) > 100
    assert not [file for file in made if ".partial" in str(file) or file.suffix in (".new", ".wal")]


def draw_moments(study: StudyRun, stage: str, chance: random.Random) -> dict[int, int]:
    """Draw KILLS random moments of a stage's run time; returns the number of them in each of its jobs."""
    jobs = study.jobs_of(stage)
    drawn = chance.choices(jobs, weights=[study.seconds[job.number] for job in jobs], k=KILLS)
    return {job.number: drawn.count(job) for job in jobs}


def kill(study: StudyRun, job: Job, folder: Path, chance: random.Random) -> None:
    """Run a job and kill it at a random moment; if it finishes first, start again."""
    for _ in range(100):
        result = study.run(job, folder, chance.uniform(0, study.seconds[job.number]))
        if result.code == -signal.SIGKILL:
            return
        assert result.code == 0, result.output[-3000:]
        # a job resumes where it was killed, so it takes less time than at first
        study.seconds[job.number] = min(study.seconds[job.number], result.seconds)
        job.prepare(folder)
    raise AssertionError(f"{job.rule}: finished before every kill")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_20_random_moments_gives_the_same_files(
    stage: str, study: StudyRun, tmp_path: Path
) -> None:
    chance = random.Random(stage)
    folder = study.copy(tmp_path)
    for job in study.jobs_of(stage):
        job.prepare(folder)
    kills = draw_moments(study, stage, chance)
    for job in study.jobs_of(stage):
        for _ in range(kills[job.number]):
            kill(study, job, folder, chance)
            job.prepare(folder)
        study.finish(job, folder)
    assert sum(kills.values()) == KILLS
    assert differences(folder / RESULTS, study.project.results) == []
    assert list(find_damage(folder / RESULTS)) == []


def files(folder: Path) -> list[Path]:
    """All recorded files of a study."""
    return [folder / path for path in sorted(data_files(folder))]


def flip(file: Path, chance: random.Random) -> None:
    """Flip one bit and keep the file's time, so that only a checksum finds it."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(file: Path, chance: random.Random) -> None:
    """Truncate a file at a random length."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def remove(file: Path, _: random.Random) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_every_damaged_file_of_a_study_is_found_and_named(
    damage, finished_run: StudyRun, tmp_path: Path
) -> None:
    results, chance = finished_run.copy(tmp_path) / RESULTS, random.Random(damage.__name__)
    # chunks of an array with damaged metadata cannot be read: only the metadata is reported
    everything = [file for file in files(results) if damage is not flip or file.name != "zarr.json"]
    for file in everything:
        damage(file, chance)
    assert sorted(line.partition(": ")[0] for line in find_damage(results)) == sorted(map(str, everything))


def test_only_the_damaged_file_is_named(finished_run: StudyRun, tmp_path: Path) -> None:
    results, chance = finished_run.copy(tmp_path) / RESULTS, random.Random(0)
    for file in chance.sample(files(results), 20):
        content = file.read_bytes()
        flip(file, chance)
        (line,) = find_damage(results)
        assert line.startswith(f"{file}: not what was written (its checksum differs); delete ")
        file.write_bytes(content)


def inputs(job: Job, folder: Path) -> list[Path]:
    """The files that a job reads, without chunks of arrays, which are verified when they are read, and Snakemake's."""
    found = [path for each in map(folder.joinpath, job.input) for path in (each, *each.rglob("*"))]
    read = [path for path in found if path.is_file() and path.name != ".snakemake_timestamp"]
    return [path for path in read if "c" not in path.parent.parts[-2:]]


def test_every_job_names_a_damaged_input_and_writes_nothing(finished_run: StudyRun, tmp_path: Path) -> None:
    folder, chance = finished_run.copy(tmp_path), random.Random(1)
    readers = [job for job in finished_run.jobs if job.input]
    assert {job.stage for job in readers} >= set(STAGES) - {"corpus"}
    for job in readers:
        file = chance.choice(inputs(job, folder))
        content = file.read_bytes()
        chance.choice([flip, cut])(file, chance)
        job.prepare(folder)
        result = finished_run.run(job, folder)
        (line,) = (line for line in result.output.splitlines() if line.startswith("circuitloom: "))
        assert result.code == 1
        assert line.startswith(f"circuitloom: {job.stage}: {file.relative_to(folder)}: ")
        assert line.endswith("and run again")
        assert not any((folder / output).exists() for output in job.output)
        file.write_bytes(content)
        # later jobs read the outputs of this one
        for output in job.output:
            copy = shutil.copytree if (finished_run.project.folder / output).is_dir() else shutil.copy
            copy(finished_run.project.folder / output, folder / output)


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        ("corpus/train.zarr/token", "cache_mlp_in"),
        ("corpus/validation.zarr/document", "tabulate_topk"),
        ("activations/mlp_in/layer1.zarr/values", "train_topk"),
        ("corpus/validation.zarr/token", "ablate_sites"),
    ],
)
def test_a_damaged_chunk_is_found_by_the_job_that_reads_it(
    array: str, rule: str, finished_run: StudyRun, tmp_path: Path
) -> None:
    folder = finished_run.copy(tmp_path)
    shard = max((folder / RESULTS / array / "c").rglob("*"), key=lambda f: f.is_file() and f.stat().st_size)
    content = bytearray(shard.read_bytes())
    # in the first chunk, not in the index at the end
    content[len(content) // 3] ^= 16
    shard.write_bytes(content)
    store = f"{array.partition('.zarr')[0]}.zarr"
    job = next(job for job in finished_run.jobs if job.rule == rule and str(RESULTS / store) in job.input)
    job.prepare(folder)
    result = finished_run.run(job, folder)
    assert result.code == 1, result.output
    assert str(RESULTS / store) in result.output
    assert "run again" in result.output


@pytest.fixture
def disk(tmp_path: Path) -> Iterator["Disk"]:
    """A small disk mounted at the results' folder."""
    folder = tmp_path / "results"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Disk:
    """A disk in memory whose size can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def used(self) -> int:
        """Bytes in use."""
        state = os.statvfs(self.folder)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def resize(self, size: int) -> None:
        """Set the size in bytes, at least what the disk holds and one page."""
        size = max(size, self.used + 4096)
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stops_on_a_full_disk_and_resumes_when_there_is_room(
    stage: str, study: StudyRun, disk: Disk, tmp_path: Path
) -> None:
    folder = study.copy(tmp_path)
    remaining = study.jobs_of(stage)
    complete = disk.used
    for job in remaining:
        job.prepare(folder)
    others = disk.used
    for share in (0.2, 0.6):
        disk.resize(others + int(share * (complete - others)))
        while remaining and (result := study.run(remaining[0], folder)).code == 0:
            remaining.pop(0)
        assert remaining, "the disk is not full"
        # notices about the text have the same prefix and stand before it
        *_, line = (line for line in result.output.splitlines() if line.startswith("circuitloom: "))
        assert line.startswith(f"circuitloom: {stage}: the disk is full (")
        assert line.endswith("make room and run again: finished work is kept")
        remaining[0].prepare(folder)
        # only outputs of the remaining jobs are missing
        missing = {line.partition(": missing; run again")[0] for line in find_damage(folder / RESULTS)}
        assert missing <= {str(folder / output) for job in remaining[1:] for output in job.output}
    disk.resize(2**30)
    for job in remaining:
        study.finish(job, folder)
    assert differences(folder / RESULTS, study.project.results) == []
    assert list(find_damage(folder / RESULTS)) == []
