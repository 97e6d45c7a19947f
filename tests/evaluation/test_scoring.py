from statistics import fmean

import numpy as np
import pytest
import torch
from tests.evaluation.inputs import make_dictionary, make_held_out

from circuitloom.config import Evaluation
from circuitloom.core.layout import ALL_LAYERS
from circuitloom.core.tables import BASELINE, DENSITY_HISTOGRAM, METRIC, write_table
from circuitloom.evaluation import scoring
from circuitloom.evaluation.scoring import (
    Shortcuts,
    baseline_rows,
    find_shortcuts,
    histogram_rows,
    metric_row,
    read_baselines,
    score_runs,
    site_means,
)
from circuitloom.language_model.hooks import Site, capture, edited


@pytest.fixture(scope="module")
def held_out():
    return make_held_out(sequences=7)


@pytest.fixture(scope="module")
def baselines(model, held_out):
    rows = baseline_rows(model, ["mlp_out"], [0, 1, 2], held_out, Evaluation(batch=3))
    return {row["layer"]: row for row in rows}


def cross_entropy(model, held_out):
    """Of predictions from scored positions, in one batch."""
    logits = model.logits(held_out.token)[:, :-1].double()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), held_out.token[:, 1:].flatten(), reduction="none"
    )
    return float(losses[held_out.scored[:, :-1].flatten()].mean())


