"""Captured sites equal the hooks of TransformerLens' bridge."""

from functools import partial

import pytest
import torch
from tests.architectures import tiny_architecture
from tests.models import CONTEXT, LAYERS, VOCABULARY, tiny_gpt2, tiny_llama, tiny_neox

from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import load_model

MODELS = {
    "gpt2": tiny_gpt2,
    "gpt2-relu": lambda folder: tiny_gpt2(folder, activation="relu"),
    "llama": tiny_llama,
    "neox-parallel": tiny_neox,
    "neox-sequential": lambda folder: tiny_neox(folder, parallel=False),
    **{
        name: partial(tiny_architecture, name)
        for name in ("gemma2", "gemma3_text", "olmo2", "granite", "cohere")
    },
}
HOOKS = {
    "mlp_in": "mlp.hook_in",
    "mlp_out": "mlp.hook_out",
    "mlp_added": "hook_mlp_out",
    "attn_added": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "resid_pre": "hook_resid_pre",
}


@pytest.mark.parametrize("name", MODELS)
def test_sites_equal_the_hooks_of_transformer_lens(name, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    folder = MODELS[name](tmp_path / name)
    tokens = torch.randint(4, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    parallel = name in ("neox-parallel", "cohere")
    sites = [site for site in HOOKS if not (parallel and site == "resid_mid")]
    _, expected = TransformerBridge.boot_transformers(str(folder), device="cpu").run_with_cache(tokens)
    captured = capture(
        load_model(folder, device="cpu"), tokens, [Site(s, i) for s in sites for i in range(LAYERS)]
    )
    for site, value in captured.items():
        hook = expected[f"blocks.{site.layer}.{HOOKS[site.name]}"]
        assert (value - hook).abs().max() < 1e-5 * hook.abs().max(), site


def test_parallel_blocks_refuse_resid_mid_and_offer_resid_pre(tmp_path):
    model = load_model(tiny_neox(tmp_path / "neox"), device="cpu")
    with pytest.raises(ValueError, match=r"GPTNeoXForCausalLM .* no resid_mid; use resid_pre"):
        capture(model, torch.zeros(1, 4, dtype=torch.int64), [Site("resid_mid", 0)])
