"""Broken configs, inputs and disks give one clear line and a nonzero exit code, and lose no finished work."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.models import tiny_gpt2
from tests.workflow.project import STUDY, Project

WORDS = [" ".join(f"w{(i * 7 + j * j) % 60 + 4}" for j in range(40)) for i in range(60)]


def assert_refused(
    project: Project, message: str, *arguments: str, study: str = STUDY, alone: bool = False
) -> None:
    """Run Snakemake, which must fail with one line of our own that matches `message`, and no traceback."""
    run = (project.snakemake_alone if alone else project.snakemake)(*arguments, study=study)
    assert run.returncode != 0, run.stdout
    lines = [line for line in run.stdout.splitlines() if line.startswith("circuitloom: ")]
    assert any(re.search(message, line) for line in lines), run.stdout[-3000:]
    assert "Traceback" not in run.stdout


CONFIG_FAULTS = {
    "a misspelled key": ("training={widht: 64}", r"training\.widht: unknown key; did you mean width\?"),
    "text instead of a number": ("training={width: wide}", r"training\.width: .*integer.*'wide'"),
    "an empty section": ("corpus=", r"corpus: .*not "),
    "a layer the model lacks": (
        "activations={layers: [9]}",
        r"activations\.layers: the model has no layer 9",
    ),
    "an impossible k": ("training={k: 500}", r"k=500 exceeds width=128; choose k at most"),
    "two runs with one name": ("dictionaries={more: {}}", r"two runs are named tc-topk8-128"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_broken_config_stops_the_workflow_before_it_starts(fault: str, fresh: Project) -> None:
    change, message = CONFIG_FAULTS[fault]
    assert_refused(fresh, message, "--config", change)
    assert fresh.made == []


def real_text(project: Project, **corpus: object) -> str:
    """A study that reads text from a file and a tiny random model from a folder."""
    model = project.folder / "model"
    if not model.exists():
        tiny_gpt2(model)
    text = project.folder / "text.jsonl"
    if not text.exists():
        text.write_text("".join(json.dumps({"text": words}) + "\n" for words in WORDS))
    source = {"source": "files", "train": str(text), "context": 32, "validation_share": 0.2, **corpus}
    path = {"source": "path", "path": str(model)}
    return project.config("real", replace=("corpus", "language_model"), corpus=source, language_model=path)


def no_file(project: Project) -> str:
    study = real_text(project)
    (project.folder / "text.jsonl").unlink()
    return study


def empty_text(project: Project) -> str:
    (project.folder / "text.jsonl").write_text("")
    return real_text(project)


def no_such_column(project: Project) -> str:
    return real_text(project, text="body")


def too_little_text(project: Project) -> str:
    (project.folder / "text.jsonl").write_text(json.dumps({"text": "w5 w6 w7"}) + "\n")
    return real_text(project)


def wrong_tokenizer(project: Project) -> str:
    """A tokenizer with more tokens than the model."""
    study = real_text(project)
    config = project.folder / "model" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 64', '"vocab_size": 40'))
    return study


def no_weights(project: Project) -> str:
    study = real_text(project)
    (project.folder / "model" / "model.safetensors").unlink()
    return study


def damaged_weights(project: Project) -> str:
    study = real_text(project)
    weights = project.folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    return study


INPUT_FAULTS: dict[str, tuple[Callable[[Project], str], str]] = {
    "a missing file": (no_file, r"text\.jsonl"),
    "an empty text": (empty_text, r"text"),
    "a missing column": (no_such_column, r"body"),
    "too little text": (
        too_little_text,
        r"text\.jsonl: .*do not fill one sequence of 32 tokens; give more text",
    ),
    "a wrong tokenizer": (wrong_tokenizer, r"(vocabulary|tokens?)"),
    "a model without weights": (no_weights, r"(weights|safetensors)"),
    "damaged weights": (
        damaged_weights,
        r"/model: not a model that .*; replace its files with complete ones",
    ),
}


SLOW = {
    "an empty text",
    "a wrong tokenizer",
    "a model without weights",
    "a missing shard of activations",
    "a flipped byte in tokens",
}
"""Faults like others, which `make test-slow` tests."""


def faults(names: Iterable[str]) -> list:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


@pytest.mark.parametrize("fault", faults(INPUT_FAULTS))
def test_a_broken_input_is_named_in_the_message(fault: str, fresh: Project) -> None:
    make, message = INPUT_FAULTS[fault]
    # one of them as a user runs it
    alone = make is no_such_column
    assert_refused(fresh, message, "measure_model", study=make(fresh), alone=alone)


def flip(file: Path, place: float) -> None:
    """Change one byte and keep the file's time, so that only a checksum finds it."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[int(len(content) * place)] ^= 0x10
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def largest_chunk(folder: Path) -> Path:
    """The largest chunk file of a Zarr array."""
    return max(
        (f for f in folder.rglob("*") if f.is_file() and f.name != "zarr.json"),
        key=lambda f: f.stat().st_size,
    )


