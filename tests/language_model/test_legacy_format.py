"""Converted legacy models match TransformerLens' own loader."""

import json
from pathlib import Path

import pytest
import torch
from tests.language_model.inputs import make_hub_repository, make_legacy
from tests.models import CONTEXT, VOCABULARY, tiny_gpt2

from circuitloom.config.model_shape import shape_of
from circuitloom.language_model import legacy_format as legacy
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import load_model

NAME = "NeelNanda/GELU_2L16W_test"
TOKENS = torch.randint(4, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["gelu", "solu_ln"])
def folder(request, tmp_path) -> Path:
    return make_legacy(tmp_path / "given", act_fn=request.param)


@pytest.fixture
def bridge(folder, tmp_path, monkeypatch):
    """The same files loaded by TransformerLens from a hub cache."""
    import huggingface_hub
    from huggingface_hub import constants
    from transformer_lens.model_bridge.sources import tl_legacy

    make_hub_repository(tmp_path / "cache", NAME, folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda _self, _name: ["model_final.pth"])
    return tl_legacy.boot(NAME, device="cpu")


def test_logits_and_activations_equal_transformer_lens(folder, bridge, tmp_path):
    (tmp_path / "model").mkdir()
    legacy.convert(folder, NAME, tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    expected, cache = bridge.run_with_cache(TOKENS)
    assert bridge.unembed.b_U.abs().max() > 0
    torch.testing.assert_close(model.logits(TOKENS), expected)
    hooks = {"mlp_in": "mlp.hook_in", "mlp_out": "hook_mlp_out", "resid_mid": "hook_resid_mid"}
    sites = [Site(name, layer) for name in hooks for layer in range(2)]
    for site, value in capture(model, TOKENS, sites).items():
        # summation order differs by processor: differences up to 1.5e-5 occur
        expected_value = cache[f"blocks.{site.layer}.{hooks[site.name]}"]
        torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-4)


def test_the_converted_config_has_the_same_shape_and_is_not_legacy(tmp_path):
    folder, output = make_legacy(tmp_path / "given"), tmp_path / "model"
    output.mkdir()
    legacy.convert(folder, NAME, output)
    assert legacy.is_legacy(folder) and not legacy.is_legacy(output)
    given, written = (shape_of(json.loads((f / "config.json").read_text())) for f in (folder, output))
    assert given == written
    assert (given.layers, given.d_model, given.d_mlp, given.heads, given.context) == (2, 16, 64, 4, 32)
    assert given.vocabulary == VOCABULARY


def test_a_hugging_face_model_is_not_legacy(tmp_path):
    assert not legacy.is_legacy(tiny_gpt2(tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_head": None}, "not a legacy model that can be read .*d_head"),
        ({"shortformer_pos": True}, "it has shortformer positions"),
        ({"n_heads": 2, "d_head": 8}, "W_Q.* has shape"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message, tmp_path):
    folder = make_legacy(tmp_path / "given")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        legacy.convert(folder, NAME, tmp_path)


def test_a_pickle_with_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    folder = make_legacy(tmp_path / "given")
    torch.save({"embed.W_E": Harm()}, folder / "model_final.pth")
    with pytest.raises(ValueError, match="not a legacy model that can be read"):
        legacy.convert(folder, NAME, tmp_path)
    assert not (tmp_path / "harm").exists()
