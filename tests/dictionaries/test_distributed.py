"""Two processes train what one trains: in either split the same losses and dictionary, resumable bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.activations.inputs import make_cache, make_order
from tests.dictionaries.training_cases import CASES, SPLITS, STEPS, WEAK, train_all_cases, train_case
from tests.models import tiny_model

from circuitloom.config import Run, load_study
from circuitloom.core.errors import error_message
from circuitloom.dictionaries.dictionary import load_dictionary
from circuitloom.dictionaries.training import launch
from circuitloom.dictionaries.training.collectives import SINGLE_PROCESS
from circuitloom.dictionaries.training.launch import TrainingJob, run_job
from circuitloom.dictionaries.training.sweep import needs_model, train_sweep
from circuitloom.language_model.model import load_model

ROUNDED = {"dense-bfloat16": 30}
"""Factor on the tolerance of losses with rounded gradients; single weights are not compared."""
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Results of two processes for all cases: SPLIT/CASE/{dictionary,history.pt,gradients.pt}."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(train_all_cases, (str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """Results of one process: CASE/..."""
    folder = tmp_path_factory.mktemp("one_process")
    for name in CASES:
        train_case(name, folder / name, SINGLE_PROCESS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_loss_curve_of_one(name: str, split: str, two_processes, one_process) -> None:
    one = torch.load(one_process / name / "history.pt")
    two = torch.load(two_processes / split / name / "history.pt")
    assert [row["step"] for row in one] == list(range(10, STEPS + 1, 10))
    for a, b in zip(one, two, strict=True):
        for column in ("loss", "reconstruction", "sparsity", "auxiliary", "l0", "fvu", "dead"):
            assert b[column] == pytest.approx(a[column], rel=1e-4 * ROUNDED.get(name, 1), abs=1e-9), (
                a["step"],
                column,
            )
    if name in WEAK:
        assert one[-1]["auxiliary"] > 1e-3, "no feature was dead"


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(CASES.keys() - ROUNDED))
def test_gradients_are_those_of_one_process(name: str, split: str, two_processes, one_process) -> None:
    # needed because Adam's steps do not depend on the scale of gradients
    one = torch.load(one_process / name / "gradients.pt")
    two = torch.load(two_processes / split / name / "gradients.pt")
    assert one.keys() == two.keys()
    for tensor, gradient in one.items():
        assert (two[tensor] - gradient).abs().max() < 1e-3 * ROUNDED.get(name, 1) * gradient.abs().max(), (
            tensor
        )


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(CASES.keys() - ROUNDED))
def test_two_processes_end_in_the_dictionary_of_one(
    name: str, split: str, two_processes, one_process
) -> None:
    one = load_dictionary(one_process / name / "dictionary")
    two = load_dictionary(two_processes / split / name / "dictionary")
    for tensor in TENSORS:
        a, b = getattr(one, tensor), getattr(two, tensor)
        if a is None:
            assert b is None
            continue
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-3 * a.abs().max(), tensor


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["batchtopk", "dead"])
def test_an_interrupted_training_ends_in_the_same_bits(name: str, split: str, two_processes) -> None:
    uninterrupted = load_dictionary(two_processes / split / name / "dictionary")
    interrupted = load_dictionary(two_processes / split / f"{name}-interrupted" / "dictionary")
    for tensor in TENSORS:
        a, b = getattr(uninterrupted, tensor), getattr(interrupted, tensor)
        assert (a is None and b is None) or torch.equal(a, b), tensor


@pytest.mark.slow
def test_under_tensor_parallelism_each_rank_keeps_its_own_checkpoint(two_processes) -> None:
    shards = sorted(file.name for file in (two_processes / "features" / "topk").glob("checkpoint*"))
    assert shards == [f"checkpoint-rank1-step{STEPS}.pt", "checkpoint.pt"]
    assert not list((two_processes / "batch" / "topk").glob("checkpoint-*"))
    content = torch.load(two_processes / "features" / "topk" / shards[0], weights_only=True)
    assert content["states"][0]["parameters"]["W_enc"].shape == (32, 16)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch": 4097}, "batch=4097 does not divide among processes=2; choose a multiple"),
        ({"width": 65, "split": "features"}, "width=65 does not divide among processes=2; .* split: batch"),
        ({"k": 40, "split": "features"}, "k=40 exceeds the 32 features of a process; choose fewer processes"),
    ],
)
def test_sizes_that_do_not_divide_by_the_processes_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Run(**{"width": 64, "processes": 2, **keys})


def test_the_name_of_a_run_does_not_depend_on_the_number_of_processes() -> None:
    def study(**keys):
        model = {"source": "pretrain", "layers": 1, "d_model": 32, "heads": 2}
        sections = {"corpus": {"source": "chronicle"}, "language_model": model}
        return load_study({"name": "p", **sections, "dictionaries": {"one": {"width": 64, **keys}}})

    assert list(study(processes=2, split="features").runs) == list(study().runs)
    with pytest.raises(ValueError, match="two runs are named tc-topk32-64"):
        study(processes=[1, 2])


KEYS = {"name": "r", "width": 32, "k": 4, "batch": 256, "tokens": 256 * 20}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainingJob:
    """A short training of a tiny model's transcoder by two processes."""
    folder = tmp_path_factory.mktemp("job")
    model = tiny_model("gpt2", folder / "model")
    activations = make_cache(folder / "activations", load_model(model, device="cpu"), make_order())
    keys = {**KEYS, "processes": 2, "split": "features"}
    return TrainingJob(
        runs=[Run(**keys)], layers=[1], activations=activations, model=model, dtype="float32",
        outputs=[folder / "out"],
    )  # fmt: skip


