"""Cross-layer transcoders: one job trains all layers, one scores them, and prompts are traced through them. Other
stages leave them out."""

import json
import re
from pathlib import Path

import pytest
from tests.workflow.project import Project

from circuitloom.core.checksums import find_damage
from circuitloom.core.tables import read_table
from circuitloom.dictionaries.cross_layer import load_cross_layer_transcoder

pytestmark = pytest.mark.slow

RUN = "clt-batchtopk4-64-budgetall-tokens20480"
SWEEP = {"clt": {"kind": "clt", "act": "batchtopk", "k": 4, "width": 64, "budget": "all", "tokens": 20_480}}


def jobs(output: str) -> dict[str, int]:
    """Number of jobs of each rule that a dry run lists."""
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


def test_a_sweep_has_one_job_for_all_layers(fresh: Project) -> None:
    for grouped in (True, False):
        study = fresh.config("clt", dictionaries=SWEEP, resources={"group_jobs": grouped})
        run = fresh.snakemake("--dry-run", study=study)
        assert run.returncode == 0, run.stdout
        listed = jobs(run.stdout)
        assert (listed["train_clt"], listed["evaluate_clt"], listed["train_topk"]) == (1, 1, 2)
        assert listed["evaluate_topk"] == (1 if grouped else 2)
        # the row of all layers replaced comes from the same job
        assert listed.get("evaluate_together") == (None if grouped else 2)
        # a layer's feature tables need only the features that read it
        assert listed["tabulate_clt"] == (1 if grouped else 2)


def test_a_trained_transcoder_is_scored_layer_by_layer_and_together_and_traced(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    study = project.config("clt", dictionaries=SWEEP)
    run = project.snakemake("evaluation", study=study)
    assert run.returncode == 0, run.stdout[-4000:]
    assert "train_topk" not in run.stdout
    folder = project.results / "dictionaries" / RUN
    transcoder = load_cross_layer_transcoder(folder)
    assert transcoder.writers == {0: [0], 1: [0, 1]}
    assert json.loads((folder / "layer1" / "config.json").read_text())["run"]["budget"] == "all"
    histories = [read_table(folder / f"layer{layer}" / "history.parquet").to_pylist() for layer in (0, 1)]
    for layer, history in enumerate(histories):
        assert [row["step"] for row in history] == [10, 20]
        assert {row["layer"] for row in history} == {layer}
    # 8 active features per token in both layers together, in the layers where they are needed
    assert 7.5 < sum(history[-1]["l0"] for history in histories) <= 8
    rows = read_table(project.results / "evaluation" / "metric.parquet").to_pylist()
    own = {row["layer"]: row for row in rows if row["run"] == RUN}
    assert set(own) == {0, 1, -1}
    # after 20 steps, the threshold that replaces the budget is still below its final value
    assert own[0]["l0"] + own[1]["l0"] > 8
    assert all(row["fvu"] < 1 for row in own.values())
    matched = read_table(project.results / "evaluation" / "concept" / "clt" / "feature_concept.parquet")
    assert set(matched["layer"].to_pylist()) == {0, 1}
    assert list(find_damage(project.results)) == []
    again = project.snakemake("evaluation", "--dry-run", study=study)
    assert "train_clt" not in again.stdout
    prompts = {"crossed": {"text": "he was caught by the guard .", "run": RUN}}
    study = project.config("traced", dictionaries=SWEEP, circuits={"prompts": prompts})
    run = project.snakemake("results/tiny/circuits/crossed/trace.parquet", study=study)
    assert run.returncode == 0, run.stdout[-4000:]
    [row] = read_table(project.results / "circuits" / "crossed" / "trace.parquet").to_pylist()
    assert row["run"] == RUN and row["n_active"] > 0
    assert row["identity_error"] < 1e-4 and row["frozen_error"] < 1e-4
