"""Tiny random models of every architecture that runs, as folders in the Hugging Face layout."""

from pathlib import Path
from typing import Any

from tests.models import CONTEXT, D_MODEL, LAYERS, VOCABULARY, _save

from circuitloom.config.architectures import ARCHITECTURES

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": 40, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""Sizes under transformers' standard names. Config classes that do not know a name do not get it."""
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
OWN: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 4},
    "cohere2": {"sliding_window": 4},
    "exaone4": {"sliding_window": 4, "head_dim": 4},
    "gemma": {"head_dim": 8},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "glm": {"head_dim": 4},
    "glm4": {"head_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "granite": {
        "residual_multiplier": 0.22, "attention_multiplier": 0.25, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
    },
    "hunyuan_v1_dense": {"head_dim": 4},
    "jais2": {"head_dim": 4},
    "ministral3": {"head_dim": 8},
    "nemotron": {"head_dim": 4},
    "phi3": {"original_max_position_embeddings": CONTEXT},
    "qwen3": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "stablelm": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    "vaultgemma": GEMMA,
}  # fmt: skip
"""Keys of single architectures."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, sequential": ("falcon", {"parallel_attn": False}),
    "falcon, two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, multi-head": ("falcon", {"multi_query": False, "bias": True}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
    "gpt_bigcode, multi-head": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "llama, tied": ("llama", {"tie_word_embeddings": True, "head_dim": 8}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
}
"""Models of the same architectures with other blocks, by name."""
NAMES = [*ARCHITECTURES, *VARIANTS]


def tiny_config(name: str, sizes: dict[str, Any] = SIZES) -> Any:
    """Config of a tiny model, by model_type or the name of a variant."""
    from transformers import AutoConfig

    kind, keys = VARIANTS.get(name, (name, {}))
    known = AutoConfig.for_model(kind)
    own = {key: value for key, value in sizes.items() if hasattr(known, key)}
    return AutoConfig.for_model(kind, **{**own, **(OWN.get(kind, {}) if sizes is SIZES else {}), **keys})


def tiny_architecture(name: str, folder: Path) -> Path:
    """Save a tiny random model with its tokenizer in `folder`, by model_type or the name of a variant."""
    from transformers import AutoModelForCausalLM

    return _save(AutoModelForCausalLM.from_config, tiny_config(name), folder, 0)
