from statistics import fmean

import numpy as np
import pytest
import torch
from tests.evaluation.inputs import make_dictionary, make_held_out
from tests.models import VOCABULARY, tiny_model

from circuitloom.config import Evaluation
from circuitloom.config.activations import Outliers
from circuitloom.core.layout import ALL_LAYERS
from circuitloom.core.tables import BASELINE, DENSITY_HISTOGRAM, METRIC, write_table
from circuitloom.evaluation import scoring
from circuitloom.evaluation.replacement import NormBounds
from circuitloom.evaluation.score_rows import (
    BaselineKey,
    histogram_rows,
    metric_row,
    read_baselines,
    score_rows,
)
from circuitloom.evaluation.scoring import baseline_rows, can_resume, norm_bounds, score_runs, site_means
from circuitloom.language_model.hooks import Site, capture, edited
from circuitloom.language_model.lm_head import LMHead, find_lm_head, own_logits
from circuitloom.language_model.model import load_model


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
    fractions = ((y - y_hat) ** 2).sum(1) / ((y - y.mean(0)) ** 2).sum(1)
    assert row["fvu_median"] == pytest.approx(np.median(fractions), rel=1e-5)
    assert row["n_left_out"] == 0
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


def test_the_stored_means_give_the_median_of_measured_means(model, held_out, baselines):
    dictionaries = {("run", layer): make_dictionary(model, layer, layer) for layer in (0, 1)}
    by_site = {BaselineKey("mlp_out", "mlp_in", layer): row for layer, row in baselines.items()}
    keys = [*dictionaries, ("run", ALL_LAYERS)]
    rows = score_rows(model, dictionaries, keys, by_site, held_out, 3)
    for run, layer in dictionaries:
        measured = score_runs(model, {"run": {layer: dictionaries[run, layer]}}, held_out, 3)["run"]
        assert rows[run, layer].metric["fvu_median"] == pytest.approx(measured.fvu_median[layer], rel=1e-6)
    assert rows["run", ALL_LAYERS].metric["fvu_median"] > 0


@pytest.fixture
def bounded(model, held_out):
    """Bounds at layer 1 that a fifth of the tokens exceed, at the MLP's input or output, and which tokens do."""
    seen = capture(model, held_out.token, [Site("mlp_in", 1), Site("mlp_out", 1)])
    norms = [seen[Site(name, 1)].norm(dim=-1) for name in ("mlp_in", "mlp_out")]
    x, y = (float(norm[held_out.scored].quantile(0.9)) for norm in norms)
    outlier = held_out.scored & ((norms[0] > x) | (norms[1] > y))
    assert 4 < int(outlier.sum()) < 20
    return {Site("mlp_out", 1): NormBounds(x, y)}, outlier


def test_outliers_keep_their_activations_and_are_not_scored(model, held_out, bounded):
    bounds, outlier = bounded
    dictionary, kept = make_dictionary(model, 1), held_out.scored & ~outlier
    score = score_runs(model, {"run": {1: dictionary}}, held_out, 3, bounds=bounds)["run"]
    seen = capture(model, held_out.token, [Site("mlp_in", 1), Site("mlp_out", 1)])
    x, y = (seen[Site(name, 1)][kept] for name in ("mlp_in", "mlp_out"))
    y_hat = dictionary(x)
    assert score.reconstruction[1].n == int(kept.sum()) == held_out.n_tokens - int(outlier.sum())
    expected = float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum())
    assert score.reconstruction[1].fvu == pytest.approx(expected, rel=1e-5)
    fractions = (y - y_hat).square().sum(1) / (y - y.mean(0)).square().sum(1)
    assert score.fvu_median[1] == pytest.approx(float(fractions.quantile(0.5)), rel=1e-4)
    splice = lambda x, y: torch.where(kept[..., None], dictionary(x), y)  # noqa: E731
    with edited(model, {Site("mlp_out", 1): splice}):
        assert score.prediction.ce == pytest.approx(cross_entropy(model, held_out), rel=1e-5)


