"""Cross-layer transcoders: what they compute, and their files."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuitloom.config.dictionaries import output_layers
from circuitloom.dictionaries.cross_layer import (
    CrossLayerDictionary,
    CrossLayerTranscoder,
    load_cross_layer_transcoder,
    save_cross_layer_transcoder,
)
from circuitloom.dictionaries.dictionary import Dictionary, is_cross_layer, load_dictionary, save_dictionary

D, WIDTH, TOKENS = 5, 12, 40
LAYERS = (0, 1, 3)
ACTS = ("relu", "threshold", "topk")


def random_transcoder(
    act: str = "relu", skip: bool = False, reach: int | None = None, seed: int = 0
) -> CrossLayerTranscoder:
    """A transcoder of `LAYERS` with random weights in float64."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = []
    for layer in LAYERS:
        outputs = tuple(output_layers(LAYERS, layer, reach))
        layers.append(
            CrossLayerDictionary(
                W_enc=random(WIDTH, D),
                b_enc=random(WIDTH),
                W_dec=random(WIDTH, len(outputs), D),
                b_dec=random(D),
                act=act,
                outputs=outputs,
                scales=tuple(1.0 + output for output in outputs),
                k=3 if act == "topk" else None,
                threshold=random(WIDTH).abs() if act == "threshold" else None,
                W_skip=random(D, D) if skip else None,
                layer=layer,
            )
        )
    return CrossLayerTranscoder(layers)


def inputs() -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {layer: torch.randn(TOKENS, D, generator=generator, dtype=torch.float64) for layer in LAYERS}


def active(each: CrossLayerDictionary, x: Tensor) -> Tensor:
    """z of one token, feature by feature."""
    pre = [float(row @ x + bias) for row, bias in zip(each.W_enc, each.b_enc, strict=True)]
    if each.act == "topk":
        kept = sorted(range(WIDTH), key=lambda i: -pre[i])[:3]
        return torch.tensor([max(0.0, p) if i in kept else 0.0 for i, p in enumerate(pre)], dtype=x.dtype)
    floor = [0.0] * WIDTH if each.threshold is None else each.threshold.tolist()
    return torch.tensor([p if p > low else 0.0 for p, low in zip(pre, floor, strict=True)], dtype=x.dtype)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_an_output_is_the_sum_of_what_all_layers_before_it_write(act: str, skip: bool) -> None:
    transcoder, xs = random_transcoder(act, skip), inputs()
    expected = {layer: [] for layer in LAYERS}
    for t in range(TOKENS):
        for m in LAYERS:
            own = transcoder.layers[m]
            y_hat = own.b_dec + (0.0 if own.W_skip is None else own.W_skip @ xs[m][t])
            for layer in LAYERS:
                if layer <= m:
                    writer = transcoder.layers[layer]
                    y_hat = y_hat + active(writer, xs[layer][t]) @ writer.W_dec[:, writer.outputs.index(m)]
            expected[m].append(y_hat)
    for compute in (transcoder, transcoder.reconstruct):
        found = compute(xs)
        assert list(found) == list(LAYERS)
        for layer in LAYERS:
            torch.testing.assert_close(found[layer], torch.stack(expected[layer]), rtol=1e-12, atol=1e-12)


def test_reach_counts_layers_of_the_model() -> None:
    assert output_layers(LAYERS, 0, None) == [0, 1, 3]
    assert output_layers(LAYERS, 1, 1) == [1]
    assert output_layers(LAYERS, 1, 2) == [1, 3]
    assert random_transcoder(reach=1).writers == {0: [0], 1: [0, 1], 3: [3]}


def test_without_reach_each_layer_is_a_transcoder_of_its_own() -> None:
    transcoder, xs = random_transcoder("threshold", skip=True, reach=0), inputs()
    for layer, each in transcoder.layers.items():
        alone = Dictionary(
            each.W_enc, each.b_enc, each.decoder(layer), each.b_dec, "threshold",
            threshold=each.threshold, W_skip=each.W_skip, layer=layer,
        )  # fmt: skip
        assert torch.equal(transcoder(xs)[layer], alone(xs[layer]))


