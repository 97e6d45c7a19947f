"""Hooks of other libraries name the sites that they are."""

import pytest

from circuitloom.config.hooks import HOOKS, HookedSite, hook_of_site, site_of_hook

SITES = {
    "blocks.3.mlp.hook_in": HookedSite("mlp_in", 3),
    "blocks.3.ln2.hook_normalized": HookedSite("mlp_in", 3, bare_norm=True),
    "blocks.3.hook_mlp_in": HookedSite("resid_mid", 3),
    "blocks.3.hook_resid_mid": HookedSite("resid_mid", 3),
    "blocks.3.hook_resid_pre": HookedSite("resid_pre", 3),
    "blocks.3.hook_resid_post": HookedSite("resid_pre", 4),
    "blocks.3.mlp.hook_out": HookedSite("mlp_out", 3),
    "blocks.3.hook_mlp_out": HookedSite("mlp_added", 3),
    "blocks.3.hook_attn_out": HookedSite("attn_added", 3),
    "model.layers.3.pre_feedforward_layernorm.output": HookedSite("mlp_in", 3),
    "model.layers.3.post_feedforward_layernorm.output": HookedSite("mlp_added", 3),
    "model.layers.3.output": HookedSite("resid_pre", 4),
    "layers.3.mlp.output": HookedSite("mlp_out", 3),
    "gpt_neox.layers.3.mlp.input": HookedSite("mlp_in", 3),
    "h.3.mlp.output": HookedSite("mlp_out", 3),
    **{
        f"{blocks}.3.{name}.output": HookedSite("attn_added", 3, attention_output=True)
        for blocks, name in (
            ("layers", "self_attn"),
            ("transformer.h", "attn"),
            ("gpt_neox.layers", "attention"),
            ("h", "self_attention"),
            ("h", "attn.attention"),
        )
    },
}


@pytest.mark.parametrize("hook", SITES)
def test_a_hook_names_its_site_and_layer(hook: str) -> None:
    assert site_of_hook(hook) == SITES[hook]


def test_a_hook_without_layer_takes_the_given_one() -> None:
    assert site_of_hook("hook_resid_mid", 5) == HookedSite("resid_mid", 5)
    assert site_of_hook("hook_resid_post", 5) == HookedSite("resid_pre", 6)
    assert site_of_hook("ln2.hook_normalized") == HookedSite("mlp_in", None, bare_norm=True)


@pytest.mark.parametrize("site", HOOKS)
def test_the_hook_of_a_site_names_the_site(site: str) -> None:
    assert site_of_hook(hook_of_site(site, 7)) == HookedSite(site, 7)


@pytest.mark.parametrize(
    "hook", ["blocks.3.attn.hook_z", "layers.3.self_attn.o_proj.input", "h.3.attn.c_proj.input"]
)
def test_outputs_of_heads_have_no_site(hook: str) -> None:
    with pytest.raises(
        ValueError, match=f"{hook}, the outputs of the heads before W_O; hooks with a site are"
    ):
        site_of_hook(hook)


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_k", "layers.3.self_attn.input", "hook_embed", ""])
def test_a_hook_without_site_is_refused_with_those_that_have_one(hook: str) -> None:
    with pytest.raises(
        ValueError, match=rf"no site for the hook {hook}; hooks with a site are .*hook_mlp_out"
    ) as error:
        site_of_hook(hook)
    assert "\n" not in str(error.value)
