"""Runs with `files` are imported; missing keys and files are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from circuitloom.config import load_study

ROOT = Path(__file__).parents[2]
STUDY: dict[str, Any] = {
    "name": "x",
    "corpus": {"source": "chronicle"},
    "language_model": {"source": "pretrain"},
    "training": {"width": 64},
}
FILES = {"files": "/nowhere/{layer}.pt", "name": "theirs", "act": "relu"}
BROKEN = {
    "no name": ({"name": ""}, r": a run with `files` .*give it a `name`"),
    "another act": (
        {"act": "topk"},
        r": `files` hold transcoders of act relu .*set kind: transcoder, act: relu",
    ),
    "another kind": ({"kind": "sae"}, r": `files` hold transcoders"),
    "a skip path": ({"skip": True}, r": `files` hold transcoders of act relu without skip"),
    "one file for all layers": ({"files": "/0.pt"}, r"\.files: /0\.pt: write \{layer\} in place"),
    "other braces": ({"files": "/{layer}{run}.pt"}, r"\.files: .*no other braces"),
    "missing files": (
        {},
        r"\.files: /nowhere/0\.pt does not exist \(3 of 3 layers\); download .*`hf download",
    ),
    "an unset variable": (
        {"files": "${NO_SUCH_VARIABLE}/{layer}.pt"},
        r"\.files: the environment variable NO_SUCH_VARIABLE is not set",
    ),
    "a sweep with trained and imported runs": (
        {"files": [None, "/{layer}.pt"]},
        r": some runs have `files` and some are trained; use one sweep for each",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_invalid_import_is_refused_in_one_line(fault: str) -> None:
    change, message = BROKEN[fault]
    with pytest.raises(ValueError, match=rf"^dictionaries\.a{message}") as error:
        load_study({**STUDY, "dictionaries": {"a": {**FILES, **change}}})
    assert "\n" not in str(error.value)


def test_imported_runs_have_one_file_per_layer_and_read_no_cached_site(tmp_path) -> None:
    layers, sites = [0, 2], ["resid_pre"]
    files = [tmp_path / f"{layer}.pt" for layer in layers]
    for file in files:
        file.touch()
    sweep = {**FILES, "files": f"{tmp_path}/{{layer}}.pt"}
    study = load_study(
        {**STUDY, "activations": {"layers": layers, "sites": sites}, "dictionaries": {"a": sweep}}
    )
    (run,) = study.runs.values()
    assert run.imported and [Path(run.file(layer)) for layer in study.layers] == files
    assert study.transcoders == ["theirs"] and study.sites == set(sites)


def test_the_study_of_published_transcoders_imports_one_per_layer(tmp_path, monkeypatch) -> None:
    config = yaml.safe_load((ROOT / "config" / "studies" / "gpt2-published.yaml").read_text())
    shape = {
        "model_type": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config["language_model"] = {"source": "path", "path": str(tmp_path)}
    monkeypatch.setenv("PUBLISHED", str(tmp_path))
    with pytest.raises(ValueError, match=r"^dictionaries\.published\.files: .*\(12 of 12 layers\)"):
        load_study(config)
    name = "final_sparse_autoencoder_gpt2-small_blocks.{}.ln2.hook_normalized_24576.pt"
    for layer in range(12):
        (tmp_path / name.format(layer)).touch()
    study = load_study(config)
    assert [(run.name, run.imported, run.width) for run in study.runs.values()] == [
        ("published", True, 24_576)
    ]
    assert study.traced_run == "published"
