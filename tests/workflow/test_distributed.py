"""Two processes train a sweep: they give the dictionaries of one process, even if one is killed."""

import shutil
import signal
import subprocess
import time

import psutil
import pytest
import torch
from tests.workflow.project import Project

from circuitloom.dictionaries.dictionary import load_dictionary

# every fact of the library is tested in tests/dictionaries; here the workflow starts the processes
pytestmark = pytest.mark.slow
WORKER = "circuitloom.dictionaries.training.launch"
# not topk: one selection that rounding changes would make two trainings diverge
RELU = {"act": "relu", "sparsity": 0.01, "precision": "float32"}
SWEEPS = {
    "one": {"name": "one", **RELU},
    "batch": {"name": "two-batch", "processes": 2, **RELU},
    "features": {"name": "two-features", "processes": 2, "split": "features", **RELU},
}
LAYER = "layer1"
TRAINED = [f"results/tiny/dictionaries/{sweep['name']}/{LAYER}" for sweep in SWEEPS.values()]


@pytest.fixture(scope="module")
def trained(finished: Project, tmp_path_factory) -> tuple[Project, str]:
    """A project in which each sweep has been trained at one layer, and its study."""
    project = finished.copy(tmp_path_factory.mktemp("distributed") / "project")
    study = project.config("distributed", ("dictionaries",), dictionaries=SWEEPS)
    run = project.snakemake_alone(*TRAINED, study=study)
    assert run.returncode == 0, run.stdout[-4000:]
    return project, study


@pytest.mark.parametrize("run", ["two-batch", "two-features"])
def test_two_processes_train_the_same_dictionary_as_one(run: str, trained) -> None:
    folder = trained[0].results / "dictionaries"
    one, two = (load_dictionary(folder / name / LAYER) for name in ("one", run))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a - b).abs().max() < 0.01 * a.abs().max(), name
    assert not list(folder.glob("*/.layer*.partial"))


@pytest.mark.parametrize("victim", ["worker", "job"])
def test_a_killed_process_ends_all_processes_and_a_rerun_gives_the_same_bits(victim: str, trained) -> None:
    project, study = trained
    folder = project.results / "dictionaries" / "two-features" / LAYER
    before = load_dictionary(folder)
    shutil.rmtree(folder)
    process = subprocess.Popen(
        project.command(*TRAINED, study=study), cwd=project.folder, env=project.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any("dictionaries layer" in line for line in process.stdout)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if WORKER in child.cmdline()]
    assert len(workers) == 2
    killed = workers[1] if victim == "worker" else workers[1].parent()
    killed.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    if victim == "worker":
        messages = [line for line in output.splitlines() if line.startswith("circuitloom: dictionaries:")]
        assert len(messages) == 1
        assert "of 2 was killed (SIGKILL" in messages[0]
        assert "run again: it resumes from the last checkpoint" in messages[0]
    time.sleep(2)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    again = project.snakemake_alone(*TRAINED, study=study)
    assert again.returncode == 0, again.stdout[-4000:]
    after = load_dictionary(folder)
    assert torch.equal(before.W_enc, after.W_enc)
    assert torch.equal(before.W_dec, after.W_dec)
