"""circuit-tracer's graph of a prompt, through the transcoders that we export, is our graph."""

import argparse
import json
from pathlib import Path

import pytest
from benchmarks.attribution import PEER, differences, run_in, run_ours
from tests.exchange.results import random_dictionary, write_results
from tests.exchange.test_peers import peer_python
from tests.models import D_MODEL, LAYERS, tiny_llama

from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.exchange.export import export_run
from circuitloom.exchange.stored_run import StoredRun
from circuitloom.language_model.anatomy import read_anatomy, write_anatomy
from circuitloom.language_model.model import load_model

pytestmark = pytest.mark.exchange
PROMPT = [1, 9, 20, 31, 7, 9, 44, 12]
"""Tokens: a BOS and seven words."""


def transcoders(act: str, skip: bool, reads: str) -> dict[int, Dictionary]:
    """Random transcoders whose outputs are small, so that the model's own values stay of order 1."""
    made = {}
    for layer in range(LAYERS):
        dictionary = random_dictionary(layer, act, skip, d=D_MODEL, width=40, site_in=reads)
        changes = {"W_dec": dictionary.W_dec / 10, "b_dec": dictionary.b_dec / 10}
        changes |= {"W_skip": dictionary.W_skip / 10} if dictionary.W_skip is not None else {}
        made[layer] = Dictionary(**{**vars(dictionary), **changes})
    return made


@pytest.mark.parametrize("reads", ["mlp_in", "resid_mid"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("act", ["relu", "threshold"])
def test_the_graph_of_circuit_tracer_is_ours(act: str, skip: bool, reads: str, tmp_path: Path) -> None:
    python, made = peer_python("circuit_tracer"), transcoders(act, skip, reads)
    if not made[0].is_transcoder:
        pytest.skip(f"this version has no transcoders that read {reads}")
    model = tiny_llama(tmp_path / "model")
    write_anatomy(load_model(model, device="cpu").anatomy, model)
    results = write_results(tmp_path / "study", made, anatomy=read_anatomy(model))
    export_run("circuit-tracer", StoredRun(results, "some"), tmp_path / "set", model_name=str(model))
    prompt, length = tmp_path / "prompt.json", len(PROMPT)
    prompt.write_text(json.dumps(PROMPT))
    ours, theirs = (tmp_path / f"{side}{length}.safetensors" for side in ("ours", "theirs"))
    run_ours(
        argparse.Namespace(
            run=results / "dictionaries" / "some", model=model, prompt=prompt, threads=1, repeats=1,
            side="adjacency", save=ours,
        )
    )  # fmt: skip
    options = ["--repeats=1", "--threads=1", "--batch=32", f"--save={theirs}"]
    run_in(str(python), PEER, [str(tmp_path / "set"), str(model), str(prompt), *options], {})
    found = differences(tmp_path, length)
    assert found["only"] == 0 and found["common"] > 100
    assert found["same_logits"]
    assert found["adjacency"] <= 1e-5 * found["largest"]
    assert max(found["replacement_difference"], found["completeness_difference"]) < 1e-4
