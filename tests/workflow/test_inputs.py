"""Files outside the results are inputs of the rules that read them, so that a new version causes a rerun."""

import os
import re
from pathlib import Path

import pytest
from tests.models import tiny_gpt2
from tests.workflow.project import Project
from tests.workflow.snakemake_forks import run_snakemake


def test_files_of_text_tokenizer_and_model_are_inputs(fresh: Project) -> None:
    model, dataset = tiny_gpt2(fresh.folder / "model"), fresh.folder / "dataset" / "data"
    dataset.mkdir(parents=True)
    (model / "template.jinja").touch()
    (dataset / "train-0.parquet").touch()
    study = fresh.config(
        "real",
        replace=("corpus", "language_model"),
        corpus={"source": "hub", "dataset": str(dataset.parent), "context": 32},
        language_model={"source": "path", "path": str(model)},
    )
    run = fresh.snakemake("--dry-run", "language_model", "--quiet", "host", study=study)
    assert run.returncode == 0, run.stdout
    build, install = (
        re.search(rf"rule {rule}:\n +input: (.*)", run.stdout) for rule in ("build_corpus", "install_model")
    )
    assert build and install
    texts = {str(model / name) for name in ("tokenizer.json", "template.jinja")}
    assert {str(dataset / "train-0.parquet"), *texts} <= set(build[1].split(", "))
    assert {str(model / "model.safetensors"), *texts} <= set(install[1].split(", "))


def test_names_of_text_files_are_literal_or_patterns(fresh: Project) -> None:
    names = ["part[12].jsonl", "s*.jsonl", "a b.jsonl", "s1.jsonl", "part1.jsonl"]
    for name in names:
        (fresh.folder / name).write_text('{"text": "a"}\n')
    text = {"source": "files", "tokenizer": str(tiny_gpt2(fresh.folder / "model")), "context": 32}

    def inputs(name: str, **keys: object) -> list[str]:
        study = fresh.config(name, replace=("corpus",), corpus=text | keys)
        run = fresh.snakemake("--dry-run", "corpus", "--quiet", "host", study=study)
        assert run.returncode == 0, run.stdout
        found = re.search(r"rule build_corpus:\n +input: (.*)", run.stdout)
        assert found
        return [Path(file).name for file in found[1].split(", ") if file.endswith(".jsonl")]

    assert inputs("literal", train=[str(fresh.folder / name) for name in names[:3]]) == sorted(names[:3])
    assert inputs("pattern", train=str(fresh.folder / "s*.jsonl"), glob=True) == ["s*.jsonl", "s1.jsonl"]


def test_a_file_whose_name_has_braces_is_no_wildcard(fresh: Project) -> None:
    file = fresh.folder / "part{1}.jsonl"
    file.write_text('{"text": "a"}\n')
    model = tiny_gpt2(fresh.folder / "model {x}")
    study = fresh.config(
        "braces",
        replace=("corpus", "language_model"),
        corpus={"source": "files", "train": str(file), "context": 32},
        language_model={"source": "path", "path": str(model)},
    )
    run = fresh.snakemake("--dry-run", "language_model", "--quiet", "host", study=study)
    assert run.returncode == 0, run.stdout
    assert "rule build_corpus" in run.stdout and "rule install_model" in run.stdout


@pytest.mark.slow
def test_an_older_file_over_an_input_is_a_change(fresh: Project) -> None:
    model, text = tiny_gpt2(fresh.folder / "model"), fresh.folder / "train.jsonl"
    text.write_text('{"text": "a"}\n')
    study = fresh.config(
        "older",
        replace=("corpus", "language_model"),
        corpus={"source": "files", "train": str(text), "context": 32},
        language_model={"source": "path", "path": str(model)},
    )
    corpus = fresh.results / "corpus"
    for folder in ("tokenizer", "train.zarr", "validation.zarr", "../model"):
        (corpus / folder).mkdir(parents=True)
    for table in ("document", "token", "notice"):
        (corpus / f"{table}.parquet").touch()

    def record() -> None:
        # as after a run
        command = fresh.command("--touch", "--forceall", "results/tiny/model", study=study)[1:]
        run = run_snakemake(command, fresh.folder, fresh.environment)
        assert run.returncode == 0, run.stdout

    def stale() -> list[str]:
        run = fresh.snakemake("--dry-run", "results/tiny/model", "--quiet", "host", study=study)
        assert run.returncode == 0, run.stdout
        return [rule for rule in ("build_corpus", "install_model") if f"rule {rule}:" in run.stdout]

    record()
    assert stale() == []
    for file, rules in {
        text: ["build_corpus", "install_model"],
        model / "model.safetensors": ["install_model"],
    }.items():
        older = fresh.folder / "older"
        older.write_bytes(b"another one")
        os.utime(older, (1e9, 1e9))
        older.replace(file)
        assert stale() == rules
        record()
        assert stale() == []


def test_a_key_that_occurs_twice_in_a_study_is_refused_in_one_line(fresh: Project) -> None:
    study = fresh.config("twice")
    with (fresh.folder / study).open("a") as file:
        file.write("training: {width: 32}\n")
    run = fresh.snakemake("--dry-run", study=study)
    assert run.returncode != 0
    assert re.search(r"circuitloom: config: training: .*twice.yaml has this key twice, in lines", run.stdout)
