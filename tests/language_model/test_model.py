"""The model's MLPs applied by themselves; incomplete or damaged folders are refused."""

import json

import pytest
import torch
from tests.language_model.inputs import make_legacy
from tests.models import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_gpt2, tiny_model

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
    with pytest.raises(ValueError, match="model: not a model that transformers loads"):
        load_model(folder)