def test_the_norm_of_a_feature_is_relative_to_the_scales_of_its_outputs() -> None:
    each = random_transcoder().layers[1]
    # scales of layers 1 and 3 are 2 and 4
    expected = (each.W_dec[:, 0].square().sum(1) + (each.W_dec[:, 1] / 2).square().sum(1)).sqrt()
    torch.testing.assert_close(each.row_norm, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("act", ACTS)
def test_a_saved_transcoder_is_loaded_to_the_bit(act: str, tmp_path: Path) -> None:
    made = random_transcoder(act, skip=True, reach=1)
    folders = {layer: tmp_path / f"layer{layer}" for layer in LAYERS}
    save_cross_layer_transcoder(made, folders, {"name": "some"})
    for again in (
        load_cross_layer_transcoder(tmp_path, dtype="float64"),
        load_cross_layer_transcoder(reversed(folders.values()), dtype="float64"),
    ):
        assert again.writers == made.writers
        for layer in LAYERS:
            one, other = vars(made.layers[layer]), vars(again.layers[layer])
            assert one.keys() == other.keys()
            for name, value in one.items():
                same = torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
                assert same, name


def test_a_layer_is_not_taken_for_a_transcoder_of_its_own(tmp_path: Path) -> None:
    made = random_transcoder()
    save_cross_layer_transcoder(made, {layer: tmp_path / f"layer{layer}" for layer in LAYERS}, {})
    # also the last layer, which has one output
    for layer in LAYERS:
        assert is_cross_layer(tmp_path / f"layer{layer}")
        with pytest.raises(
            ValueError, match=r"is a layer of a cross-layer transcoder.*load_cross_layer_transcoder"
        ):
            load_dictionary(tmp_path / f"layer{layer}")


def test_incomplete_or_mixed_transcoders_are_refused(tmp_path: Path) -> None:
    save_cross_layer_transcoder(random_transcoder(), {i: tmp_path / f"layer{i}" for i in LAYERS}, {"seed": 0})
    with pytest.raises(
        ValueError, match=r"belongs to a transcoder of layers \[0, 1, 3\], and layers \[0, 1\]"
    ):
        load_cross_layer_transcoder([tmp_path / "layer0", tmp_path / "layer1"])
    with pytest.raises(ValueError, match=r"has no folders layer0"):
        load_cross_layer_transcoder(tmp_path / "layer0")
    config = tmp_path / "layer1" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "run": {"seed": 1}}))
    with pytest.raises(ValueError, match=r"its layers are of different runs"):
        load_cross_layer_transcoder(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"layer1: no readable dictionary"):
        load_cross_layer_transcoder(tmp_path)
    alone = Dictionary(torch.ones(2, D), torch.ones(2), torch.ones(2, D), torch.ones(D), "relu", layer=1)
    save_dictionary(alone, tmp_path / "layer1", {})
    with pytest.raises(ValueError, match=r"layer1: is not a layer of a cross-layer transcoder"):
        load_cross_layer_transcoder(tmp_path)


def test_impossible_layers_are_refused() -> None:
    layers = random_transcoder().layers
    with pytest.raises(ValueError, match="layer 0 writes to layer 3, which the transcoder lacks"):
        CrossLayerTranscoder([layers[0], layers[1]])
    with pytest.raises(ValueError, match="at least one layer"):
        CrossLayerTranscoder([])
    fields = vars(layers[1])
    with pytest.raises(ValueError, match="must be in ascending order and begin with the layer itself"):
        CrossLayerDictionary(**{**fields, "outputs": (3, 1)})
    with pytest.raises(ValueError, match="2 outputs, 1 scales"):
        CrossLayerDictionary(**{**fields, "scales": (1.0,)})
    with pytest.raises(ValueError, match="not mlp_out to mlp_out"):
        CrossLayerDictionary(**{**fields, "site_in": "mlp_out"})
    with pytest.raises(KeyError, match="features of layer 1 write to"):
        layers[1].decoder(0)
