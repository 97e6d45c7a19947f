"""Finds the names of a model's modules through TransformerLens' architecture adapters."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ANATOMY_FILE = "anatomy.json"
NATIVE = "TransformerLensNative"
"""Value of `architectures` in the config.json of a model converted from TransformerLens' legacy format."""


@dataclass(frozen=True)
class Anatomy:
    """Names of the modules of a causal language model.

    `anatomy.json` in the model's folder stores the names. Finding the names again would import TransformerLens, which
    takes seconds.
    """

    architecture: str
    """Name of the class of the model, such as `LlamaForCausalLM`."""
    layers: int
    heads: int
    """Attention heads per layer."""
    blocks: str
    """Path of the list of blocks in the model, such as `model.layers`."""
    mlp: str
    """Name of the MLP in a block. TransformerLens calls the MLP's input `mlp.hook_in` and its output `mlp.hook_out`."""
    mlp_projection: str
    """Name of W_out in the MLP. The input of W_out is the activations of the neurons."""
    norm_mlp: str | None
    """Name of the norm before the MLP, or None. If the MLP follows attention, the input of this norm is `resid_mid`."""
    parallel: bool
    """Whether attention and MLP read the same residual stream, as in GPT-NeoX. Such a model has no `resid_mid`."""
    norm_mlp_after: str | None
    """Name of the norm that is applied to the MLP's output (Gemma 2), or None. TransformerLens calls the norm's output
    `hook_mlp_out`."""
    norm_attention: str | None
    """Name of the norm before attention, or None."""
    norm_attention_after: str | None
    """Name of the norm that is applied to attention's output, or None."""
    attention: str
    """Name of the attention module in a block."""
    attention_projection: str
    """Name of W_O in the attention module. The input of W_O is the concatenated outputs of the heads."""
    embedding: str
    """Path of the token embedding."""
    positions: str | None
    """Path of the learned position embedding, or None."""
    norm_final: str
    """Path of the norm before the unembedding."""
    unembedding: str
    """Path of the unembedding."""


def find_anatomy(config) -> Anatomy:
    """Returns the anatomy of the model that a Hugging Face `config` describes.

    Raises ValueError if TransformerLens has no adapter for the architecture, or if the model has no MLP.
    """
    import torch
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

    try:
        architecture = determine_architecture_from_hf_config(config)
        bridge = build_bridge_config_from_hf(config, architecture, architecture, torch.float32)
    # TransformerLens' message lists all architectures
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"language_model: TransformerLens does not name the modules of {config.model_type} models; choose another "
            "(docs/models.md)"
        ) from error
    return anatomy_of(bridge)


def anatomy_of(bridge) -> Anatomy:
    """Returns the anatomy of the model that a TransformerBridgeConfig describes.

    Raises ValueError if the model has no MLP.
    """
    components = adapter_components(bridge)
    block = components["blocks"]
    parts = block.submodules
    if "mlp" not in parts or parts["mlp"].name is None:
        raise ValueError(
            f"language_model: {bridge.architecture} has no MLP in its blocks; choose another model"
        )

    def name(components: dict[str, Any], key: str) -> str | None:
        return components[key].name if key in components else None

    return Anatomy(
        architecture=bridge.architecture,
        layers=bridge.n_layers,
        heads=bridge.n_heads,
        blocks=block.name,
        mlp=parts["mlp"].name,
        mlp_projection=parts["mlp"].submodules["out"].name,
        norm_mlp=name(parts, "ln2"),
        parallel=bridge.parallel_attn_mlp,
        norm_mlp_after=name(parts, "ln2_post"),
        norm_attention=name(parts, "ln1"),
        norm_attention_after=name(parts, "ln1_post"),
        attention=parts["attn"].name,
        attention_projection=parts["attn"].submodules["o"].name,
        embedding=components["embed"].name,
        positions=name(components, "pos_embed"),
        norm_final=components["ln_final"].name,
        unembedding=components["unembed"].name,
    )


def adapter_components(bridge) -> dict[str, Any]:
    """Returns the components of TransformerLens' adapter. Keys are TransformerLens' names of the modules.

    A component's attribute `name` is the name of the module in the model.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

    mapping = ArchitectureAdapterFactory.select_architecture_adapter(bridge).component_mapping
    assert mapping is not None
    return mapping


def is_native(folder: Path) -> bool:
    """Whether the model in `folder` was converted from TransformerLens' legacy format."""
    file = folder / "config.json"
    return file.is_file() and NATIVE in (json.loads(file.read_text()).get("architectures") or [])


def write_anatomy(anatomy: Anatomy, folder: Path) -> None:
    """Write `anatomy` into the model's folder."""
    (folder / ANATOMY_FILE).write_text(json.dumps(asdict(anatomy), indent=2) + "\n")


def read_anatomy(folder: Path) -> Anatomy:
    """Returns the anatomy stored in `folder`.

    Raises ValueError if another version of this package wrote the file.
    """
    try:
        return Anatomy(**json.loads((folder / ANATOMY_FILE).read_text()))
    except TypeError as error:
        raise ValueError(
            f"{folder / ANATOMY_FILE}: written by another version; run `snakemake language_model` again"
        ) from error