def test_dropped_outliers_are_not_ablated_and_are_counted(model, held_out, tmp_path, capsys):
    site, outliers = Site("mlp_out", 1), Outliers(action="drop", above=1.2)
    bounds = norm_bounds(model, [site], held_out, 3, outliers)
    seen = capture(model, held_out.token, [Site("mlp_in", 1), site])
    norms = {each: value[held_out.scored].norm(dim=1) for each, value in seen.items()}
    medians = [float(np.median(norms[each])) for each in seen]
    assert bounds[site][:2] == pytest.approx([1.2 * median for median in medians], rel=1e-5)
    kept = held_out.scored & bounds[site].within(seen[Site("mlp_in", 1)], seen[site])
    left_out = held_out.n_tokens - int(kept.sum())
    assert left_out > 3
    config = Evaluation(batch=3)
    [row] = baseline_rows(model, ["mlp_out"], [1], held_out, config, outliers)
    np.testing.assert_allclose(row["mean"], seen[site][kept].mean(0), rtol=1e-4, atol=1e-6)
    zero = lambda _x, y: torch.where(kept[..., None], 0.0, y)  # noqa: E731
    with edited(model, {site: zero}):
        assert row["ce_zero"] == pytest.approx(cross_entropy(model, held_out), rel=1e-5)
    write_table(BASELINE, [row], tmp_path / "baseline.parquet")
    baselines = read_baselines([tmp_path / "baseline.parquet"])
    scored = score_rows(model, {("run", 1): make_dictionary(model, 1)}, [("run", 1)], baselines, held_out, 3)
    metric = scored["run", 1].metric
    assert (metric["n_tokens"], metric["n_left_out"]) == (int(kept.sum()), left_out)
    counted = f"at most {left_out} of {held_out.n_tokens} tokens of a layer were left out"
    assert f"circuitloom: evaluation: {counted} (activations.outliers)" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["keep", "cap"])
def test_other_actions_score_all_tokens(action, model, held_out):
    assert norm_bounds(model, [Site("mlp_out", 1)], held_out, 3, Outliers(action=action, above=1.01)) == {}


def test_a_site_that_is_not_the_mlps_output_has_one_bound(model, held_out, tmp_path):
    outliers = Outliers(action="drop", above=1.3)
    [row] = baseline_rows(model, ["resid_mid"], [0], held_out, Evaluation(batch=3), outliers)
    assert row["norm_bound_x"] is None and row["norm_bound_y"] > 0
    write_table(BASELINE, [row], tmp_path / "baseline.parquet")
    sae = make_dictionary(model, 0, site_in="resid_mid", site_out="resid_mid")
    baselines = read_baselines([tmp_path / "baseline.parquet"])
    metric = score_rows(model, {("sae", 0): sae}, [("sae", 0)], baselines, held_out, 3)["sae", 0].metric
    stream = capture(model, held_out.token, [Site("resid_mid", 0)])[Site("resid_mid", 0)][held_out.scored]
    assert metric["n_left_out"] == int((stream.norm(dim=1) > row["norm_bound_y"]).sum()) > 0


@pytest.fixture
def half_model(tmp_path):
    return load_model(tiny_model("gpt2", tmp_path / "gpt2"), "float16", device="cpu")


def test_an_activation_that_overflows_stops_the_ablation(half_model, held_out):
    half_model.module.transformer.h[1].mlp.c_proj.bias.data[0] = torch.inf
    with pytest.raises(
        ValueError,
        match=r"layer 1: mlp_out on held-out text is not finite in float16 .*; set language_model.dtype to bfloat16",
    ):
        baseline_rows(half_model, ["mlp_out"], [1], held_out, Evaluation(batch=3))


def test_a_reconstruction_that_overflows_names_its_run(half_model, held_out):
    wild = make_dictionary(half_model, 1, b_dec=torch.full((16,), 1e6))
    with pytest.raises(
        ValueError, match=r"the loss on held-out text with tc, 1 replaced is not finite in float16"
    ):
        score_runs(half_model, {("tc", 1): {1: wild}}, held_out, 3)


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
    assert read_baselines([tmp_path / "baseline.parquet"])["mlp_out", "mlp_in", 1] == baselines[1]


