"""circuit-tracer's graph of a prompt, through the transcoders or the cross-layer transcoder that we export, is ours."""

import argparse
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.attribution import differences, run_ours
from safetensors.torch import load_file
from tests.exchange.environments import peer_python
from tests.exchange.results import random_dictionary, random_transcoder, write_results
from tests.models import D_MODEL, LAYERS, tiny_llama

from circuitloom.dictionaries.cross_layer import LayerDictionary
from circuitloom.exchange.export import export_run
from circuitloom.exchange.stored_run import StoredRun
from circuitloom.language_model.anatomy import read_anatomy, write_anatomy
from circuitloom.language_model.model import load_model

pytestmark = pytest.mark.exchange
SCRIPT = Path(__file__).parent / "peers" / "trace_circuit_tracer.py"
PROMPT = [1, 9, 20, 31, 7, 9, 44, 12]
"""Tokens: a BOS and seven words."""
LENGTH = len(PROMPT)
CASES = {
    f"{act}{' skip' if skip else ''} {reads}": (act, skip, reads)
    for act in ("relu", "threshold", "topk")
    for skip in (False, True)
    for reads in ("mlp_in", "resid_mid")
}


CROSS_LAYER = {
    f"{act} {reads} across {'all layers' if reach is None else f'{reach} layers'}": (act, reads, reach)
    for act, reads, reach in (
        ("relu", "mlp_in", None), ("threshold", "resid_mid", None), ("relu", "resid_mid", 1),
    )
}  # fmt: skip


def transcoders(name: str) -> Mapping[int, LayerDictionary]:
    """Random transcoders whose outputs are small, so that the model's own values stay of order 1."""
    made: dict[int, LayerDictionary] = {}
    if name in CROSS_LAYER:
        act, reads, reach = CROSS_LAYER[name]
        whole = random_transcoder(LAYERS, act, reach=reach, d=D_MODEL, width=40, site_in=reads)
        for layer, each in whole.layers.items():
            made[layer] = replace(each, W_dec=each.W_dec / 10, b_dec=each.b_dec / 10)
        return made
    act, skip, reads = CASES[name]
    for layer in range(LAYERS):
        each = random_dictionary(layer, act, skip, d=D_MODEL, width=40, site_in=reads)
        W_skip = None if each.W_skip is None else each.W_skip / 10
        made[layer] = replace(each, W_dec=each.W_dec / 10, b_dec=each.b_dec / 10, W_skip=W_skip)
    return made


def name_tokenizer_for_transformers_4(model: Path) -> None:
    """Name the tokenizer's class as circuit-tracer's transformers 4 does. transformers 5 saves it as
    TokenizersBackend."""
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders with both sides' graphs, by case. One process of circuit-tracer traces them all."""
    python, folder = peer_python("circuit_tracer"), tmp_path_factory.mktemp("graphs")
    model = tiny_llama(folder / "model")
    name_tokenizer_for_transformers_4(model)
    write_anatomy(load_model(model, device="cpu").anatomy, model)
    prompt = folder / "prompt.json"
    prompt.write_text(json.dumps(PROMPT))
    for name in (*CASES, *CROSS_LAYER):
        case = folder / "cases" / name
        results = write_results(folder / "studies" / name, transcoders(name), anatomy=read_anatomy(model))
        export_run("circuit-tracer", StoredRun(results, "some"), case / "set", model_name=str(model))
        run_ours(
            argparse.Namespace(
                run=results / "dictionaries" / "some", model=model, prompt=prompt, threads=1, repeats=1,
                side="adjacency", save=case / f"ours{LENGTH}.safetensors",
            )
        )  # fmt: skip
    done = subprocess.run(
        [str(python), str(SCRIPT), str(folder)], text=True, capture_output=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: folder / "cases" / name for name in (*CASES, *CROSS_LAYER)}


@pytest.mark.parametrize("name", [*CASES, *CROSS_LAYER])
def test_the_graph_of_circuit_tracer_is_ours(name: str, cases: Mapping[str, Path]) -> None:
    found, skip = differences(cases[name], LENGTH), " skip " in name
    assert found["only"] == 0 and found["common"] > 20 and found["same_logits"]
    ours, theirs = (load_file(cases[name] / f"{side}{LENGTH}.safetensors") for side in ("ours", "theirs"))
    # both lists of features are sorted by layer, position and number
    torch.testing.assert_close(theirs["activation"], ours["activation"], atol=1e-5, rtol=1e-5)
    features, logits, sources = len(ours["feature"]), len(ours["logit"]), ours["adjacency"].shape[1]
    effects = torch.cat([theirs["adjacency"][:features], theirs["adjacency"][-logits:]])[:, :sources]
    difference = (ours["adjacency"] - effects).abs().amax(0) / effects.abs().max()
    first_token = features + LAYERS * LENGTH
    others = torch.arange(sources) != first_token
    assert difference[others].max() <= 1e-5
    if skip:
        # At position 0 circuit-tracer has no features and no error, but the first token acts through the skip
        # connections. Here the MLP's output at position 0 is one source.
        assert difference[first_token] > 1e-3
    else:
        assert difference[first_token] <= 1e-5
        assert max(found["replacement_difference"], found["completeness_difference"]) < 1e-4


@pytest.mark.parametrize("name", [name for name in CASES if "topk" in name])
def test_topk_keeps_k_features_per_layer_and_position(name: str, cases: Mapping[str, Path]) -> None:
    # so that circuit-tracer's TopK, which has no ReLU, and ours keep the same features
    theirs = load_file(cases[name] / f"theirs{LENGTH}.safetensors")
    assert len(theirs["feature"]) == LAYERS * (LENGTH - 1) * 3 and theirs["activation"].min() > 0
