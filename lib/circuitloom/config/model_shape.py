"""The shape of a language model, read from its config before any weight is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import language_model


@dataclass(frozen=True)
class ModelShape:
    """What the size of every array in a study follows from."""

    layers: int
    d_model: int
    """Residual width, d."""
    d_mlp: int
    """MLP neurons a block."""
    heads: int
    context: int
    """Longest sequence, in tokens."""
    vocabulary: int
    """Number of tokens; 0 where the corpus decides."""
    gated: bool = False
    """The MLP has a gate (SwiGLU and its kin): three matrices, not two."""
    parallel: bool = False
    """Attention and MLP read the same residual stream: there is no `resid_mid`."""
    key_value_heads: int = 0
    """Heads of keys and values, where queries share them; 0: as many as heads."""
    tokenizer: str | None = None
    """Hub name of the model's tokenizer, where its config names one (TransformerLens' legacy format)."""


_NAMES = {
    "layers": ("n_layer", "num_hidden_layers", "n_layers", "num_layers"),
    "d_model": ("n_embd", "hidden_size", "d_model"),
    "d_mlp": ("n_inner", "intermediate_size", "d_mlp", "ffn_dim"),
    "heads": ("n_head", "num_attention_heads", "n_heads"),
    "context": ("n_positions", "max_position_embeddings", "n_ctx"),
    "vocabulary": ("vocab_size", "d_vocab"),
}


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a model's config.json states, under whichever of the usual names.

    Raises ValueError where a size is not to be found.
    """
    sizes = {}
    for field, names in _NAMES.items():
        value = next((config[name] for name in names if config.get(name)), None)
        if value is None and field == "d_mlp":
            value = 4 * sizes["d_model"]
        if value is None:
            raise ValueError(
                f"config.json states no {field} (looked for {', '.join(names)}); is it a language model's?"
            )
        sizes[field] = int(value)
    gated = config.get("hidden_act") in ("silu", "swish") or bool(config.get("gated_mlp"))
    parallel = bool(config.get("use_parallel_residual", config.get("model_type") == "gpt_neox"))
    shared = int(config.get("num_key_value_heads") or 0)
    return ModelShape(
        **sizes, gated=gated, parallel=parallel, key_value_heads=shared % sizes["heads"],
        tokenizer=config.get("tokenizer_name"),
    )  # fmt: skip


def read_shape(config: language_model.LanguageModel, context: int) -> ModelShape:
    """The shape of the model that a config asks for.

    Raises ValueError, naming the key and the remedy, where the folder or the hub has no such model.
    """
    if isinstance(config, language_model.HubModel) and config.shape is not None:
        return ModelShape(**config.shape.model_dump())
    if isinstance(config, language_model.Pretrain):
        d_mlp = config.d_mlp or 4 * config.d_model
        return ModelShape(config.layers, config.d_model, d_mlp, config.heads, context, 0)
    if isinstance(config, language_model.ModelFolder):
        file = Path(config.path) / "config.json"
        if not file.is_file():
            raise ValueError(
                f"language_model.path: {file} does not exist; name a folder in the Hugging Face layout"
            )
    else:
        file = hub_file(config.name, "config.json", config.revision)
    try:
        return shape_of(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(f"language_model: {file}: {error}") from error


def check_shape(stated: language_model.ModelSizes, config: dict[str, Any]) -> None:
    """ValueError where a model's config.json states another size than the study does."""
    found = shape_of(config)
    for name, size in stated.model_dump().items():
        if size != getattr(found, name):
            raise ValueError(
                f"language_model.shape.{name}: {size}, and the model's is {getattr(found, name)}; correct it, or leave "
                "the shape out"
            )


def hub_file(name: str, file: str, revision: str) -> Path:
    """A file of a hub repository, from the cache or the network.

    Raises ValueError, with the remedy, where neither has it.
    """
    import httpx2
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"language_model.name: {name} (revision {revision}) is not in the hub's cache and the hub is out of reach; "
            "set HF_HUB_OFFLINE=0 to download it, or HF_HOME to where it lies"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ValueError(
            f"language_model.name: no {file} in {name} at revision {revision}; "
            "check the name, and HF_TOKEN if it is private"
        ) from error
