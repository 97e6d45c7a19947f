"""Reads the sizes of a language model from its config, without its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.hub import hub_file
from . import language_model
from .architectures import ADAPTER, FOUR_TIMES, IS_ADAPTER, MULTIMODAL, find_architecture

GGUF = ".gguf"
"""Suffix of a file in llama.cpp's format, which holds config, weights and tokenizer."""


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
    head_dim: int = 0
    """Width of a head. 0 means d_model / heads."""
    tied: bool = False
    """Whether embedding and unembedding are one matrix."""
    tokenizer: str | None = None
    """Hub name of the tokenizer, if the model's config names it (TransformerLens' legacy format)."""

    @property
    def attention_width(self) -> int:
        """Width of the outputs of all heads together, which is the width of W_O's input."""
        return self.heads * self.head_dim or self.d_model

    @property
    def attention_weights(self) -> int:
        """Number of weights in the four matrices of a block's attention."""
        shared = (self.key_value_heads or self.heads) / self.heads
        return round(2 * (1 + shared) * self.attention_width * self.d_model)

    @property
    def mlp_weights(self) -> int:
        """Number of weights in the matrices of a block's MLP."""
        return (3 if self.gated else 2) * self.d_model * self.d_mlp

    @property
    def parameters(self) -> int:
        """Approximate number of parameters: the matrices of attention and MLPs, embedding and unembedding."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.d_model
        return self.layers * (self.attention_weights + self.mlp_weights) + embeddings


_NAMES = {
    "layers": ("n_layer", "num_hidden_layers", "n_layers", "num_layers"),
    "d_model": ("n_embd", "hidden_size", "d_model"),
    "d_mlp": ("n_inner", "intermediate_size", "d_mlp", "ffn_dim", "ffn_hidden_size"),
    "heads": ("n_head", "num_attention_heads", "n_heads", "num_heads"),
    "context": ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"),
    "vocabulary": ("vocab_size", "d_vocab"),
}
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
_HEAD_DIM = ("head_dim", "d_head")


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Returns the sizes in a model's config.json, under any of their usual names.

    A size that is missing is the default of transformers' config class. Raises ValueError if the model does not run, or
    if a size is missing there too.
    """
    config = text_config(config)
    architecture = find_architecture(config)
    four_times = architecture is None or config["model_type"] in FOUR_TIMES
    sizes = _sizes(config, four_times)
    if len(sizes) < len(_NAMES) and architecture is not None:
        config = _with_defaults(config)
        sizes = _sizes(config, four_times)
    for field, names in _NAMES.items():
        if field not in sizes:
            raise ValueError(
                f"config.json has no {field} (looked for {', '.join(names)}); is it a language model's?"
            )
    heads, shared = sizes["heads"], _size(config, _KEY_VALUE_HEADS) or 0
    if architecture is not None and architecture.multi_query and not config.get("new_decoder_architecture"):
        shared = 1 if config.get("multi_query", True) else 0
    head_dim = _size(config, _HEAD_DIM) or 0
    return ModelShape(
        **sizes,
        gated=bool(config.get("gated_mlp")) if architecture is None else architecture.gated,
        parallel=architecture is not None and architecture.is_parallel(config),
        key_value_heads=shared % heads,
        head_dim=0 if head_dim * heads == sizes["d_model"] else head_dim,
        # config.json states it if it is not the default of the config class
        tied=architecture is not None and bool(config.get("tie_word_embeddings", True)),
        tokenizer=config.get("tokenizer_name"),
    )


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Returns the number of positions that a config.json states, or None if it states none."""
    return _size(text_config(config), _NAMES["context"])


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the config of the text model of a multimodal config.json, with the defaults of transformers' config
    class. Returns other configs unchanged."""
    return _with_defaults(config) if config.get("model_type") in MULTIMODAL else config


def _sizes(config: Mapping[str, Any], four_times: bool) -> dict[str, int]:
    """Returns the sizes that a config states. With `four_times`, a missing width of the MLP is 4 times d_model."""
    found = {field: _size(config, names) for field, names in _NAMES.items()}
    if four_times and not found["d_mlp"] and found["d_model"]:
        found["d_mlp"] = 4 * found["d_model"]
    return {field: size for field, size in found.items() if size}


def _size(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Returns the first size that is neither missing nor zero, or None. Raises ValueError if it is no size."""
    name = next((name for name in names if config.get(name)), None)
    if name is None:
        return None
    value = config[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0 or value % 1:
        raise ValueError(f"config.json states {value!r} for {name}; a whole number above 0 is needed")
    return int(value)


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a model, or of its text model, with the defaults of transformers' config class.

    Raises ValueError if the class does not accept the config.
    """
    # takes a second or more, because it imports torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        # lists and dictionaries are copied, because config classes change them
        found = AutoConfig.for_model(**json.loads(json.dumps(dict(config)))).get_text_config(decoder=True)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"transformers does not accept this config.json ({reason})") from error
    return {**found.to_dict(), "model_type": found.model_type}