def test_the_row_of_a_layer_equals_numpy_on_the_entire_set(model, held_out, baselines):
    layer, dictionary = 1, make_dictionary(model, 1)
    row = metric_row(
        "run", layer, score_runs(model, {"run": {layer: dictionary}}, held_out, 3)["run"], baselines[layer]
    )
    seen = capture(model, held_out.token, [Site("mlp_in", layer), Site("mlp_out", layer)])
    x, y = (seen[Site(name, layer)][held_out.scored] for name in ("mlp_in", "mlp_out"))
    z, y_hat = dictionary.encode(x).numpy(), dictionary(x).double().numpy()
    y = y.double().numpy()
    assert row["n_tokens"] == len(y)
    assert row["l0"] == pytest.approx((z != 0).sum(1).mean())
    assert row["fvu"] == pytest.approx(((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(), rel=1e-5)
    assert row["alive"] == pytest.approx((z != 0).any(0).mean())
    assert row["density_over_10_percent"] == pytest.approx(((z != 0).mean(0) > 0.1).mean())
    splice = lambda x, y: torch.where(held_out.scored[..., None], dictionary(x), y)  # noqa: E731
    with edited(model, {Site("mlp_out", layer): splice}):
        ce = cross_entropy(model, held_out)
    assert row["ce"] == pytest.approx(ce, rel=1e-5)
    assert row["ce_original"] == pytest.approx(cross_entropy(model, held_out), rel=1e-5)
    assert row["delta_ce"] == pytest.approx(row["ce"] - row["ce_original"])
    expected = (row["ce_zero"] - row["ce"]) / (row["ce_zero"] - row["ce_original"])
    assert row["ce_recovered_zero"] == pytest.approx(expected)
    assert row["kl"] > 0


def test_scores_do_not_depend_on_other_runs_or_the_batch_size(model, held_out):
    runs = {f"seed{seed}": {0: make_dictionary(model, 0, seed)} for seed in range(3)}
    together = score_runs(model, runs, held_out, 2)
    for run, layers in runs.items():
        alone = score_runs(model, {run: layers}, held_out, 100)[run]
        assert together[run].prediction.ce == pytest.approx(alone.prediction.ce, rel=1e-6)
        assert together[run].prediction.kl == pytest.approx(alone.prediction.kl, rel=1e-5)
        assert together[run].reconstruction[0].fvu == pytest.approx(alone.reconstruction[0].fvu, rel=1e-6)
        assert torch.equal(together[run].firing[0].fires, alone.firing[0].fires)


def test_a_perfect_reconstruction_recovers_everything(model, held_out, baselines):
    perfect = make_dictionary(
        model, 1, site_in="mlp_out", act="relu", k=None,
        W_enc=torch.cat([torch.eye(16), -torch.eye(16)]), b_enc=torch.zeros(32),
        W_dec=torch.cat([torch.eye(16), -torch.eye(16)]), b_dec=torch.zeros(16),
    )  # fmt: skip
    row = metric_row("sae", 1, score_runs(model, {"sae": {1: perfect}}, held_out, 4)["sae"], baselines[1])
    assert row["fvu"] == pytest.approx(0, abs=1e-9)
    assert row["ce_recovered_zero"] == pytest.approx(1, abs=1e-4)
    assert row["kl"] == pytest.approx(0, abs=1e-6)
    assert (row["l0"], row["cosine"], row["relative_bias"]) == pytest.approx((16, 1, 1))


def test_dictionaries_that_output_zero_or_the_mean_score_as_the_ablations(model, held_out, baselines):
    mean = site_means(model, [Site("mlp_out", 1)], held_out, 2)[Site("mlp_out", 1)].float()
    silent = torch.full((40,), -1e3)
    runs = {
        "zero": {1: make_dictionary(model, 1, b_enc=silent, b_dec=torch.zeros(16))},
        "mean": {1: make_dictionary(model, 1, b_enc=silent, b_dec=mean)},
    }
    scores = score_runs(model, runs, held_out, 4)
    for run in runs:
        row = metric_row(run, 1, scores[run], baselines[1])
        assert row["ce"] == pytest.approx(row[f"ce_{run}"], rel=1e-6)
        assert row["kl"] == pytest.approx(row[f"kl_{run}"], rel=1e-4)
        assert row[f"ce_recovered_{run}"] == pytest.approx(0, abs=1e-4)
    assert scores["mean"].reconstruction[1].fvu == pytest.approx(1, abs=1e-5)


def test_the_row_of_all_layers_has_means_over_layers(model, held_out, baselines):
    layers = {layer: make_dictionary(model, layer, layer) for layer in range(3)}
    scored = score_runs(model, {"run": layers}, held_out, 4)["run"]
    row = metric_row("run", ALL_LAYERS, scored, baselines[ALL_LAYERS])
    assert row["fvu"] == pytest.approx(fmean(sums.fvu for sums in scored.reconstruction.values()))
    splices = {
        Site("mlp_out", layer): lambda x, y, d=dictionary: torch.where(held_out.scored[..., None], d(x), y)
        for layer, dictionary in layers.items()
    }
    with edited(model, splices):
        assert row["ce"] == pytest.approx(cross_entropy(model, held_out), rel=1e-5)
    zero = lambda _x, y: torch.where(held_out.scored[..., None], 0.0, y)  # noqa: E731
    with edited(model, {Site("mlp_out", layer): zero for layer in range(3)}):
        assert row["ce_zero"] == pytest.approx(cross_entropy(model, held_out), rel=1e-5)


def test_means_are_over_scored_positions_in_the_original_model(model, held_out):
    site = Site("mlp_out", 2)
    expected = capture(model, held_out.token, [site])[site][held_out.scored].mean(0)
    np.testing.assert_allclose(site_means(model, [site], held_out, 3)[site], expected, rtol=1e-4, atol=1e-6)


def test_only_mlp_out_of_several_layers_has_a_baseline_of_all_layers(model, held_out):
    config = Evaluation(batch=4)
    assert [row["layer"] for row in baseline_rows(model, ["mlp_out"], [1], held_out, config)] == [1]
    assert [row["layer"] for row in baseline_rows(model, ["resid_mid"], [0, 1], held_out, config)] == [0, 1]
    apart = Evaluation(batch=4, together=False)
    assert [row["layer"] for row in baseline_rows(model, ["mlp_out"], [0, 1], held_out, apart)] == [0, 1]


def test_rows_fit_their_tables(model, held_out, baselines, tmp_path):
    scored = score_runs(model, {"run": {1: make_dictionary(model, 1)}}, held_out, 4)["run"]
    write_table(METRIC, [metric_row("run", 1, scored, baselines[1])], tmp_path / "metric.parquet")
    rows = list(histogram_rows("run", 1, scored))
    write_table(DENSITY_HISTOGRAM, rows, tmp_path / "density_histogram.parquet")
    assert sum(row["n_features"] for row in rows) == 40
    write_table(BASELINE, list(baselines.values()), tmp_path / "baseline.parquet")
    assert read_baselines([tmp_path / "baseline.parquet"])["mlp_out", 1] == baselines[1]


def test_shortcuts_change_no_score(any_model, held_out, monkeypatch):
    assert find_shortcuts(any_model, held_out.token[:1]) == Shortcuts(resume=True, unembed=True)
    runs = {layer: {layer: make_dictionary(any_model, layer, layer)} for layer in range(3)}
    runs["all"] = {layer: make_dictionary(any_model, layer, layer) for layer in range(3)}
    quick = score_runs(any_model, runs, held_out, 3)
    monkeypatch.setattr(scoring, "find_shortcuts", lambda *_: Shortcuts(resume=False, unembed=False))
    for run, score in score_runs(any_model, runs, held_out, 3).items():
        assert quick[run].prediction.n == score.prediction.n
        assert quick[run].prediction.ce == pytest.approx(score.prediction.ce, rel=1e-6)
        assert quick[run].prediction.kl == pytest.approx(score.prediction.kl, rel=1e-4)
        assert quick[run].reconstruction.keys() == score.reconstruction.keys()
        for layer, sums in score.reconstruction.items():
            assert quick[run].reconstruction[layer].fvu == pytest.approx(sums.fvu, rel=1e-5)


def test_a_model_whose_shortcuts_change_logits_takes_none(model, held_out):
    token, first, last = held_out.token[:1], model.mlp(0), model.block(2)
    seen = {}
    # as in models whose later layers reuse keys and values of earlier ones
    hooks = [
        first.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0])),
        last.register_forward_hook(lambda _m, _args, y: y + seen.pop("x", 0)),
        model.module.register_forward_hook(lambda _m, _args, y: setattr(y, "logits", y.logits.tanh())),
    ]
    try:
        assert find_shortcuts(model, token) == Shortcuts(resume=False, unembed=False)
    finally:
        for hook in hooks:
            hook.remove()


def test_earlier_blocks_do_not_run_again(model, held_out, monkeypatch):
    runs = {layer: {layer: make_dictionary(model, layer)} for layer in range(3)}
    calls = [0, 0, 0]

    def count(layer):
        calls[layer] += 1

    hooks = [
        model.mlp(layer).register_forward_pre_hook(lambda *_, layer=layer: count(layer)) for layer in range(3)
    ]
    monkeypatch.setattr(scoring, "find_shortcuts", lambda *_: Shortcuts(resume=True, unembed=True))
    score_runs(model, runs, held_out, 100)
    for hook in hooks:
        hook.remove()
    # the original pass, and one pass from each layer on
    assert calls == [2, 3, 4]
    assert "forward" not in vars(model.block(0))
