"""The model's MLPs applied by themselves; incomplete or damaged folders are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.language_model.inputs import make_legacy
from tests.models import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_gpt2, tiny_llama, tiny_model

from circuitloom.language_model import legacy_format as legacy
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel, load_model

TOKENS = torch.randint(4, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "legacy"])
def model(request, tmp_path_factory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("model")
    if request.param != "legacy":
        return load_model(tiny_model(request.param, folder / "model"), device="cpu")
    legacy.convert(make_legacy(folder / "given"), "given", folder)
    return load_model(folder, device="cpu")


def test_an_mlp_applied_to_mlp_in_gives_mlp_out(model):
    for layer in range(model.layers):
        captured = capture(model, TOKENS, [Site("mlp_in", layer), Site("mlp_out", layer)])
        output = model.mlp(layer)(captured[Site("mlp_in", layer)])
        torch.testing.assert_close(output, captured[Site("mlp_out", layer)])


def test_a_pass_caches_no_keys_and_values(model):
    assert getattr(model.module(TOKENS), "past_key_values", None) is None


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_gpt2(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"model: its weights lack transformer.h.1.mlp.c_fc.weight \(1 missing in all\)"
    ):
        load_model(folder)


def test_damaged_weights_are_refused(tmp_path):
    folder = tiny_gpt2(tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="model: not a model that transformers loads"):
        load_model(folder)


def test_weights_of_another_shape_are_refused(tmp_path):
    folder = tiny_gpt2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 32}))
    message = r"its weight \S+ has the shape \([\d, ]+\), but its config says \([\d, ]+\) \(\d+ differ in all\); use"
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Change the weights of a model in `folder`."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_the_config_does_not_use_are_refused(tmp_path):
    name = "model.layers.0.mlp.down_proj.bias"
    folder = rewrite(tiny_llama(tmp_path / "bias"), lambda weights: weights.update({name: torch.ones(16)}))
    message = rf"bias: its config does not use the weight {name} \(1 unused in all\); use the weights of"
    with pytest.raises(ValueError, match=message):
        load_model(folder)
    folder = tiny_gpt2(tmp_path / "layers")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 2}))
    with pytest.raises(ValueError, match=r"transformer\.h\.2\.\S+ \(\d+ unused in all\)"):
        load_model(folder)


def test_masks_and_position_constants_of_old_checkpoints_are_no_weights(tmp_path):
    old = ("attn.attention.bias", "attn.masked_bias", "attn.bias", "self_attn.rotary_emb.inv_freq")
    constants = {f"model.layers.0.{name}": torch.ones(4) for name in old}
    folder = rewrite(tiny_llama(tmp_path / "model"), lambda weights: weights.update(constants))
    assert load_model(folder, device="cpu").layers == 3


def test_integers_without_a_quantization_are_refused(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    for number_format, dtype in {"I8": torch.int8, "U8": torch.uint8}.items():

        def quantize(weights: dict[str, torch.Tensor], dtype=dtype) -> None:
            weights[name] = (weights[name] * 10).abs().to(dtype)

        folder = rewrite(tiny_llama(tmp_path / number_format), quantize)
        message = (
            rf"its weight {name} has integers \({number_format}\), but its config names no quantization; use"
        )
        with pytest.raises(ValueError, match=message):
            load_model(folder, device="cpu")
