"""Published cross-layer transcoders keep their function, and are tested on text before they are saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import published_folders as folders
from tests.exchange.results import LLAMA, random_transcoder, write_results
from tests.models import CONTEXT, LAYERS, VOCABULARY, tiny_llama
from tests.published_folders import WIDTH, D
from torch import Tensor

from circuitloom.config.dictionaries import Run
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.corpus.tokens import open_tokens
from circuitloom.dictionaries.cross_layer import CrossLayerTranscoder, load_cross_layer_transcoder
from circuitloom.dictionaries.formats.hook_check import TOKENS
from circuitloom.dictionaries.formats.published import read_published
from circuitloom.dictionaries.formats.published_cross_layer import import_cross_layer_run, read_published_clt
from circuitloom.exchange.export import export_run
from circuitloom.exchange.stored_run import StoredRun
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel, load_model


def inputs() -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {layer: torch.randn(30, D, generator=generator, dtype=torch.float64) for layer in range(3)}


def check_function(transcoder: CrossLayerTranscoder, forward: folders.CrossForward) -> None:
    xs = inputs()
    z, y_hat = forward(xs)
    # in float64, so that no threshold is on the other side
    transcoder = transcoder.to("cpu", torch.float64)
    for layer in range(3):
        torch.testing.assert_close(transcoder.encode(xs)[layer], z[layer], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(transcoder(xs)[layer], y_hat[layer], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("act", ["relu", "jumprelu"])
def test_a_set_of_circuit_tracer_keeps_its_function_and_its_bits(act: str, tmp_path: Path) -> None:
    forward = folders.circuit_tracer_clt(tmp_path, act=act)
    transcoder = read_published_clt(tmp_path)
    check_function(transcoder, forward)
    stored = load_file(tmp_path / "W_dec_1.safetensors")["W_dec_1"]
    assert torch.equal(transcoder.layers[1].W_dec, stored)
    assert transcoder.writers == {0: [0], 1: [0, 1], 2: [0, 1, 2]}
    with pytest.raises(
        ValueError, match="is a cross-layer transcoder; read all its layers with read_published_clt"
    ):
        read_published(tmp_path, 1)


@pytest.mark.parametrize("affine", [False, True])
def test_files_of_gemma_scope_2_keep_their_function(affine: bool, tmp_path: Path, capsys) -> None:
    forward = folders.gemma_scope_clt(tmp_path, affine=affine)
    check_function(read_published_clt(tmp_path), forward)
    assert "left out" not in capsys.readouterr().err


def test_decoders_to_earlier_layers_are_left_out_with_a_notice(tmp_path: Path, capsys) -> None:
    forward = folders.gemma_scope_clt(tmp_path, earlier=0.25)
    check_function(read_published_clt(tmp_path), forward)
    assert "params_layer_2.safetensors: decoders to earlier layers are left out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    return load_model(tiny_llama(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def validation(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "validation.zarr"
    token = np.random.default_rng(0).integers(4, VOCABULARY, (TOKENS // CONTEXT, CONTEXT), dtype=np.int32)
    attributes = {"bos_id": 1, "separator_id": 1, "vocabulary": VOCABULARY}
    write_tokens(folder, [(token, np.zeros_like(token))], len(token), attributes)
    return folder


def fit(model: LanguageModel, validation: Path, folder: Path, reads: str) -> None:
    """Fit the decoders of a set to what each layer leaves over, by least squares."""
    hooks = {"mlp_in": "mlp.hook_in", "resid_mid": "hook_resid_mid"}
    folders.circuit_tracer_clt(folder, hooks=(hooks[reads], "mlp.hook_out"))
    token = open_tokens(validation).take(slice(None))
    with torch.inference_mode():
        for layer in range(LAYERS):
            sites = Site(reads, layer), Site("mlp_out", layer)
            x, y = (value[:, 1:].flatten(0, 1) for value in capture(model, token, list(sites)).values())
            encoder = load_file(folder / f"W_enc_{layer}.safetensors")
            encoder[f"W_enc_{layer}"] = encoder[f"W_enc_{layer}"] / x.norm(dim=1).mean()
            z = (x @ encoder[f"W_enc_{layer}"].T + encoder[f"b_enc_{layer}"]).relu()
            ones = torch.cat([z, torch.ones(len(z), 1)], 1)
            solution = torch.linalg.lstsq(ones, y).solution
            decoder = torch.zeros(WIDTH, LAYERS - layer, D)
            decoder[:, 0] = solution[:-1]
            save_file(
                encoder | {f"b_dec_{layer}": solution[-1].contiguous()}, folder / f"W_enc_{layer}.safetensors"
            )
            save_file({f"W_dec_{layer}": decoder}, folder / f"W_dec_{layer}.safetensors")


def imported(folder: Path, **keys: Any) -> Run:
    own = {"kind": "clt", "act": "relu", "width": WIDTH, "reads": "mlp_in", "site": "mlp_out"}
    return Run(**{"name": "theirs", "files": str(folder), "format": "circuit_tracer", **own, **keys})


def test_an_import_is_tested_on_held_out_tokens_before_it_is_saved(
    model: LanguageModel, validation: Path, tmp_path: Path, capsys
) -> None:
    fit(model, validation, tmp_path / "set", "mlp_in")
    outputs = {layer: tmp_path / "theirs" / f"layer{layer}" for layer in range(LAYERS)}
    import_cross_layer_run(imported(tmp_path / "set"), model, validation, outputs)
    assert "layers 0 to 2 together: FVU" in capsys.readouterr().err
    saved, read = load_cross_layer_transcoder(tmp_path / "theirs"), read_published_clt(tmp_path / "set")
    xs = {layer: x.float() for layer, x in inputs().items()}
    for layer, y_hat in saved(xs).items():
        assert torch.equal(y_hat, read(xs)[layer])
    config = json.loads((outputs[1] / "config.json").read_text())
    assert config["source"] == str(tmp_path / "set" / "W_enc_1.safetensors")
    assert config["layers"] == [0, 1, 2] and [each["layer"] for each in config["outputs"]] == [1, 2]


def test_a_wrong_input_is_refused_with_the_right_one(
    model: LanguageModel, validation: Path, tmp_path: Path
) -> None:
    fit(model, validation, tmp_path / "set", "resid_mid")
    config = tmp_path / "set" / "config.yaml"
    config.write_text(config.read_text().replace("hook_resid_mid", "mlp.hook_in"))
    outputs = {layer: tmp_path / "theirs" / f"layer{layer}" for layer in range(LAYERS)}
    with pytest.raises(
        ValueError,
        match=r"layers 0 to 2 together does not fit with mlp\.hook_in to mlp\.hook_out.*"
        r"it fits with hook_resid_mid to mlp\.hook_out",
    ):
        import_cross_layer_run(imported(tmp_path / "set"), model, validation, outputs)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("reach", [None, 1])
@pytest.mark.parametrize("act", ["relu", "threshold"])
def test_an_exported_transcoder_is_imported_to_the_bit(act: str, reach: int | None, tmp_path: Path) -> None:
    made = random_transcoder(LLAMA.layers, act, reach=reach)
    export_run(
        "circuit-tracer", StoredRun(write_results(tmp_path / "study", made.layers), "some"), tmp_path / "out"
    )
    again = read_published_clt(tmp_path / "out")
    for layer, each in made.layers.items():
        other = again.layers[layer]
        assert (other.act, other.layer, other.site_in, other.site_out) == (
            each.act,
            layer,
            "mlp_in",
            "mlp_out",
        )
        for name in ("W_enc", "b_enc", "b_dec", "threshold"):
            value = getattr(each, name)
            assert getattr(other, name) is value is None or torch.equal(getattr(other, name), value)
        for output in range(layer, LLAMA.layers):
            expected = (
                each.decoder(output) if output in each.outputs else torch.zeros_like(each.decoder(layer))
            )
            assert torch.equal(other.decoder(output), expected)
    generator = torch.Generator().manual_seed(3)
    xs = {layer: torch.randn(30, made.first.d_in, generator=generator) for layer in made.layers}
    for layer, z in made.encode(xs).items():
        assert torch.equal(again.encode(xs)[layer], z)
        if reach is None:
            assert torch.equal(again(xs)[layer], made(xs)[layer])
        else:
            torch.testing.assert_close(again(xs)[layer], made(xs)[layer])
