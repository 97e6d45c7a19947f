"""The tiny study on a real Slurm, with one job killed while it runs, gives the same files as a local run."""

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
"""Megabytes that every job requests."""
# one thread in both runs: the last bits of sums depend on the number of threads
RESOURCES = {"threads": 1, "partition": "large", "memory": dict.fromkeys(STAGES, MEMORY)}
# this Slurm has no accounting, and answers quickly
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
    """Start Snakemake with the Slurm profile."""
    study = project.config("cluster", resources=RESOURCES)
    command = [str(SNAKEMAKE), *targets, "--workflow-profile", "workflow/profiles/slurm", *HERE]
    # the plugins are on the PYTHONPATH of this process
    path = os.pathsep.join([str(project.folder / "lib"), os.environ.get("PYTHONPATH", "")])
    with (project.folder / "output").open("w") as output:
        return subprocess.Popen(
            [*command, "--configfile", study], cwd=project.folder, stdout=output, stderr=subprocess.STDOUT, text=True,
            env=cluster.environment | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip


def kill_while_running(cluster: Cluster, process: subprocess.Popen[str], rule: str, work: Path) -> Job:
    """Kill the job of a rule as soon as it has written its folder of unfinished work."""
    while not work.is_dir():
        assert process.poll() is None, "Snakemake ended before the job ran"
        time.sleep(0.05)
    (job,) = [job for job in cluster.jobs() if job.name == f"rule_{rule}"]
    assert job.state == "RUNNING"
    cluster.kill(job)
    return job


def output(project: Project) -> str:
    return (project.folder / "output").read_text()[-4000:]


def test_the_tiny_study_on_slurm_equals_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    remote, local = copy_project(tmp_path / "remote"), copy_project(tmp_path / "local")
    process = start(remote, cluster)
    try:
        killed = kill_while_running(cluster, process, "pretrain_model", remote.results / "model.partial")
        assert process.wait(timeout=3600) == 0, output(remote)
    finally:
        process.terminate()
        process.wait()
    jobs = cluster.jobs()
    assert {job.partition for job in jobs} == {"large"}
    # only the killed job was retried, with twice the memory and time
    first, second = [job for job in jobs if job.name == "rule_pretrain_model"]
    assert first.number == killed.number and first.state != "COMPLETED" and second.state == "COMPLETED"
    assert (first.memory, second.memory) == (f"{MEMORY}M", f"{2 * MEMORY}M")
    assert (first.time, second.time) == ("12:00:00", "1-00:00:00")
    assert {job.state for job in jobs if job.number != first.number} == {"COMPLETED"}

    run = local.snakemake_alone("--max-threads", "1", study=local.config("cluster", resources=RESOURCES))
    assert run.returncode == 0, run.stdout[-4000:]
    assert len(list(remote.results.rglob("*.parquet"))) > 80
    assert differences(remote.results, local.results) == []
