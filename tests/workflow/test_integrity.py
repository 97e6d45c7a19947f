"""Killed jobs, damaged files, full disks: nothing that is finished is wrong, and what was interrupted goes on.

Jobs run without Snakemake here, on a study smaller than tiny; `test_kills` and `test_faults` run some under it.
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
from tests.workflow.jobs import STAGES, Job, Study, run_study
from tests.workflow.project import STUDY, copy_project

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
"""Sections of tiny that are changed."""
CASES = ("caught", "century")
"""Those of tiny's that are studied; kinds differ in nothing that matters here."""
RESULTS = Path("results", "tiny")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Study]:
    project = copy_project(tmp_path_factory.mktemp("study"))
    tiny = yaml.safe_load((project.folder / STUDY).read_text())
    cases = {name: tiny["cases"][name] for name in CASES}
    with run_study(project, project.config("small", replace=("cases",), cases=cases, **SMALL)) as study:
        yield study


def test_the_undisturbed_study_is_whole(study: Study) -> None:
    assert {job.stage for job in study.jobs} == set(STAGES)
    assert list(find_damage(study.project.results)) == []
    made = data_files(study.project.results)
    assert len(made) > 100
    assert not [file for file in made if ".partial" in str(file) or file.suffix in (".new", ".wal")]


def moments(study: Study, stage: str, chance: random.Random) -> dict[int, int]:
    """How many of the random moments of a stage's own time lie in each of its jobs."""
    jobs = study.of(stage)
    drawn = chance.choices(jobs, weights=[study.seconds[job.number] for job in jobs], k=KILLS)
    return {job.number: drawn.count(job) for job in jobs}


def kill(study: Study, job: Job, folder: Path, chance: random.Random) -> int:
    """Run a job and kill it at a random moment; one that ends before is begun anew. The attempts that it took."""
    for attempt in range(1, 100):
        ended = study.run(job, folder, chance.uniform(0, study.seconds[job.number]))
        if ended.code == -signal.SIGKILL:
            return attempt
        assert ended.code == 0, ended.said[-3000:]
        # later attempts begin where killed ones were: moments are those of what is left
        study.seconds[job.number] = min(study.seconds[job.number], ended.seconds)
        job.prepare(folder)
    raise AssertionError(f"{job.rule}: no kill hit")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_20_random_moments_ends_in_the_same_files(
    stage: str, study: Study, tmp_path: Path
) -> None:
    chance = random.Random(stage)
    folder = study.copy(tmp_path)
    for job in study.of(stage):
        job.prepare(folder)
    wanted = moments(study, stage, chance)
    for job in study.of(stage):
        for _ in range(wanted[job.number]):
            kill(study, job, folder, chance)
            job.prepare(folder)
        study.finish(job, folder)
    assert sum(wanted.values()) == KILLS
    assert differences(folder / RESULTS, study.project.results) == []
    assert list(find_damage(folder / RESULTS)) == []


def files(folder: Path) -> list[Path]:
    """All that is recorded of a study, file by file."""
    return [folder / path for path in sorted(data_files(folder))]


def flip(file: Path, chance: random.Random) -> None:
    """Change one bit, and keep the file's time, so that only a checksum can tell."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(file: Path, chance: random.Random) -> None:
    """Leave the beginning of a file."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def remove(file: Path, _: random.Random) -> None:
    file.unlink()


@pytest.mark.parametrize("spoil", [flip, cut, remove])
def test_every_file_of_a_study_is_found_and_named_when_it_is_damaged(
    spoil, study: Study, tmp_path: Path
) -> None:
    results, chance = study.copy(tmp_path) / RESULTS, random.Random(spoil.__name__)
    # chunks whose array's metadata is damaged cannot be read: it alone is named
    everything = [file for file in files(results) if spoil is not flip or file.name != "zarr.json"]
    for file in everything:
        spoil(file, chance)
    assert sorted(line.partition(": ")[0] for line in find_damage(results)) == sorted(map(str, everything))


def test_a_damaged_file_is_named_alone(study: Study, tmp_path: Path) -> None:
    results, chance = study.copy(tmp_path) / RESULTS, random.Random(0)
    for file in chance.sample(files(results), 20):
        content = file.read_bytes()
        flip(file, chance)
        (line,) = find_damage(results)
        assert line.startswith(f"{file}: not what was written (its checksum differs); delete ")
        file.write_bytes(content)


