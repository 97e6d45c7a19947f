"""Reads the sizes of a language model from its config, without its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import language_model


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a language model. They determine the size of every array in a study."""

    layers: int
    d_model: int
    """Width of the residual stream."""
    d_mlp: int
    """Number of MLP neurons per block."""
    heads: int
    context: int
    """Maximum length of a sequence, in tokens."""
    vocabulary: int
    """Number of tokens in the vocabulary. 0 means the vocabulary size of the corpus' tokenizer."""
    gated: bool = False
    """Whether the MLP is gated, as in SwiGLU. A gated MLP has three matrices instead of two."""
    parallel: bool = False
    """Whether attention and MLP both read the residual stream at the start of the block. If so, there is no
    `resid_mid`."""
    key_value_heads: int = 0
    """Number of key-value heads, for grouped-query attention. 0 means the same number as `heads`."""
    tokenizer: str | None = None
    """Hub name of the tokenizer, if the model's config names it (TransformerLens' legacy format)."""

    @property
    def parameters(self) -> int:
        """Approximate number of parameters: the matrices of attention and MLPs, and two embeddings."""
        shared = (self.key_value_heads or self.heads) / self.heads
        attention = 2 * (1 + shared) * self.d_model**2
        mlp = (3 if self.gated else 2) * self.d_model * self.d_mlp
        return round(self.layers * (attention + mlp)) + 2 * self.vocabulary * self.d_model


_NAMES = {
    "layers": ("n_layer", "num_hidden_layers", "n_layers", "num_layers"),
    "d_model": ("n_embd", "hidden_size", "d_model"),
    "d_mlp": ("n_inner", "intermediate_size", "d_mlp", "ffn_dim"),
    "heads": ("n_head", "num_attention_heads", "n_heads"),
    "context": ("n_positions", "max_position_embeddings", "n_ctx"),
    "vocabulary": ("vocab_size", "d_vocab"),
}


def shape_of(config: dict[str, Any]) -> ModelShape:
    """Returns the sizes in a model's config.json, under any of their usual names. Raises ValueError if a size is
    missing."""
    sizes = {}
    for field, names in _NAMES.items():
        value = next((config[name] for name in names if config.get(name)), None)
        if value is None and field == "d_mlp":
            value = 4 * sizes["d_model"]
        if value is None:
            raise ValueError(
                f"config.json has no {field} (looked for {', '.join(names)}); is it a language model's?"
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
    """Returns the sizes of the configured model.

    Raises ValueError, with the key and the remedy, if the folder or the hub does not have the model.
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


def check_shape(configured: language_model.ModelSizes, config: dict[str, Any]) -> None:
    """Raise ValueError if the sizes in a model's config.json differ from those in the study's config."""
    found = shape_of(config)
    for name, size in configured.model_dump().items():
        if size != getattr(found, name):
            raise ValueError(
                f"language_model.shape.{name}: {size}, but the model has {getattr(found, name)}; correct it, or remove "
                "the shape"
            )


def hub_file(name: str, file: str, revision: str) -> Path:
    """Returns the path of a file of a hub repository. Downloads the file if it is not in the cache.

    Raises ValueError, with the remedy, if neither the cache nor the hub has the file.
    """
    import httpx2
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"language_model.name: {name} (revision {revision}) is not in the hub's cache and the hub is out of reach; "
            "set HF_HUB_OFFLINE=0 to download it, or set HF_HOME to the folder of the cache"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ValueError(
            f"language_model.name: no {file} in {name} at revision {revision}; "
            "check the name, and HF_TOKEN if it is private"
        ) from error