DAMAGE = {
    "a flipped byte in activations": (
        "activations/mlp_in/layer1.zarr/values",
        flip,
        "train_topk",
        r"layer1\.zarr",
    ),
    "a missing shard of activations": (
        "activations/mlp_in/layer1.zarr/values",
        None,
        "train_topk",
        r"layer1\.zarr",
    ),
    "a flipped byte in tokens": ("corpus/train.zarr/token", flip, "cache_mlp_in", r"train\.zarr"),
    "a missing shard of tokens": ("corpus/train.zarr/token", None, "cache_mlp_in", r"train\.zarr"),
}


@pytest.mark.parametrize("fault", faults(DAMAGE))
def test_damage_is_found_and_named_and_other_results_are_kept(
    fault: str, finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    folder, damage, rule, message = DAMAGE[fault]
    shard = largest_chunk(project.results / folder)
    shard.unlink() if damage is None else damage(shard, 0.3)
    model = sorted(project.results.glob("model/*"))
    assert_refused(
        project, message, "activations" if rule == "cache_mlp_in" else "dictionaries", "--forcerun", rule
    )
    assert sorted(project.results.glob("model/*")) == model


def test_a_damaged_dictionary_is_named(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    weights = project.results / "dictionaries" / "tc-topk8-128" / "layer0" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_refused(
        project, r"tc-topk8-128/layer0.* and run again", "evaluation", "--forcerun", "evaluate_topk"
    )


def test_diverging_training_names_the_run_and_the_remedy(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    message = r"run tc-topk8-128, layer \d: the loss is .* lower its learning_rate"
    assert_refused(project, message, "dictionaries", "--config", "training={learning_rate: 1e5, warmup: 0}")


@pytest.mark.slow
def test_a_run_on_a_full_disk_stops_and_resumes_once_there_is_room(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    activations = project.results / "activations"
    shutil.rmtree(activations)
    activations.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(activations)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        assert_refused(project, r"the disk is full.*make room and run again", "activations")
        assert not list((activations / "mlp_in").glob("layer*.zarr"))
        subprocess.run(["mount", "-o", "remount,size=100m", str(activations)], check=True)
        run = project.snakemake("activations")
        assert run.returncode == 0, run.stdout[-3000:]
        made = largest_chunk(activations / "mlp_in" / "layer0.zarr" / "values").read_bytes()
    finally:
        subprocess.run(["umount", str(activations)], check=True)
    assert (
        made
        == largest_chunk(finished.results / "activations" / "mlp_in" / "layer0.zarr" / "values").read_bytes()
    )


def test_the_plan_refuses_a_study_that_the_disk_cannot_hold(fresh: Project) -> None:
    huge = "corpus={train_tokens: 900_000_000_000_000}"
    assert_refused(
        fresh,
        r"plan: the study needs .* GB and .* GB are free; make room, or lower",
        "plan",
        "--config",
        huge,
    )