def test_shortcuts_change_no_score(any_model, held_out, monkeypatch):
    assert can_resume(any_model, held_out.token[:1]) and find_lm_head(any_model).divisible
    runs = {layer: {layer: make_dictionary(any_model, layer, layer)} for layer in range(3)}
    runs["all"] = {layer: make_dictionary(any_model, layer, layer) for layer in range(3)}
    quick = score_runs(any_model, runs, held_out, 3)
    own = LMHead(lambda hidden, tokens: own_logits(any_model, hidden)[:, tokens], VOCABULARY, divisible=False)
    monkeypatch.setattr(scoring, "can_resume", lambda *_: False)
    monkeypatch.setattr(scoring, "find_lm_head", lambda *_: own)
    # a group per run
    monkeypatch.setattr(scoring, "HIDDEN_BYTES", 1)
    for run, score in score_runs(any_model, runs, held_out, 3).items():
        assert quick[run].prediction.n == score.prediction.n
        assert quick[run].prediction.ce == pytest.approx(score.prediction.ce, rel=1e-6)
        assert quick[run].prediction.kl == pytest.approx(score.prediction.kl, rel=1e-4)
        assert quick[run].reconstruction.keys() == score.reconstruction.keys()
        for layer, sums in score.reconstruction.items():
            assert quick[run].reconstruction[layer].fvu == pytest.approx(sums.fvu, rel=1e-5)


def test_the_original_model_is_scored_once_in_any_number_of_groups(model, held_out, monkeypatch):
    rows = baseline_rows(model, ["mlp_out"], [0, 1, 2], held_out, Evaluation(batch=3))
    monkeypatch.setattr(scoring, "HIDDEN_BYTES", 1)
    assert baseline_rows(model, ["mlp_out"], [0, 1, 2], held_out, Evaluation(batch=3)) == rows


@pytest.mark.parametrize("bytes_per_group", [2**30, 1])
def test_the_progress_of_a_score_ends_at_its_total(model, held_out, monkeypatch, bytes_per_group):
    bars = []

    def silent(*arguments, **options):
        bars.append(progress(*arguments, **options, silent=True))
        bars[-1].counts = []
        monkeypatch.setattr(bars[-1], "update", bars[-1].counts.append)
        return bars[-1]

    progress = scoring.progress
    monkeypatch.setattr(scoring, "progress", silent)
    monkeypatch.setattr(scoring, "HIDDEN_BYTES", bytes_per_group)
    baseline_rows(model, ["mlp_out"], [0, 1, 2], held_out, Evaluation(batch=3))
    scored = bars[-1]
    assert scored.total == held_out.token.numel() * (1 + 2 * 4)
    assert sum(scored.counts) == pytest.approx(scored.total)


def test_a_model_whose_later_blocks_read_earlier_ones_is_not_resumed(model, held_out):
    token, first, last = held_out.token[:1], model.mlp(0), model.block(2)
    seen = {}
    # as in models whose later layers reuse keys and values of earlier ones
    hooks = [
        first.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0])),
        last.register_forward_hook(lambda _m, _args, y: y + seen.pop("x", 0)),
    ]
    try:
        assert not can_resume(model, token)
    finally:
        for hook in hooks:
            hook.remove()


def test_earlier_blocks_do_not_run_again(model, held_out, monkeypatch):
    runs = {layer: {layer: make_dictionary(model, layer)} for layer in range(3)}
    means = site_means(model, [Site("mlp_out", layer) for layer in runs], held_out, 100)
    calls = [0, 0, 0]

    def count(layer):
        calls[layer] += 1

    hooks = [
        model.mlp(layer).register_forward_pre_hook(lambda *_, layer=layer: count(layer)) for layer in range(3)
    ]
    monkeypatch.setattr(scoring, "can_resume", lambda *_: True)
    monkeypatch.setattr(scoring, "find_lm_head", lambda *_: LMHead(model.unembed, VOCABULARY))
    score_runs(model, runs, held_out, 100, means)
    for hook in hooks:
        hook.remove()
    # the original pass, and one pass from each layer on
    assert calls == [2, 3, 4]
    assert "forward" not in vars(model.block(0))
