"""Runs on what the MLP adds are trained from a cache of the MLP's inputs."""

import json

import pytest
import torch
from tests.activations.inputs import make_cache, make_order
from tests.architectures import tiny_architecture

from circuitloom.activations.store import open_activations
from circuitloom.config import Run
from circuitloom.core.tables import read_table
from circuitloom.dictionaries.dictionary import CONFIG, load_dictionary
from circuitloom.dictionaries.training.sweep import needs_model, train_sweep
from circuitloom.language_model.model import load_model

KEYS = {"width": 64, "k": 8, "batch": 256, "tokens": 256 * 60, "learning_rate": 1e-2, "precision": "float32"}
RUNS = {
    "out": {},
    "added": {"site": "mlp_added"},
    "sae": {"kind": "sae", "site": "mlp_added"},
}


@pytest.mark.parametrize("name", ["gemma3_text", "granite"])
def test_a_dictionary_of_what_the_mlp_adds_reconstructs_that(name, tmp_path):
    model = load_model(tiny_architecture(name, tmp_path / name), device="cpu")
    cache = make_cache(tmp_path / "cache", model, make_order(40), dtype="bfloat16", layers=[1])
    runs = [Run(name=each, **{**KEYS, **keys}) for each, keys in RUNS.items()]
    assert needs_model(runs[2:3], 1, cache)
    outputs = [tmp_path / "dictionaries" / run.name / "layer1" for run in runs]
    train_sweep(runs, 1, cache, model, outputs)
    rows = {}
    for site in ("mlp_in", "mlp_out", "mlp_added"):
        store = open_activations(cache, site, 1, model)
        rows[site] = next(store.batches(store.rows))
    for run, folder in zip(runs, outputs, strict=True):
        dictionary = load_dictionary(folder)
        assert (dictionary.site_in, dictionary.site_out) == (run.site_in, run.site_out)
        assert dictionary.is_transcoder == (run.kind == "transcoder")
        [output] = json.loads((folder / CONFIG).read_text())["outputs"]
        assert output == {"layer": 1, "site": run.site}
        y, other = rows[run.site], rows["mlp_out" if run.site == "mlp_added" else "mlp_added"]
        y_hat = dictionary(rows[run.site_in])
        fvu, of_other = (
            float((each - y_hat).square().sum() / (each - each.mean(0)).square().sum()) for each in (y, other)
        )
        assert fvu < 0.6 and fvu < of_other
        last = read_table(folder / "history.parquet").to_pylist()[-1]["fvu"]
        assert fvu == pytest.approx(last, rel=0.3)
        torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(64), atol=1e-4, rtol=0)
