"""Dictionaries of what the MLP adds are scored, and compared with ablations, at that site."""

import numpy as np
import pytest
import torch
from tests.architectures import tiny_architecture
from tests.evaluation.inputs import make_dictionary, make_held_out
from tests.evaluation.test_scoring import cross_entropy

from circuitloom.config import Evaluation
from circuitloom.config.activations import MLP_OUTPUTS, Outliers
from circuitloom.core.layout import ALL_LAYERS
from circuitloom.core.tables import BASELINE, write_table
from circuitloom.evaluation.score_rows import read_baselines, score_rows
from circuitloom.evaluation.scoring import baseline_rows, norm_bounds
from circuitloom.language_model.hooks import Site, capture, edited
from circuitloom.language_model.model import load_model

LAYERS = [0, 1, 2]


@pytest.fixture(scope="module", params=["gemma3_text", "granite"])
def changed(request, tmp_path_factory):
    """A model in which mlp_added differs from mlp_out."""
    folder = tmp_path_factory.mktemp("model") / request.param
    return load_model(tiny_architecture(request.param, folder), device="cpu")


@pytest.fixture(scope="module")
def held_out():
    return make_held_out(sequences=7)


@pytest.fixture(scope="module")
def baselines(changed, held_out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    for site in MLP_OUTPUTS:
        rows = baseline_rows(changed, [site], LAYERS, held_out, Evaluation(batch=3))
        write_table(BASELINE, rows, folder / f"{site}.parquet")
    return read_baselines([folder / f"{site}.parquet" for site in MLP_OUTPUTS])


def spliced(model, held_out, replacements):
    """Cross-entropy with functions (x, y) in place of sites, at scored positions."""
    edits = {
        site: lambda x, y, f=f: torch.where(held_out.scored[..., None], f(x, y), y)
        for site, f in replacements.items()
    }
    with edited(model, edits):
        return cross_entropy(model, held_out)


def reconstruction(dictionary):
    return lambda x, y: dictionary(y if dictionary.is_sae else x)


def test_runs_of_both_sites_are_scored_at_their_own_site(changed, held_out, baselines):
    made = {
        ("tc", "mlp_out"): {}, ("tc", "mlp_added"): {},
        ("sae", "mlp_added"): {"site_in": "mlp_added"},
    }  # fmt: skip
    dictionaries = {
        (f"{kind} {site}", layer): make_dictionary(changed, layer, layer, site_out=site, **keys)
        for (kind, site), keys in made.items()
        for layer in LAYERS
    }
    keys = [
        (run, layer) for run in ("tc mlp_out", "tc mlp_added", "sae mlp_added") for layer in (1, ALL_LAYERS)
    ]
    rows = score_rows(changed, dictionaries, keys, baselines, held_out, 3)
    for (run, layer), scored in rows.items():
        kind, site = run.split()
        row = scored.metric
        replaced = LAYERS if layer == ALL_LAYERS else [layer]

        splices = {Site(site, each): reconstruction(dictionaries[run, each]) for each in replaced}
        ce = spliced(changed, held_out, splices)
        assert row["ce"] == pytest.approx(ce, rel=1e-5)
        zero = spliced(changed, held_out, {Site(site, each): lambda _x, y: 0 * y for each in replaced})
        assert row["ce_zero"] == pytest.approx(zero, rel=1e-5)
        means = {each: torch.tensor(baselines[site, "mlp_in", each]["mean"]).float() for each in replaced}
        mean = spliced(changed, held_out, {Site(site, i): lambda _x, _y, m=m: m for i, m in means.items()})
        assert row["ce_mean"] == pytest.approx(mean, rel=1e-5)
        expected = (row["ce_mean"] - row["ce"]) / (row["ce_mean"] - row["ce_original"])
        assert row["ce_recovered_mean"] == pytest.approx(expected)
        if layer != ALL_LAYERS:
            seen = capture(changed, held_out.token, [Site("mlp_in", 1), Site(site, 1)])
            x, y = (seen[Site(name, 1)][held_out.scored] for name in ("mlp_in", site))
            y_hat = dictionaries[run, 1](y if kind == "sae" else x)
            fvu = (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
            assert row["fvu"] == pytest.approx(float(fvu), rel=1e-4)
    # zero stays zero through a norm or a factor, a mean does not stay the mean
    assert baselines["mlp_out", "mlp_in", 1]["ce_zero"] == pytest.approx(
        baselines["mlp_added", "mlp_in", 1]["ce_zero"], rel=1e-5
    )
    if changed.residual_multiplier == 1:
        assert baselines["mlp_out", "mlp_in", 1]["ce_mean"] != pytest.approx(
            baselines["mlp_added", "mlp_in", 1]["ce_mean"], rel=1e-6
        )


def test_tokens_are_left_out_by_the_norms_of_the_mlps_input_and_of_what_it_adds(changed, held_out):
    site, outliers = Site("mlp_added", 1), Outliers(action="drop", above=1.02)
    bounds = norm_bounds(changed, [site], held_out, 3, outliers)
    seen = capture(changed, held_out.token, [Site("mlp_in", 1), site])
    medians = [float(np.median(value[held_out.scored].norm(dim=1))) for value in seen.values()]
    assert bounds[site][:2] == pytest.approx([1.02 * median for median in medians], rel=1e-5)
    kept = held_out.scored & bounds[site].within(seen[Site("mlp_in", 1)], seen[site])
    assert int(kept.sum()) < held_out.n_tokens
    [row] = baseline_rows(changed, ["mlp_added"], [1], held_out, Evaluation(batch=3), outliers)
    np.testing.assert_allclose(row["mean"], seen[site][kept].mean(0), rtol=1e-4, atol=1e-6)
    with edited(changed, {site: lambda _x, y: torch.where(kept[..., None], 0.0, y)}):
        assert row["ce_zero"] == pytest.approx(cross_entropy(changed, held_out), rel=1e-5)
