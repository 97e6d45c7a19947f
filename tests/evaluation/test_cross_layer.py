"""Scores of cross-layer transcoders equal those of an edited model that is written out."""

import pytest
import torch
from tests.evaluation.inputs import make_dictionary, make_held_out
from tests.evaluation.test_scoring import cross_entropy

from circuitloom.config import Evaluation
from circuitloom.config.dictionaries import output_layers
from circuitloom.core.layout import ALL_LAYERS
from circuitloom.core.tables import BASELINE, write_table
from circuitloom.dictionaries.cross_layer import CrossLayerDictionary, CrossLayerTranscoder
from circuitloom.evaluation.replacement import NormBounds
from circuitloom.evaluation.score_rows import read_baselines, score_rows
from circuitloom.evaluation.scoring import baseline_rows, score_runs
from circuitloom.language_model.hooks import Site, capture, edited

LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def held_out():
    return make_held_out(sequences=7)


def make_transcoder(model, reach: int | None = None) -> CrossLayerTranscoder:
    layers = []
    for layer in LAYERS:
        alone = make_dictionary(model, layer, seed=layer, W_skip=0.1 * torch.eye(16))
        outputs = tuple(output_layers(LAYERS, layer, reach))
        rows = torch.randn(alone.width, len(outputs), 16, generator=torch.Generator().manual_seed(layer))
        rows[:, 0] = alone.W_dec
        fields = {name: value for name, value in vars(alone).items() if name != "W_dec"}
        layers.append(
            CrossLayerDictionary(**fields, W_dec=rows, outputs=outputs, scales=(1.0,) * len(outputs))
        )
    return CrossLayerTranscoder(layers)


def splice(held_out, y_hat):
    """An edit: `y_hat(x)` at scored positions, the current value elsewhere."""
    return lambda x, y: torch.where(held_out.scored[..., None], y_hat(x), y)


def test_all_layers_together_read_the_replaced_stream(model, held_out) -> None:
    transcoder = make_transcoder(model)
    seen = {}

    def reconstruct(layer: int):
        def y_hat(x):
            seen[layer] = x
            own = transcoder.layers[layer]
            total = own.b_dec + x @ own.W_skip.T
            for i in range(layer + 1):
                writer = transcoder.layers[i]
                total = total + writer.encode(seen[i]) @ writer.W_dec[:, layer - i]
            return total

        return y_hat

    edits = {Site("mlp_out", layer): splice(held_out, reconstruct(layer)) for layer in LAYERS}
    with edited(model, edits):
        expected = cross_entropy(model, held_out)
    score = score_runs(model, {"clt": transcoder}, held_out, 3)["clt"]
    assert score.prediction.ce == pytest.approx(expected, rel=1e-5)
    for layer in LAYERS:
        z = transcoder.layers[layer].encode(seen[layer][held_out.scored])
        assert score.firing[layer].l0 == pytest.approx(float((z != 0).sum(1).double().mean()))


def test_one_output_is_reconstructed_from_the_original_model(model, held_out, tmp_path) -> None:
    transcoder = make_transcoder(model)
    write_table(
        BASELINE, baseline_rows(model, ["mlp_out"], LAYERS, held_out, Evaluation(batch=3)), tmp_path / "b"
    )
    dictionaries = {("clt", layer): each for layer, each in transcoder.layers.items()}
    keys = [*dictionaries, ("clt", ALL_LAYERS)]
    rows = score_rows(model, dictionaries, keys, read_baselines([tmp_path / "b"]), held_out, 3)
    sites = [Site(name, layer) for name in ("mlp_in", "mlp_out") for layer in LAYERS]
    seen = capture(model, held_out.token, sites)
    y_hat = transcoder({layer: seen[Site("mlp_in", layer)] for layer in LAYERS})
    for layer in LAYERS:
        metric = rows["clt", layer].metric
        y = seen[Site("mlp_out", layer)][held_out.scored].double()
        error = (y - y_hat[layer][held_out.scored]).square().sum()
        fvu = float(error / (y - y.mean(0)).square().sum())
        assert metric["fvu"] == pytest.approx(fvu, rel=1e-5)
        with edited(model, {Site("mlp_out", layer): splice(held_out, lambda x, at=layer: y_hat[at])}):
            assert metric["ce"] == pytest.approx(cross_entropy(model, held_out), rel=1e-5)
        z = transcoder.layers[layer].encode(seen[Site("mlp_in", layer)][held_out.scored])
        assert metric["l0"] == pytest.approx(float((z != 0).sum(1).double().mean()))
        assert metric["alive"] == pytest.approx(float((z != 0).any(0).double().mean()))
        assert (
            sum(row["n_features"] for row in rows["clt", layer].histogram) == transcoder.layers[layer].width
        )
    together = score_runs(model, {"clt": transcoder}, held_out, 7)["clt"]
    assert rows["clt", ALL_LAYERS].metric["ce"] == pytest.approx(together.prediction.ce, rel=1e-6)


def test_without_reach_the_scores_are_those_of_transcoders(model, held_out, tmp_path) -> None:
    transcoder = make_transcoder(model, reach=0)
    alone = {
        layer: make_dictionary(model, layer, seed=layer, W_skip=each.W_skip)
        for layer, each in transcoder.layers.items()
    }
    write_table(
        BASELINE, baseline_rows(model, ["mlp_out"], LAYERS, held_out, Evaluation(batch=3)), tmp_path / "b"
    )
    dictionaries = {("clt", layer): each for layer, each in transcoder.layers.items()}
    dictionaries |= {("plt", layer): each for layer, each in alone.items()}
    keys = [(run, layer) for run in ("clt", "plt") for layer in (*LAYERS, ALL_LAYERS)]
    rows = score_rows(model, dictionaries, keys, read_baselines([tmp_path / "b"]), held_out, 3)
    for layer in (*LAYERS, ALL_LAYERS):
        one, other = (rows[run, layer].metric for run in ("clt", "plt"))
        for name in one.keys() - {"run"}:
            assert one[name] == pytest.approx(other[name], rel=1e-5), name


def test_tokens_are_not_left_out_layer_by_layer(model, held_out) -> None:
    bounds = {Site("mlp_out", layer): NormBounds(1.0, 1.0) for layer in LAYERS}
    with pytest.raises(ValueError, match=r"needs all layers of a token.*activations\.outliers"):
        score_runs(model, {"clt": make_transcoder(model)}, held_out, 3, bounds=bounds)


def test_an_incomplete_transcoder_is_refused(model, held_out) -> None:
    layers = make_transcoder(model).layers
    dictionaries = {("clt", layer): layers[layer] for layer in (0, 1)}
    with pytest.raises(ValueError, match="layer 0 writes to layer 2, which the transcoder lacks"):
        score_rows(model, dictionaries, [("clt", 0)], {}, held_out, 3)
