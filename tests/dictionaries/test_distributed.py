"""Two processes train what one trains: in either split the same losses, the same dictionary, resumable to the bit."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.activations.inputs import make_cache, make_order
from tests.dictionaries.together import CASES, SPLITS, STEPS, WEAK, train_case, work
from tests.models import tiny_model

from circuitloom.config import Run, load
from circuitloom.dictionaries.dictionary import load_dictionary
from circuitloom.dictionaries.training import launch
from circuitloom.dictionaries.training.collectives import ALONE
from circuitloom.dictionaries.training.launch import TrainingJob, run
from circuitloom.language_model.model import load as load_model

ROUNDED = {"dense-bfloat16": 30}
"""How much farther apart than in float32 losses may be where gradients are rounded; single weights part."""
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What two processes made of all cases: SPLIT/CASE/{dictionary,history.pt,gradients.pt}."""
    folder = tmp_path_factory.mktemp("together")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same of one process: CASE/..."""
    folder = tmp_path_factory.mktemp("alone")
    for name in CASES:
        train_case(name, folder / name, ALONE)
    return folder


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_loss_curve_of_one(name: str, split: str, together, alone) -> None:
    one = torch.load(alone / name / "history.pt")
    two = torch.load(together / split / name / "history.pt")
    assert [row["step"] for row in one] == list(range(10, STEPS + 1, 10))
    for a, b in zip(one, two, strict=True):
        for column in ("loss", "reconstruction", "sparsity", "auxiliary", "l0", "fvu", "dead"):
            assert b[column] == pytest.approx(a[column], rel=1e-4 * ROUNDED.get(name, 1), abs=1e-9), (
                a["step"],
                column,
            )
    if name in WEAK:
        assert one[-1]["auxiliary"] > 1e-3, "no dead feature was to be revived"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(CASES.keys() - ROUNDED))
def test_gradients_are_those_of_one_process(name: str, split: str, together, alone) -> None:
    # Adam's steps are the same whatever a gradient is multiplied by
    one = torch.load(alone / name / "gradients.pt")
    two = torch.load(together / split / name / "gradients.pt")
    assert one.keys() == two.keys()
    for tensor, gradient in one.items():
        assert (two[tensor] - gradient).abs().max() < 1e-3 * ROUNDED.get(name, 1) * gradient.abs().max(), (
            tensor
        )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(CASES.keys() - ROUNDED))
def test_two_processes_end_in_the_dictionary_of_one(name: str, split: str, together, alone) -> None:
    one = load_dictionary(alone / name / "dictionary")
    two = load_dictionary(together / split / name / "dictionary")
    for tensor in TENSORS:
        a, b = getattr(one, tensor), getattr(two, tensor)
        if a is None:
            assert b is None
            continue
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-3 * a.abs().max(), tensor


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["batchtopk", "dead"])
def test_a_training_cut_short_ends_in_the_same_bits(name: str, split: str, together) -> None:
    whole = load_dictionary(together / split / name / "dictionary")
    cut = load_dictionary(together / split / f"{name}-cut" / "dictionary")
    for tensor in TENSORS:
        a, b = getattr(whole, tensor), getattr(cut, tensor)
        assert (a is None and b is None) or torch.equal(a, b), tensor


def test_where_features_are_split_each_process_keeps_its_own_checkpoint(together) -> None:
    shards = sorted(file.name for file in (together / "features" / "topk").glob("checkpoint*"))
    assert shards == [f"checkpoint-process1-step{STEPS}.pt", "checkpoint.pt"]
    assert not list((together / "batch" / "topk").glob("checkpoint-*"))
    content = torch.load(together / "features" / "topk" / shards[0], weights_only=True)
    assert content["states"][0]["parameters"]["W_enc"].shape == (32, 16)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch": 4097}, "batch=4097 does not divide among processes=2; choose a multiple"),
        ({"width": 65, "split": "features"}, "width=65 does not divide among processes=2; .* split: batch"),
        ({"k": 40, "split": "features"}, "k=40 exceeds the 32 features of a process; choose fewer processes"),
    ],
)
def test_what_does_not_divide_is_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Run(**{"width": 64, "processes": 2, **keys})


def test_a_run_is_named_after_what_it_is_and_not_after_how_many_train_it() -> None:
    def study(**keys):
        model = {"source": "pretrain", "layers": 1, "d_model": 32, "heads": 2}
        sections = {"corpus": {"source": "chronicle"}, "language_model": model}
        return load({"name": "p", **sections, "dictionaries": {"one": {"width": 64, **keys}}})

    assert list(study(processes=2, split="features").runs) == list(study().runs)
    with pytest.raises(ValueError, match="two runs are named tc-topk32-64"):
        study(processes=[1, 2])


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainingJob:
    """A short training of a tiny model's transcoder by two processes."""
    folder = tmp_path_factory.mktemp("job")
    model = tiny_model("gpt2", folder / "model")
    activations = make_cache(folder / "activations", load_model(model, device="cpu"), make_order())
    keys = {"width": 32, "k": 4, "batch": 256, "tokens": 256 * 20, "processes": 2, "split": "features"}
    return TrainingJob(
        runs=[Run(name="r", **keys)], layer=1, activations=activations, model=model, dtype="float32",
        outputs=[folder / "out"],
    )  # fmt: skip


def test_a_job_starts_its_processes_and_ends_in_the_dictionary_of_one(job: TrainingJob, tmp_path) -> None:
    run(job, 2)
    single = job.runs[0].model_copy(update={"processes": 1, "split": "batch"})
    run(job.model_copy(update={"runs": [single], "outputs": [tmp_path / "one"]}), 1)
    one, two = load_dictionary(tmp_path / "one"), load_dictionary(job.outputs[0])
    assert torch.allclose(one.W_enc, two.W_enc, rtol=1e-3, atol=1e-4)
    assert json.loads((job.outputs[0] / "config.json").read_text())["run"]["processes"] == 2
    assert not list(job.outputs[0].parent.glob(".out.partial"))


def test_what_a_process_raises_is_raised_by_the_job(job: TrainingJob, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"not cached; add mlp_in to activations\.sites") as raised:
        run(job.model_copy(update={"activations": tmp_path}), 2)
    assert "open_activations" in str(raised.value.__cause__), "the log would lack the traceback"


def test_a_killed_process_is_said_in_one_line(monkeypatch, tmp_path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(launch, "WORKER", [str(script)])
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 was killed \(SIGKILL\).*last checkpoint"):
        launch._start(tmp_path / "job.json", 2, tmp_path / "log")


def test_more_processes_than_gpus_are_refused(job: TrainingJob, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"processes is 2 and this machine has 1 GPU, .*set it to 1 or fewer"
    ):
        run(job, 2)