def inputs(job: Job, folder: Path) -> list[Path]:
    """The files that a job reads, those parts of arrays left out that are verified as they are read."""
    found = [path for each in map(folder.joinpath, job.input) for path in (each, *each.rglob("*"))]
    return [path for path in found if path.is_file() and "c" not in path.parent.parts[-2:]]


def test_every_job_refuses_a_damaged_input_by_name_and_begins_nothing(study: Study, tmp_path: Path) -> None:
    folder, chance = study.copy(tmp_path), random.Random(1)
    refusing = [job for job in study.jobs if job.input]
    assert {job.stage for job in refusing} >= set(STAGES) - {"corpus"}
    for job in refusing:
        file = chance.choice(inputs(job, folder))
        content = file.read_bytes()
        chance.choice([flip, cut])(file, chance)
        job.prepare(folder)
        ended = study.run(job, folder)
        (line,) = (line for line in ended.said.splitlines() if line.startswith("circuitloom: "))
        assert ended.code == 1
        assert line.startswith(f"circuitloom: {job.stage}: {file.relative_to(folder)}: ")
        assert line.endswith("and run again")
        assert not any((folder / output).exists() for output in job.output)
        file.write_bytes(content)
        # the next jobs read what this one makes
        for output in job.output:
            copy = shutil.copytree if (study.project.folder / output).is_dir() else shutil.copy
            copy(study.project.folder / output, folder / output)


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        ("corpus/train.zarr/token", "cache_mlp_in"),
        ("corpus/validation.zarr/document", "tabulate_features"),
        ("activations/mlp_in/layer1.zarr/values", "train_topk"),
        ("corpus/validation.zarr/token", "ablate_site"),
    ],
)
def test_a_damaged_chunk_is_found_by_the_job_that_reads_it(
    array: str, rule: str, study: Study, tmp_path: Path
) -> None:
    folder = study.copy(tmp_path)
    shard = max((folder / RESULTS / array / "c").rglob("*"), key=lambda f: f.is_file() and f.stat().st_size)
    content = bytearray(shard.read_bytes())
    # within the first chunk, not in the index behind them all
    content[len(content) // 3] ^= 16
    shard.write_bytes(content)
    store = f"{array.partition('.zarr')[0]}.zarr"
    job = next(job for job in study.jobs if job.rule == rule and str(RESULTS / store) in job.input)
    job.prepare(folder)
    ended = study.run(job, folder)
    assert ended.code == 1, ended.said
    assert str(RESULTS / store) in ended.said
    assert "run again" in ended.said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator["Disk"]:
    """A disk of its own under the results."""
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
        """Bytes."""
        state = os.statvfs(self.folder)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def resize(self, size: int) -> None:
        """Let the disk hold so many bytes, or what it holds and a little."""
        size = max(size, self.used + 4096)
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    stage: str, study: Study, disk: Disk, tmp_path: Path
) -> None:
    folder = study.copy(tmp_path)
    left = study.of(stage)
    whole = disk.used
    for job in left:
        job.prepare(folder)
    others = disk.used
    for share in (0.2, 0.6):
        disk.resize(others + int(share * (whole - others)))
        while left and (ended := study.run(left[0], folder)).code == 0:
            left.pop(0)
        assert left, "the disk held what it has no room for"
        (line,) = (line for line in ended.said.splitlines() if line.startswith("circuitloom: "))
        assert line.startswith(f"circuitloom: {stage}: the disk is full (")
        assert line.endswith("make room and run again: finished work is kept")
        left[0].prepare(folder)
        # outputs of jobs that are still to run are gone, and nothing else is amiss
        amiss = {line.partition(": missing; run again")[0] for line in find_damage(folder / RESULTS)}
        assert amiss <= {str(folder / output) for job in left[1:] for output in job.output}
    disk.resize(2**30)
    for job in left:
        study.finish(job, folder)
    assert differences(folder / RESULTS, study.project.results) == []
    assert list(find_damage(folder / RESULTS)) == []
