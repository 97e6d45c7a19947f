"""The tiny study through a real Slurm, a job of it killed in the middle, ends in the same files as a local run."""

import importlib.util
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.comparing import differences
from tests.slurm.cluster import Cluster, Job, missing, slurm
from tests.workflow.project import SNAKEMAKE, Project, copy_project

STAGES = (
    "corpus", "language_model", "activations", "dictionaries", "evaluation", "features", "circuits", "cases",
    "catalog", "report",
)  # fmt: skip
MEMORY = 1_500
"""Megabytes that every job of the test asks for."""
# one thread in either run: how sums are split among threads decides their last bits
RESOURCES = {"threads": 1, "partition": "large", "memory": dict.fromkeys(STAGES, MEMORY)}
# Slurm here keeps no accounts; and nothing is far away
HERE = (
    "--slurm-status-command", "squeue", "--slurm-no-account", "--slurm-init-seconds-before-status-checks", "3",
    "--latency-wait", "5",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if missing():
        pytest.skip(f"needs Slurm ({missing()}): apt-get install slurm-wlm munge, then make test-slurm")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("needs Snakemake's executor plugin for Slurm: make test-slurm")
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def start(project: Project, cluster: Cluster, *targets: str) -> subprocess.Popen[str]:
    """Snakemake with the study for Slurm."""
    study = project.config("spread", resources=RESOURCES)
    command = [str(SNAKEMAKE), *targets, "--workflow-profile", "workflow/profiles/slurm", *HERE]
    # a plugin lies where the PYTHONPATH of this process says
    path = os.pathsep.join([str(project.folder / "lib"), os.environ.get("PYTHONPATH", "")])
    with (project.folder / "said").open("w") as said:
        return subprocess.Popen(
            [*command, "--configfile", study], cwd=project.folder, stdout=said, stderr=subprocess.STDOUT, text=True,
            env=cluster.environment | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip


def kill_in_the_middle(cluster: Cluster, process: subprocess.Popen[str], rule: str, work: Path) -> Job:
    """Kill the job of a rule once its unfinished work lies in the folder `work`."""
    while not work.is_dir():
        assert process.poll() is None, "Snakemake ended before the job was at work"
        time.sleep(0.05)
    (job,) = [job for job in cluster.jobs() if job.name == f"rule_{rule}"]
    assert job.state == "RUNNING"
    cluster.kill(job)
    return job


def said(project: Project) -> str:
    return (project.folder / "said").read_text()[-4000:]


def test_the_tiny_study_through_slurm_equals_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    far, near = copy_project(tmp_path / "far"), copy_project(tmp_path / "near")
    process = start(far, cluster)
    try:
        killed = kill_in_the_middle(cluster, process, "pretrain_model", far.results / "model.partial")
        assert process.wait(timeout=3600) == 0, said(far)
    finally:
        process.terminate()
        process.wait()
    jobs = cluster.jobs()
    assert {job.partition for job in jobs} == {"large"}
    # what was killed was tried again, with twice the memory and time; nothing else was
    first, second = [job for job in jobs if job.name == "rule_pretrain_model"]
    assert first.number == killed.number and first.state != "COMPLETED" and second.state == "COMPLETED"
    assert (first.memory, second.memory) == (f"{MEMORY}M", f"{2 * MEMORY}M")
    assert (first.time, second.time) == ("12:00:00", "1-00:00:00")
    assert {job.state for job in jobs if job.number != first.number} == {"COMPLETED"}

    local = near.snakemake("--max-threads", "1", study=near.config("spread", resources=RESOURCES))
    assert local.returncode == 0, local.stdout[-4000:]
    assert len(list(far.results.rglob("*.parquet"))) > 80
    assert differences(far.results, near.results) == []
