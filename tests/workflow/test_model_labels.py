"""A study asks a language model for labels only if it names one."""

import json
import re
from pathlib import Path

import pytest
from tests.labels.chat_server import Reply, chat_server, says
from tests.workflow.project import Project

from circuitloom.core.checksums import find_damage
from circuitloom.core.layout import Layout
from circuitloom.core.tables import read_table

RUN = "tc-topk8-128"
MODEL = {"endpoint": "http://127.0.0.1:9/v1", "name": "oracle"}


def test_no_model_is_asked_unless_the_study_names_one(fresh: Project) -> None:
    assert "label_with_model" not in fresh.snakemake("--dry-run").stdout
    run = fresh.snakemake("labels", "--dry-run", study=fresh.config("asked", labels={"model": MODEL}))
    assert run.returncode == 0, run.stdout
    # one job per layer
    assert re.search(r"^label_with_model +2$", run.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {**MODEL, "runs": ["other"]},
            "labels.model.runs: other has no feature tables; choose from tc-topk8-128",
        ),
        ({"endpoint": "http://127.0.0.1:9/v1"}, "labels.model: an endpoint has several models; set name"),
        ({**MODEL, "endpont": "x"}, "labels.model.endpont: unknown key; did you mean endpoint?"),
    ],
)
def test_a_model_that_cannot_be_asked_stops_the_start(fresh: Project, model: dict, words: str) -> None:
    run = fresh.snakemake("--dry-run", study=fresh.config("refused", labels={"model": model}))
    assert run.returncode != 0
    assert words in run.stdout


def oracle(question: str, _number: int) -> Reply:
    return says("no" if question.startswith("Description") else "words of any kind")


def test_the_job_writes_labels_and_no_key_and_its_answers_serve_again(
    finished: Project, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("ORACLE_KEY", "key-of-the-oracle")
    project = finished.copy(tmp_path / "project")
    layout = Layout(project.results)
    target = str(layout.labels("model", RUN, 1).relative_to(project.folder))
    with chat_server(oracle) as server:

        def label(contexts: int) -> str:
            model = {
                "endpoint": server.endpoint, "name": "oracle", "key_variable": "ORACLE_KEY", "features": 3,
                "contexts": contexts,
            }  # fmt: skip
            study = project.config("asked", labels={"model": model})
            run = project.snakemake(target, "--allowed-rules", "label_with_model", study=study)
            assert run.returncode == 0, run.stdout[-4000:]
            return run.stdout

        assert "asks http://127.0.0.1" in label(2)
        n = len(server.bodies)
        label(3)
    assert {each["Authorization"] for each in server.headers} == {"Bearer key-of-the-oracle"}
    assert len(server.questions) == len(set(server.questions)) > n > 3
    rows = read_table(layout.labels("model", RUN, 1)).to_pylist()
    assert [(row["source"], row["kind"], row["label"]) for row in rows] == [
        ("oracle", "text", "words of any kind")
    ] * 3
    assert {row["recall"] for row in rows} == {0} and all(0 <= row["output"] <= 1 for row in rows)
    answers = layout.label_answers(RUN, 1).read_text().splitlines()
    assert sorted(json.loads(line)["question"] for line in answers) == sorted(server.questions)
    assert [file for file in project.folder.rglob("*") if contains(file, b"key-of-the-oracle")] == []
    assert list(find_damage(project.results)) == []


def contains(file: Path, key: bytes) -> bool:
    return file.is_file() and key in file.read_bytes()