@pytest.mark.slow
def test_a_job_starts_its_processes_and_ends_in_the_dictionary_of_one(job: TrainingJob, tmp_path) -> None:
    run_job(job, 2)
    single = job.runs[0].model_copy(update={"processes": 1, "split": "batch"})
    run_job(job.model_copy(update={"runs": [single], "outputs": [tmp_path / "one"]}), 1)
    one, two = load_dictionary(tmp_path / "one"), load_dictionary(job.outputs[0])
    assert torch.allclose(one.W_enc, two.W_enc, rtol=1e-3, atol=1e-4)
    assert json.loads((job.outputs[0] / "config.json").read_text())["run"]["processes"] == 2
    assert not list(job.outputs[0].parent.glob(".out.partial"))


@pytest.mark.slow
def test_the_job_raises_what_a_process_raised(job: TrainingJob, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"not cached; add mlp_in to activations\.sites") as raised:
        run_job(job.model_copy(update={"activations": tmp_path}), 2)
    assert "open_activations" in str(raised.value.__cause__), "the traceback is missing from the log"


def test_a_killed_process_is_reported_in_one_line(monkeypatch, tmp_path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(launch, "WORKER", [str(script)])
    with pytest.raises(
        ChildProcessError, match=r"process 1 of 2 was killed \(SIGKILL.*last checkpoint"
    ) as raised:
        launch._start_workers(tmp_path / "job.json", 2, tmp_path / "log")
    # the job must not take it for exhausted memory, whose remedy is another
    assert error_message(raised.value, "log") == str(raised.value)


def test_more_processes_than_gpus_are_refused(job: TrainingJob, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"processes is 2 and this machine has 1 GPU, .*set it to 1 or fewer"
    ):
        run_job(job, 2)


def test_a_model_is_loaded_only_if_it_is_needed_and_changes_no_weight(job, tmp_path, monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("the model was loaded")

    run = Run(**KEYS, kind="sae", site="mlp_in")
    model = load_model(job.model, device="cpu")
    train_sweep([run], job.layers[0], job.activations, model, [tmp_path / "with"])
    monkeypatch.setattr(launch, "load_model", refuse)
    run_job(job.model_copy(update={"runs": [run], "outputs": [tmp_path / "without"]}), 1)
    one, two = (load_dictionary(tmp_path / name) for name in ("with", "without"))
    assert torch.equal(one.W_enc, two.W_enc) and torch.equal(one.b_dec, two.b_dec)
    with pytest.raises(AssertionError, match="the model was loaded"):
        run_job(job.model_copy(update={"runs": [Run(**KEYS)], "outputs": [tmp_path / "transcoder"]}), 1)


def test_a_training_needs_the_model_for_mlp_out_and_for_the_norm_of_the_paper_s_coordinates(tmp_path) -> None:
    paper = {"act": "relu", "loss": "paper"}

    def needed(**keys) -> bool:
        return needs_model([Run(**{**KEYS, **keys})], 0, tmp_path)

    assert needed() and needed(kind="sae", site="mlp_out")
    assert not needed(kind="sae", site="mlp_in") and not needed(kind="sae", site="mlp_in", **paper)
    (tmp_path / "mlp_out" / "layer0.zarr").mkdir(parents=True)
    assert not needed() and not needed(kind="sae", site="mlp_out")
    assert needed(**paper)
