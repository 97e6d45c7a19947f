"""Names of sites in other libraries: the hooks of TransformerLens, SAELens and circuit-tracer, and modules of Hugging
Face models."""

import re
from dataclasses import dataclass

HOOKS = {
    "mlp_in": "blocks.{layer}.mlp.hook_in",
    "mlp_out": "blocks.{layer}.mlp.hook_out",
    "mlp_added": "blocks.{layer}.hook_mlp_out",
    "attn_added": "blocks.{layer}.hook_attn_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
}
"""Name of the hook of each site in TransformerLens' bridge. hook_mlp_out is what the MLP adds to the residual stream:
after a norm that follows the MLP (Gemma 2), and with a residual multiplier (Granite). hook_attn_out is that of
attention."""
RESID_POST = "hook_resid_post"
BARE_NORM = "ln2.hook_normalized"
"""Hook of the norm's output before its gain and bias are applied."""
_BY_HOOK = {hook.partition("{layer}.")[2]: site for site, hook in HOOKS.items()} | {
    BARE_NORM: "mlp_in",
    "ln2.hook_out": "mlp_in",
    # TransformerLens reads this hook before the norm
    "hook_mlp_in": "resid_mid",
}
ATTENTION_MODULES = ("self_attn", "attn", "attention", "self_attention", "attn.attention")
"""Names of attention in the blocks of Hugging Face models. Its output is what is added to the residual stream, unless
the model applies a norm or a factor to it first."""
_HEADS = re.compile(rf"attn\.hook_z|(?:{'|'.join(map(re.escape, ATTENTION_MODULES))})\.\w+\.input")
"""Hooks of the outputs of all heads: the input of attention's projection W_O."""
_BY_MODULE = {
    **{f"{name}.output": "attn_added" for name in ATTENTION_MODULES},
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp_out",
    "post_feedforward_layernorm.output": "mlp_added",
    "input": "resid_pre",
    "output": "resid_post",
}
"""Maps a part of a block to its site: modules, and norms of Gemma as Gemma Scope 2 names them. `resid_post` is
`resid_pre` of the next layer."""
_MODULE = re.compile(r"(?:\w+\.)*?(?:layers|h|blocks)\.(\d+)\.(.+)")


def hook_in_block(site: str) -> str:
    """Returns the hook of a site without its layer, as circuit-tracer's config.yaml names it."""
    return HOOKS[site].partition("{layer}.")[2]


@dataclass(frozen=True)
class HookedSite:
    """The site that a hook names."""

    site: str
    layer: int | None
    """Layer of the site. None if the hook's name contains no layer."""
    bare_norm: bool = False
    """Whether the value is the norm's output before its gain and bias, instead of the site's value."""
    attention_output: bool = False
    """Whether the value is the output of the attention module, which is the site's value only in models without a norm
    or factor after attention."""


def site_of_hook(hook: str, layer: int | None = None) -> HookedSite:
    """Returns the site of a hook of TransformerLens (`blocks.3.hook_mlp_out`, or `hook_mlp_out` with `layer` 3), or of
    a module of a Hugging Face model (`model.layers.3.mlp.output`).

    The residual stream after a block is `resid_pre` of the next layer. Raises ValueError, without a remedy, if this
    project has no such site.
    """
    named = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    layer, part = (int(named[1]), named[2]) if named else (layer, hook)
    module = None if named else _MODULE.fullmatch(hook)
    if part in _BY_HOOK:
        return HookedSite(_BY_HOOK[part], layer, bare_norm=part == BARE_NORM)
    if module:
        layer, part = int(module[1]), module[2]
    site = _BY_MODULE.get(part) if module else "resid_post" if part == RESID_POST else None
    if site is None:
        known = ", ".join((*sorted(_BY_HOOK), RESID_POST))
        what = ", the outputs of the heads before W_O" if _HEADS.fullmatch(part) else ""
        raise ValueError(f"there is no site for the hook {hook}{what}; hooks with a site are {known}")
    if site == "resid_post":
        return HookedSite("resid_pre", None if layer is None else layer + 1)
    return HookedSite(site, layer, attention_output=site == "attn_added")


def hook_of_site(site: str, layer: int) -> str:
    """Returns TransformerLens' name of a site, such as `blocks.3.hook_mlp_out`."""
    return HOOKS[site].format(layer=layer)
