"""Versions, hashes, machine and job times."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from circuitloom.report import provenance


def write_benchmark(folder: Path, name: str, *rows: str) -> None:
    (folder / f"{name}.tsv").write_text("\n".join(["s\th:m:s\tmax_rss", *rows]) + "\n")


def test_jobs_of_one_rule_are_added_up(tmp_path) -> None:
    write_benchmark(tmp_path, "train_topk_layer0", "10\t0:00:10\t200")
    write_benchmark(tmp_path, "train_topk_layer11", "30\t0:00:30\t100")
    write_benchmark(tmp_path, "trace_prompt_war", "5\t0:00:05\t50")
    write_benchmark(tmp_path, "trace_prompt_caught", "6\t0:00:06\t60")
    write_benchmark(tmp_path, "study_greater_than_year_span", "7\t0:00:07\t70")
    write_benchmark(tmp_path, "write_report", "9\t0:00:09\t90")
    found = {time.rule: time for time in provenance.times(tmp_path, "write_report")}
    assert set(found) == {"train_topk", "trace_prompt", "study_greater_than"}
    assert found["train_topk"] == provenance.RuleTime("train_topk", 2, 40.0, 30.0, 200.0)
    assert found["trace_prompt"].seconds == 11


@pytest.mark.parametrize("missing", ["NA", "-", ""])
def test_values_that_snakemake_could_not_measure_count_as_0(tmp_path, missing: str) -> None:
    write_benchmark(tmp_path, "quick", f"0.1\t0:00:00\t{missing}")
    assert provenance.times(tmp_path, "") == [provenance.RuleTime("quick", 1, 0.1, 0.1, 0.0)]


def test_a_changed_file_changes_only_its_own_hash(tmp_path) -> None:
    model, tokens, dictionary = (tmp_path / name for name in ("model", "train.zarr", "runs/tc/layer0"))
    for folder in (model, tokens / "c", dictionary):
        folder.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"model")
    (tokens / "zarr.json").write_text("{}")
    (tokens / "c" / "0").write_bytes(b"1234")
    (dictionary / "weights.safetensors").write_bytes(b"weights")

    def found() -> dict[str, str]:
        return {
            each.name.rpartition("/")[2]: each.sha256
            for each in provenance.hashes(model, [tokens], [dictionary])
        }

    before = found()
    assert before["model.safetensors"] == hashlib.sha256(b"model").hexdigest()
    assert before["layer0"] == hashlib.sha256(b"weights").hexdigest()
    (tokens / ".snakemake_timestamp").touch()
    assert found() == before
    (tokens / "c" / "0").write_bytes(b"1235")
    after = found()
    assert {name for name in before if before[name] != after[name]} == {"train.zarr"}


def test_versions_are_the_installed_ones() -> None:
    found = dict(provenance.versions())
    assert found["duckdb"] == version("duckdb")
    assert found["torch"] == version("torch")
    assert len(found["code of circuitloom, sha256"]) == 64


def test_the_machine_is_described() -> None:
    found = dict(provenance.machine())
    assert int(found["cores"]) > 0
    assert found["processor"]
    assert found["memory"].endswith(" GiB")


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (None, "trained by this study"),
        ({"source": "path", "path": "/models/a"}, "/models/a"),
        (
            {"source": "path", "path": "/models/a.gguf", "weights": "dequantized from Q4_K, F32"},
            "/models/a.gguf, dequantized from Q4_K, F32",
        ),
        (
            {"source": "hub", "name": "gpt2", "revision": "main", "commit": "abc"},
            "gpt2 from the hub, revision main, commit abc",
        ),
    ],
)
@pytest.mark.parametrize(
    ("tokenizer", "named"),
    [
        ({"name": None, "revision": None, "commit": None}, "the words of chronicle"),
        ({"name": "/models/a", "revision": None, "commit": None}, "/models/a"),
        ({"name": "gpt2", "revision": None, "commit": "abc"}, "gpt2 from the hub, commit abc"),
    ],
)
def test_the_sources_of_model_and_tokenizer_are_named(origin, words, tokenizer, named, tmp_path) -> None:
    if origin:
        (tmp_path / "source.json").write_text(json.dumps(origin))
    (tmp_path / "zarr.json").write_text(
        json.dumps({"attributes": {"tokenizer": tokenizer, "source": "chronicle"}})
    )
    assert provenance.sources(tmp_path, tmp_path) == [("language model", words), ("tokenizer", named)]