def read_shape(config: language_model.LanguageModel, context: int) -> ModelShape:
    """Returns the sizes of the configured model.

    Raises ValueError, with the key and the remedy, if the folder or the hub does not have the model, or if the model
    does not run.
    """
    if isinstance(config, language_model.HubModel) and config.shape is not None:
        return ModelShape(**config.shape.model_dump())
    if isinstance(config, language_model.Pretrain):
        d_mlp = config.d_mlp or 4 * config.d_model
        return ModelShape(config.layers, config.d_model, d_mlp, config.heads, context, 0)
    file, settings = read_model_config(config)
    try:
        return shape_of(settings)
    except ValueError as error:
        raise ValueError(f"language_model: {file}: {error}") from error


def read_model_config(
    config: language_model.ModelFolder | language_model.HubModel,
) -> tuple[Path, dict[str, Any]]:
    """Returns a model's config.json, or GGUF file, and the settings in it.

    Raises ValueError, with the key and the remedy, if the file does not exist or is damaged.
    """
    if isinstance(config, language_model.HubModel):
        file = hub_file(config.name, "config.json", config.revision, "language_model.name")
    else:
        path = Path(config.path)
        if path.suffix == GGUF:
            return path, read_gguf_config(path)
        file = path / "config.json"
        if (path / ADAPTER).is_file():
            raise ValueError(f"language_model.path: {path} {IS_ADAPTER}")
        if not file.is_file():
            raise ValueError(f"language_model.path: {_missing_config(path, file)}")
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"language_model: {file}: not a JSON file ({error}); replace it") from error
    if not isinstance(settings, dict):
        raise ValueError(f"language_model: {file}: not a model's config; replace it")
    return file, settings


def _missing_config(path: Path, file: Path) -> str:
    """Returns the message that a folder has no config.json, with a remedy."""
    quantized = sorted(path.glob(f"*{GGUF}")) if path.is_dir() else []
    if quantized:
        return f"{file} does not exist; name the GGUF file itself, such as {quantized[0]}"
    return f"{file} does not exist; name a folder in the Hugging Face layout, or a GGUF file"


def read_gguf_config(file: Path) -> dict[str, Any]:
    """Returns the settings of the model in a GGUF file, as in a config.json.

    Raises ValueError if the file does not exist, if the package `gguf` is missing, or if transformers cannot read it.
    """
    if not file.is_file():
        raise ValueError(f"language_model.path: {file} does not exist; correct the path")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"language_model.path: reading {file.name} needs a package; run `pip install gguf==0.19.0`"
        ) from error
    try:
        return _gguf_settings(file)
    # the readers raise errors of many classes for a damaged file
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"language_model.path: transformers cannot read {file} ({reason}); use another file, or the model's "
            "folder in the Hugging Face layout"
        ) from error


_GGUF_KINDS = {
    "gemma2": "gemma2", "gemma3": "gemma3_text", "gpt2": "gpt2", "llama": "llama", "nemotron": "nemotron",
    "phi3": "phi3", "qwen2": "qwen2", "qwen3": "qwen3", "starcoder2": "starcoder2",
}  # fmt: skip
"""Maps names of architectures in GGUF files to their `model_type`, where the metadata states all sizes."""


def _gguf_settings(file: Path) -> dict[str, Any]:
    from transformers import PreTrainedConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, tensors = read_gguf_metadata(str(file))
    if (parts := metadata.get("split.count", 1)) > 1:
        raise ValueError(f"one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`")
    kind = metadata["general.architecture"]
    if kind not in _GGUF_KINDS:
        return PreTrainedConfig.get_config_dict(file.parent, gguf_file=file.name)[0]
    # get_config_dict also reads each token, which takes 20 seconds for Gemma
    names = GGUF_CONFIG_MAPPING[kind].items()
    settings = {name: metadata[f"{kind}.{key}"] for key, name in names if f"{kind}.{key}" in metadata}
    settings.setdefault("vocab_size", metadata["tokenizer.ggml.tokens"])
    return {
        **settings,
        "model_type": _GGUF_KINDS[kind],
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def check_shape(configured: language_model.ModelSizes, config: Mapping[str, Any]) -> None:
    """Raise ValueError if the sizes in a model's config.json differ from those in the study's config."""
    found = shape_of(config)
    for name, size in configured.model_dump().items():
        if size != getattr(found, name):
            raise ValueError(
                f"language_model.shape.{name}: {size}, but the model has {getattr(found, name)}; correct it, or remove "
                "the shape"
            )
