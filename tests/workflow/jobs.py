"""A study run without Snakemake, job after job, each as quick to start as to kill."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workflow.forks import OUTPUT
from tests.workflow.project import ROOT, Project

STAGES = (
    "corpus", "language_model", "activations", "dictionaries", "evaluation", "features", "circuits", "cases",
    "catalog", "report",
)  # fmt: skip


@dataclass
class Job:
    """One job of a study."""

    number: int
    rule: str
    script: str
    input: list[str]
    output: list[str]
    log: str
    snakemake: bytes = field(repr=False)

    @property
    def stage(self) -> str:
        return next(stage for stage in STAGES if Path(self.script).stem.startswith(f"{stage}_"))

    def prepare(self, folder: Path) -> None:
        """What Snakemake does before a job, and after one that failed: no output is left."""
        for output in map(folder.joinpath, self.output):
            if output.is_dir():
                shutil.rmtree(output)
            output.unlink(missing_ok=True)
            output.parent.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    code: int
    """Exit code; -9 where it was killed."""
    seconds: float
    said: str


@dataclass
class Study:
    """A project in which every job has run, and the process whose forks run them."""

    project: Project
    jobs: list[Job]
    forks: "subprocess.Popen[str]"
    seconds: dict[int, float] = field(default_factory=dict)
    """The least time that each job was seen to take from nothing to its end."""

    def of(self, stage: str) -> list[Job]:
        return [job for job in self.jobs if job.stage == stage]

    def run(self, job: Job, folder: Path, kill: float | None = None) -> Ended:
        """Run a job in `folder`, which may be killed after `kill` seconds."""
        answer = _ask(self.forks, job=job.number, folder=str(folder), kill=kill)
        return Ended(said=(folder / OUTPUT).read_text() if (folder / OUTPUT).is_file() else "", **answer)

    def finish(self, job: Job, folder: Path) -> None:
        """Run a job to its end."""
        ended = self.run(job, folder)
        assert ended.code == 0, f"{job.rule}: {ended.said[-3000:]}"

    def copy(self, folder: Path) -> Path:
        """A copy of the project's results, in which jobs can be run again."""
        shutil.copytree(self.project.folder / "results", folder / "results", dirs_exist_ok=True)
        return folder


@contextmanager
def run_study(project: Project, study: str) -> Iterator[Study]:
    """Run all jobs of a study in `project`; the process that they are forked from ends with the context."""
    file = project.folder / "jobs.pickle"
    told: dict[str, Any] = {
        "cwd": project.folder,
        "env": project.environment
        | {"PYTHONPATH": f"{project.folder / 'lib'}:{ROOT}", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    }
    dag = [sys.executable, "-m", "tests.workflow.dag", study, str(file)]
    made = subprocess.run(dag, **told, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    jobs = [Job(number, **job) for number, job in enumerate(pickle.loads(file.read_bytes()))]
    command = [sys.executable, "-m", "tests.workflow.forks", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **told) as forks:
        assert forks.stdout is not None and forks.stdin is not None
        assert json.loads(forks.stdout.readline()) == {"ready": len(jobs)}
        study = Study(project, jobs, forks)
        for job in jobs:
            job.prepare(project.folder)
            ended = study.run(job, project.folder)
            assert ended.code == 0, f"{job.rule}: {ended.said[-3000:]}"
            study.seconds[job.number] = ended.seconds
        yield study
        forks.stdin.close()


def _ask(forks: "subprocess.Popen[str]", **request: Any) -> dict[str, Any]:
    assert forks.stdout is not None and forks.stdin is not None
    print(json.dumps(request), file=forks.stdin, flush=True)
    return json.loads(forks.stdout.readline())
