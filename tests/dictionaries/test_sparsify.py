"""Exported sparse coders compute our function by sparsify's definition; places without a module are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.exchange.results import LLAMA, SAE, random_dictionary

from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.dictionaries.formats.sparsify import export_sparsify, hookpoint

CODERS = {
    "transcoder": random_dictionary(3, "topk"),
    "skip transcoder": random_dictionary(3, "topk", skip=True),
    "sae": random_dictionary(3, "topk", **SAE),
    "sae with skip": random_dictionary(3, "topk", skip=True, **SAE),
}


@pytest.mark.parametrize("name", CODERS)
def test_a_coder_computes_our_function_by_sparsify_s_definition(name: str, tmp_path: Path) -> None:
    dictionary = CODERS[name]
    export_sparsify(dictionary, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    tensors = load_file(tmp_path / "sae.safetensors")
    assert config == {
        "activation": "topk", "d_in": 8, "num_latents": 20, "expansion_factor": 2, "k": 3, "multi_topk": False,
        "normalize_decoder": False, "skip_connection": "skip" in name, "transcode": "transcoder" in name,
    }  # fmt: skip
    x = torch.randn(30, 8)
    # sparsify 1.3: SAEs subtract b_dec; a ReLU, then the k largest
    read = x if config["transcode"] else x - tensors["b_dec"]
    acts = (read @ tensors["encoder.weight"].T + tensors["encoder.bias"]).relu()
    top = acts.topk(config["k"])
    y_hat = torch.einsum("tk,tkd->td", top.values, tensors["W_dec"][top.indices]) + tensors["b_dec"]
    if "W_skip" in tensors:
        y_hat = y_hat + x @ tensors["W_skip"].T
    torch.testing.assert_close(y_hat, dictionary(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("dictionary", "words"),
    [
        (random_dictionary(2), "layer 2: sparsify has topk only, and this dictionary is relu"),
        (replace(CODERS["transcoder"], W_dec=torch.randn(20, 9), b_dec=torch.zeros(9)), "maps 8 to 9"),
    ],
)
def test_what_sparsify_cannot_represent_is_refused(dictionary: Dictionary, words: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        export_sparsify(dictionary, tmp_path / "coder")
    assert not (tmp_path / "coder").exists()


GEMMA = replace(LLAMA, architecture="Gemma3ForCausalLM", norm_mlp_after="post_feedforward_layernorm")


@pytest.mark.parametrize(
    ("sites", "anatomy", "expected"),
    [
        (("mlp_in", "mlp_out"), LLAMA, "layers.2.mlp"),
        (("mlp_in", "mlp_added"), LLAMA, "layers.2.mlp"),
        (("mlp_in", "mlp_out"), GEMMA, "layers.2.mlp"),
        (("mlp_out", "mlp_out"), LLAMA, "layers.2.mlp"),
        (("mlp_added", "mlp_added"), GEMMA, "layers.2.post_feedforward_layernorm"),
        (("mlp_in", "mlp_in"), LLAMA, "layers.2.post_attention_layernorm"),
        # the residual stream before block 2 is the output of block 1
        (("resid_pre", "resid_pre"), LLAMA, "layers.1"),
        (("mlp_in", "mlp_out"), replace(LLAMA, blocks="transformer.h"), "h.2.mlp"),
    ],
)
def test_a_place_is_named_by_its_module(sites, anatomy, expected: str) -> None:
    dictionary = random_dictionary(2, "topk", site_in=sites[0], site_out=sites[1])
    assert hookpoint(dictionary, anatomy, anatomy.norm_mlp_after is not None) == expected


@pytest.mark.parametrize(
    ("layer", "sites", "anatomy"),
    [
        (2, ("mlp_in", "mlp_added"), GEMMA),
        (2, ("resid_mid", "mlp_out"), LLAMA),
        (2, ("resid_mid", "resid_mid"), LLAMA),
        (0, ("resid_pre", "resid_pre"), LLAMA),
    ],
)
def test_a_place_that_no_module_has_is_refused(layer: int, sites, anatomy) -> None:
    dictionary = random_dictionary(layer, "topk", site_in=sites[0], site_out=sites[1])
    with pytest.raises(ValueError, match=f"no module of {anatomy.architecture} has it .*; export to saelens"):
        hookpoint(dictionary, anatomy, anatomy.norm_mlp_after is not None)
