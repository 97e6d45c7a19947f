"""A run in which Snakemake or one of its jobs is killed gives the same files as an undisturbed run.

`test_integrity` kills the jobs of every stage without Snakemake.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from tests.comparing import data_files, differences
from tests.workflow.project import Project

STAGES = {
    # folder to delete and make again, and the start of its job's progress line
    "activations": ("activations", "activations: mlp_in"),
    "dictionaries": ("dictionaries", "dictionaries layer"),
}


def start(project: Project, stage: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        project.command(stage), cwd=project.folder, env=project.environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], label: str) -> bool:
    """Read the output until the job shows progress; False if the run ended first."""
    assert process.stdout is not None
    return any(label in line for line in process.stdout)


def kill_jobs(process: subprocess.Popen[str]) -> None:
    """Kill the processes of the stage's script, and let Snakemake end."""
    children = psutil.Process(process.pid).children(recursive=True)
    jobs = [child for child in children if any("scripts/tmp" in word for word in child.cmdline())]
    assert jobs, "no job is running"
    for job in jobs:
        job.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_gives_the_same_files(stage: str, finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    folder, label = STAGES[stage]
    assert len(data_files(finished.results / folder)) > 5
    shutil.rmtree(project.results / folder)
    chance = random.Random(stage)
    kills = 0
    for victim in ("snakemake", "job", "snakemake"):
        process = start(project, stage)
        if not wait_for(process, label):
            process.wait()
            break
        if victim == "snakemake":
            time.sleep(chance.uniform(0, 0.6))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
        else:
            kill_jobs(process)
        kills += 1
    assert kills >= 1
    last = project.snakemake_alone(stage)
    assert last.returncode == 0, last.stdout[-3000:]
    assert differences(project.results / folder, finished.results / folder) == []
