"""Converts models in TransformerLens' legacy format, which has its own config.json keys and a pickled state dict.

Hub repositories of NeelNanda, ArthurConmy and Baidicoot use this format. This module reads the files, because
TransformerLens' loader accepts neither a revision nor a folder. TransformerLens' functions convert the weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.architectures import has_legacy_keys
from ..core.errors import first_line
from .anatomy import NATIVE, adapter_components, anatomy_of, is_native
from .model import LanguageModel
from .model_files import LEGACY, matching

_KEPT_KEYS = ("d_model", "n_layers", "d_mlp", "d_head", "n_heads", "n_ctx", "d_vocab", "act_fn", "attn_only")


def is_legacy(folder: Path) -> bool:
    """Whether the config.json in `folder` has the legacy format's keys."""
    config = json.loads((folder / "config.json").read_text())
    return has_legacy_keys(config) and not is_native(folder)


def convert(folder: Path, name: str, output: Path) -> None:
    """Convert the legacy model in `folder` to a model in `output` that `load_native` can load.

    `name` is the name of the model. If the config has no key `architecture`, `_old` in `name` means the old weight
    layout. Raises ValueError if a file or key is missing, or if TransformerLens cannot represent the model.
    """
    from safetensors.torch import save_file

    given = json.loads((folder / "config.json").read_text())
    files = matching(folder, [LEGACY])
    if not files:
        raise ValueError(f"{folder}: no {LEGACY} with a legacy model's weights; add the file")
    try:
        config = _native_config(given)
        layout = given.get("architecture", "neel-solu-old" if "_old" in name else "neel")
        weights = _native_weights(_read_state_dict(files[0]), layout, config)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{folder}: not a legacy model that can be read ({error})") from error
    save_file(weights, output / "model.safetensors")
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_native(folder: Path, dtype: torch.dtype, device: str | torch.device) -> LanguageModel:
    """Load the converted model in `folder`.

    Raises ValueError if the weights are damaged or do not fit the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformer_lens.model_bridge.sources.native import NativeModel

    bridge = _bridge_config(json.loads((folder / "config.json").read_text()))
    model = NativeModel(bridge)
    # the native unembedding has no bias, but models with folded norms need one
    model.head = nn.Linear(bridge.d_model, bridge.d_vocab)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{folder}: its weights cannot be loaded ({first_line(error)})") from error
    return LanguageModel(model.to(device, dtype), anatomy_of(bridge))


def _native_config(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the native model's config. `given` is the legacy config.

    Raises KeyError if a key is missing. Raises ValueError if native models do not support the legacy config.
    """
    if given.get("shortformer_pos"):
        raise ValueError("it has shortformer positions, which TransformerLens' native models do not support")
    return {
        "architectures": [NATIVE],
        **{key: given[key] for key in _KEPT_KEYS},
        "final_rms": given.get("final_rms", False),
        "normalization_type": given.get("normalization", given.get("normalization_type")),
    }


def _bridge_config(config: dict[str, Any]):
    from transformer_lens.config import TransformerBridgeConfig

    keys = {key: value for key, value in config.items() if key != "architectures"}
    return TransformerBridgeConfig(**keys, positional_embedding_type="standard", architecture=NATIVE)


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    import pickle

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file.name}: {first_line(error)}") from error
    return {key: value.float() for key, value in state.items()}


def _native_weights(state: dict[str, Tensor], layout: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Returns {parameter name in the native model: weight}."""
    from transformer_lens.model_bridge.sources import tl_legacy
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    bridge = _bridge_config(config)
    converters = {
        "neel-solu-old": tl_legacy._convert_neel_solu_old_weights,
        "mingpt": tl_legacy._convert_mingpt_weights,
    }
    if layout in converters:
        state = converters[layout](state, bridge)
    bridged = convert_tl_checkpoint(state, bridge)
    components = adapter_components(bridge)
    weights = {_native_name(key, components): value.contiguous() for key, value in bridged.items()}
    weights.setdefault("head.bias", torch.zeros(bridge.d_vocab))
    return weights


def _native_name(key: str, components: Any) -> str:
    """Returns the native name of the bridge parameter `key`.

    For example, `blocks.0.mlp.in.weight` becomes `layers.0.mlp.fc_in.weight`.
    """
    names = []
    for part in key.split("."):
        component = components.get(part)
        names.append(component.name if component else part)
        components = component.submodules if component else components
    return ".".join(names)
