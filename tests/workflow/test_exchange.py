"""The stage `exchange` exports what the study names, and nothing unless asked."""

import json
import re
from pathlib import Path

import pytest
import torch
from tests.exchange.results import random_dictionary, write_results, write_scores
from tests.workflow.project import Project

from circuitloom.core.checksums import find_damage
from circuitloom.dictionaries.dictionary import load_dictionary

RUN = "tc-topk8-128"


def test_exports_are_off_unless_the_study_asks(fresh: Project) -> None:
    assert "export_dictionaries" not in fresh.snakemake("--dry-run").stdout
    study = fresh.config("exported", exchange={"formats": ["sparsify"]})
    run = fresh.snakemake("exchange", "--dry-run", study=study)
    assert run.returncode == 0, run.stdout
    # both runs
    assert re.search(r"^export_dictionaries +2$", run.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (
            {"formats": ["saelens"], "runs": ["other"]},
            "exchange.runs: there is no run other; choose from tc-topk8-128",
        ),
        (
            {"formats": ["saelens"]},
            "exchange.formats: SAELens has no topk transcoder, and tc-topk8-128 is one",
        ),
        ({"formats": ["circuit-tracer"]}, "circuit-tracer has transcoders only, and sae-topk8-128 has SAEs"),
        ({"formats": ["gguf"]}, "exchange.formats"),
    ],
)
def test_what_a_format_cannot_hold_stops_the_start(fresh: Project, exchange: dict, words: str) -> None:
    run = fresh.snakemake("--dry-run", study=fresh.config("refused", exchange=exchange))
    assert run.returncode != 0
    assert words in run.stdout


def test_the_job_exports_and_records_its_files(fresh: Project) -> None:
    made = {layer: random_dictionary(layer, "topk", d=32, width=128) for layer in (0, 1)}
    results: Path = fresh.results
    write_results(results, made, run=RUN)
    for layer in (0, 1, -1):
        write_scores(results, RUN, layer, fvu=0.5, alive=1.0)
    study = fresh.config(
        "exported", exchange={"formats": ["circuit-tracer"], "runs": [RUN], "license": "mit"}
    )
    # what the export reads is made up, and Snakemake would make it
    run = fresh.snakemake("exchange", "--allowed-rules", "export_dictionaries", "exchange", study=study)
    assert run.returncode == 0, run.stdout[-4000:]
    folder = results / "exchange" / RUN / "circuit-tracer"
    assert json.loads((folder / "export.json").read_text())["run"] == RUN
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "| all, replaced at once | 0.5 |" in card
    assert torch.equal(load_dictionary(results / "dictionaries" / RUN / "layer1").W_enc, made[1].W_enc)
    assert list(find_damage(results)) == []
    (folder / "layer_1.safetensors").write_bytes(b"")
    assert [line.partition(":")[0] for line in find_damage(results)] == [str(folder / "layer_1.safetensors")]
