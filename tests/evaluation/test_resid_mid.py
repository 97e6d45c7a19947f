"""Transcoders that read the residual stream before the MLP's norm are scored on what they read."""

import numpy as np
import pytest
import torch
from tests.architectures import tiny_architecture
from tests.evaluation.inputs import make_dictionary, make_held_out
from tests.evaluation.test_scoring import cross_entropy

from circuitloom.config import Evaluation
from circuitloom.config.activations import MLP_INPUTS, Outliers
from circuitloom.core.layout import ALL_LAYERS
from circuitloom.core.tables import BASELINE, write_table
from circuitloom.evaluation.score_rows import read_baselines, score_rows
from circuitloom.evaluation.scoring import baseline_rows
from circuitloom.language_model.hooks import Site, capture, find_module
from circuitloom.language_model.model import load_model

LAYERS = [0, 1, 2]


@pytest.fixture(scope="module", params=["gpt2", "gemma3_text"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / request.param
    return load_model(tiny_architecture(request.param, folder), device="cpu")


@pytest.fixture(scope="module")
def held_out():
    return make_held_out(sequences=7)


def by_hand(model, held_out, dictionaries, kept=None):
    """Cross-entropy with MLP outputs replaced by torch's own hooks: each dictionary reads the norm's input."""
    handles, read = [], {}
    kept = held_out.scored if kept is None else kept
    for layer, dictionary in dictionaries.items():

        def keep(_module, args, layer=layer):
            read[layer] = args[0]

        def replace(_module, _args, output, layer=layer, dictionary=dictionary):
            return torch.where(kept[..., None], dictionary(read[layer]), output)

        norm = model.block(layer).get_submodule(model.anatomy.norm_mlp)
        handles.append(norm.register_forward_pre_hook(keep))
        handles.append(find_module(model, Site(dictionary.site_out, layer)).register_forward_hook(replace))
    try:
        return cross_entropy(model, held_out)
    finally:
        for handle in handles:
            handle.remove()


def make_baselines(model, held_out, folder, site, outliers=None):
    rows = baseline_rows(
        model, [site], LAYERS, held_out, Evaluation(batch=3), outliers, {site: list(MLP_INPUTS)}
    )
    write_table(BASELINE, rows, folder / "baseline.parquet")
    return read_baselines([folder / "baseline.parquet"])


@pytest.mark.parametrize("site", ["mlp_out", "mlp_added"])
def test_runs_that_read_resid_mid_are_scored_like_a_hand_made_pass(model, held_out, site, tmp_path):
    baselines = make_baselines(model, held_out, tmp_path, site)
    dictionaries = {
        (reads, layer): make_dictionary(model, layer, layer, site_in=reads, site_out=site)
        for reads in MLP_INPUTS
        for layer in LAYERS
    }
    keys = [("resid_mid", 1), ("resid_mid", ALL_LAYERS), ("mlp_in", 1)]
    rows = score_rows(model, dictionaries, keys, baselines, held_out, 3)
    own = {layer: dictionaries["resid_mid", layer] for layer in LAYERS}
    assert rows["resid_mid", 1].metric["ce"] == pytest.approx(by_hand(model, held_out, {1: own[1]}), rel=1e-5)
    together = rows["resid_mid", ALL_LAYERS].metric["ce"]
    assert together == pytest.approx(by_hand(model, held_out, own), rel=1e-5)
    seen = capture(model, held_out.token, [Site("resid_mid", 1), Site(site, 1)])
    x, y = (seen[Site(name, 1)][held_out.scored] for name in ("resid_mid", site))
    fvu = (y - own[1](x)).square().sum() / (y - y.mean(0)).square().sum()
    assert rows["resid_mid", 1].metric["fvu"] == pytest.approx(float(fvu), rel=1e-4)
    assert rows["mlp_in", 1].metric["fvu"] != pytest.approx(float(fvu), rel=1e-2)
    # all tokens are ablated, whatever the run reads
    assert rows["resid_mid", 1].metric["ce_mean"] == rows["mlp_in", 1].metric["ce_mean"]


def test_outliers_of_a_run_are_those_of_what_it_reads(model, held_out, tmp_path):
    site = "mlp_added"
    baselines = make_baselines(model, held_out, tmp_path, site, Outliers(action="drop", above=1.15))
    dictionaries = {
        (reads, layer): make_dictionary(model, layer, layer, site_in=reads, site_out=site)
        for reads in MLP_INPUTS
        for layer in LAYERS
    }
    rows = score_rows(model, dictionaries, [(reads, 1) for reads in MLP_INPUTS], baselines, held_out, 3)
    seen = capture(model, held_out.token, [Site(name, 1) for name in (*MLP_INPUTS, site)])
    norms = {place.name: value.norm(dim=-1) for place, value in seen.items()}
    inside = {name: norm <= 1.15 * float(np.median(norm[held_out.scored])) for name, norm in norms.items()}
    kept = {reads: held_out.scored & inside[reads] & inside[site] for reads in MLP_INPUTS}
    assert not torch.equal(kept["mlp_in"], kept["resid_mid"])
    for reads, mask in kept.items():
        metric = rows[reads, 1].metric
        assert metric["n_left_out"] == held_out.n_tokens - int(mask.sum())
        x, y = (seen[Site(name, 1)][mask] for name in (reads, site))
        y_hat = dictionaries[reads, 1](x)
        fvu = (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
        assert metric["fvu"] == pytest.approx(float(fvu), rel=1e-4)
        np.testing.assert_allclose(baselines[site, reads, 1]["mean"], y.mean(0), rtol=1e-4, atol=1e-5)
    own = {1: dictionaries["resid_mid", 1]}
    expected = by_hand(model, held_out, own, kept["resid_mid"])
    assert rows["resid_mid", 1].metric["ce"] == pytest.approx(expected, rel=1e-5)
