"""Run a study without Snakemake, job by job, in forks that start quickly and can be killed."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workflow.forks import OUTPUT
from tests.workflow.project import ROOT, Project

STAGES = (
    "corpus", "language_model", "activations", "dictionaries", "evaluation", "features", "circuits", "labels",
    "cases", "catalog", "report",
)  # fmt: skip


JOBS = "jobs.pickle"
"""File with the jobs of a study."""


@dataclass
class Job:
    """One job of a study."""

    number: int
    rule: str
    script: str
    input: list[str]
    output: list[str]
    log: str
    benchmark: str
    snakemake: bytes = field(repr=False)

    @property
    def stage(self) -> str:
        return next(
            stage for stage in (*STAGES, "exchange") if Path(self.script).stem.startswith(f"{stage}_")
        )

    def prepare(self, folder: Path) -> None:
        """Remove all outputs, as Snakemake does before a job and after a failed one."""
        for output in map(folder.joinpath, self.output):
            if output.is_dir():
                shutil.rmtree(output)
            output.unlink(missing_ok=True)
            output.parent.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class JobResult:
    """Exit code, time and output of a job."""

    code: int
    """Exit code; -9 if it was killed."""
    seconds: float
    output: str
    """Standard output and standard error."""


@dataclass
class StudyRun:
    """A project in which every job has run, and the process whose forks run jobs again."""

    project: Project
    jobs: list[Job]
    forks: "subprocess.Popen[str]"
    seconds: dict[int, float] = field(default_factory=dict)
    """Job number to its shortest measured run time."""

    def jobs_of(self, stage: str) -> list[Job]:
        return [job for job in self.jobs if job.stage == stage]

    def run(self, job: Job, folder: Path, kill: float | None = None) -> JobResult:
        """Run a job in `folder`; it is killed if it still runs after `kill` seconds."""
        answer = _request(self.forks, job=job.number, folder=str(folder), kill=kill)
        output = folder / OUTPUT
        return JobResult(output=output.read_text() if output.is_file() else "", **answer)

    def finish(self, job: Job, folder: Path) -> None:
        """Run a job, which must succeed."""
        result = self.run(job, folder)
        assert result.code == 0, f"{job.rule}: {result.output[-3000:]}"

    def copy(self, folder: Path) -> Path:
        """Copy the project's results into `folder`, where jobs can be run again."""
        shutil.copytree(self.project.folder / "results", folder / "results", dirs_exist_ok=True)
        return folder


@contextmanager
def run_study(project: Project, study: str, stages: Container[str] = STAGES) -> Iterator[StudyRun]:
    """Run the jobs of `stages` of a study in `project`; the process that forks them ends with the context."""
    file = project.folder / JOBS
    options: dict[str, Any] = {
        "cwd": project.folder,
        "env": project.environment
        | {"PYTHONPATH": f"{project.folder / 'lib'}:{ROOT}", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    }
    dag = [sys.executable, "-m", "tests.workflow.dag", study, str(file)]
    listed = subprocess.run(dag, **options, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr[-3000:]
    jobs = [Job(number, **job) for number, job in enumerate(pickle.loads(file.read_bytes()))]
    command = [sys.executable, "-m", "tests.workflow.forks", str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    ) as forks:
        assert forks.stdout is not None and forks.stdin is not None
        assert json.loads(forks.stdout.readline()) == {"ready": len(jobs)}
        run = StudyRun(project, jobs, forks)
        for job in (job for job in jobs if job.stage in stages):
            job.prepare(project.folder)
            result = run.run(job, project.folder)
            assert result.code == 0, f"{job.rule}: {result.output[-3000:]}"
            run.seconds[job.number] = result.seconds
            _write_benchmark(project.folder / job.benchmark, result.seconds)
        yield run
        forks.stdin.close()


def _write_benchmark(file: Path, seconds: float) -> None:
    """Write the run time of a job, as Snakemake does after a job that is too short for other measurements."""
    from snakemake.benchmark import BenchmarkRecord

    row = {name: "NA" for name in BenchmarkRecord.get_header()} | {"s": f"{seconds:.4f}"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")


def _request(forks: "subprocess.Popen[str]", **request: Any) -> dict[str, Any]:
    assert forks.stdout is not None and forks.stdin is not None
    print(json.dumps(request), file=forks.stdin, flush=True)
    return json.loads(forks.stdout.readline())
