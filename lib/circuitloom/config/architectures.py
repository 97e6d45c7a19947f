"""Which architectures of language models run, how their blocks are built, and why others are refused.

Keys are values of `model_type` in a model's config.json. docs/models.md shows this table. Tests compare each entry
with a tiny model (tests/language_model/test_architectures.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """How the blocks of an architecture are built."""

    models: str
    """Well-known models."""
    gated: bool = True
    """Whether the MLP is gated, as in SwiGLU."""
    parallel: bool = False
    """Whether attention and MLP of a block both read the residual stream at the start of the block."""
    parallel_keys: tuple[str, ...] = ()
    """Keys of config.json, any of which switches parallel blocks on. `parallel` is the value of a missing key."""
    multi_query: bool = False
    """Whether all heads share one key-value head, unless config.json says otherwise."""
    refused_keys: tuple[str, ...] = ()
    """Keys of config.json that switch on what does not run."""

    def is_parallel(self, config: Mapping[str, Any]) -> bool:
        """Whether the blocks of the model with this config.json are parallel."""
        if not self.parallel_keys:
            return self.parallel
        first, *others = self.parallel_keys
        return bool(config.get(first, self.parallel)) or any(config.get(key) for key in others)


ARCHITECTURES = {
    "apertus": Architecture("Apertus", gated=False),
    "arcee": Architecture("AFM", gated=False),
    "codegen": Architecture("CodeGen", gated=False, parallel=True),
    "cohere": Architecture("Command R, Aya 23", parallel=True),
    "cohere2": Architecture("Command R7B, Command A", parallel=True),
    "ernie4_5": Architecture("ERNIE 4.5 0.3B"),
    "exaone4": Architecture("EXAONE 4"),
    # with ALiBi, fused and eager attention differ in transformers
    "falcon": Architecture(
        "Falcon", gated=False, parallel=True, parallel_keys=("parallel_attn", "new_decoder_architecture"),
        multi_query=True, refused_keys=("alibi",),
    ),
    "gemma": Architecture("Gemma", refused_keys=("use_bidirectional_attention",)),
    "gemma2": Architecture("Gemma 2", refused_keys=("use_bidirectional_attention",)),
    "gemma3_text": Architecture("Gemma 3", refused_keys=("use_bidirectional_attention",)),
    "glm": Architecture("GLM-4 9B"),
    "glm4": Architecture("GLM-4-0414"),
    "gpt2": Architecture("GPT-2, DistilGPT-2", gated=False, refused_keys=("add_cross_attention",)),
    "gpt_bigcode": Architecture(
        "SantaCoder, StarCoder", gated=False, multi_query=True, refused_keys=("add_cross_attention",)
    ),
    "gpt_neo": Architecture("GPT-Neo, TinyStories", gated=False),
    "gpt_neox": Architecture(
        "Pythia, GPT-NeoX", gated=False, parallel=True, parallel_keys=("use_parallel_residual",)
    ),
    "gptj": Architecture("GPT-J", gated=False, parallel=True),
    "granite": Architecture("Granite 3"),
    "hunyuan_v1_dense": Architecture("Hunyuan dense"),
    "internlm3": Architecture("InternLM3"),
    "iquestcoder": Architecture("IQuest-Coder"),
    "jais2": Architecture("Jais 2", gated=False),
    "llama": Architecture("Llama, SmolLM, stories260K"),
    "ministral3": Architecture("Ministral 3"),
    "mistral": Architecture("Mistral"),
    "nemotron": Architecture("Nemotron-4, Minitron", gated=False),
    "olmo": Architecture("OLMo", refused_keys=("clip_qkv",)),
    "olmo2": Architecture("OLMo 2"),
    "olmo3": Architecture("OLMo 3"),
    "phi": Architecture("Phi-1, Phi-2", gated=False, parallel=True),
    "phi3": Architecture("Phi-3, Phi-4"),
    "qwen2": Architecture("Qwen 2, Qwen 2.5"),
    "qwen3": Architecture("Qwen 3"),
    "seed_oss": Architecture("Seed-OSS"),
    "smollm3": Architecture("SmolLM3"),
    "stablelm": Architecture("StableLM", parallel_keys=("use_parallel_residual",)),
    "starcoder2": Architecture("StarCoder2", gated=False),
    "vaultgemma": Architecture("VaultGemma"),
}  # fmt: skip
"""Architectures that run from config to report."""

FOUR_TIMES = ("codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj")
"""Architectures whose MLP is 4 times as wide as the residual stream if config.json states no width."""

MULTIMODAL = {
    "gemma3": "Gemma 3 4B to 27B, MedGemma",
    "idefics3": "Idefics3, first SmolVLM",
    "llava": "LLaVA 1.5",
    "llava_next": "LLaVA 1.6",
    "llava_onevision": "LLaVA-OneVision",
    "mistral3": "Mistral Small 3.1",
}
"""Multimodal architectures whose text model is a language model of its own. It is copied; the rest is left out."""

EXPERTS = "its MLPs route each token to a few experts, so an MLP is no single map from mlp_in to mlp_out"
RECURRENT = "it has recurrent (state-space or linear attention) layers, which have no attention pattern"
ENCODER_DECODER = "it is an encoder-decoder, not a decoder-only language model"
ENCODER = "it is an encoder, not a language model that predicts the next token"
AUDIO = "it is an audio model"
VISION = "it is a vision model"
OWN_RESIDUAL = "its MLP adds the residual stream to its output, so a transcoder would learn the stream"
NO_MODULE = "its blocks have no module for the MLP, so there is no mlp_in and no mlp_out"
NORMED_STREAM = "it normalizes the residual stream itself, so the stream is not a sum of outputs"
LATENT = "its attention values are not linear in the attention's input (latent attention)"
QUANTIZED = "its layers quantize their inputs, so attention values are not linear in the attention's input"
LOOPED = "it runs the same blocks several times, so a layer has several activations per token"
LAYER_INPUTS = (
    "it feeds token embeddings into every block, so the stream is not a sum of attention and MLP outputs"
)
SHARED_NORM = "its final norm also normalizes the embedding, so the site final_norm has two values"
NONLINEAR_HEAD = "it has a nonlinear layer between its last block and the unembedding"
OWN_TEXT_MODEL = "it is multimodal, and its text model is no language model of its own in transformers"

ADAPTER = "adapter_config.json"
"""Name of the config of an adapter (LoRA), which changes the weights of another model."""
IS_ADAPTER = (
    f"has an adapter ({ADAPTER}), which would be left out; merge it into its model with peft's `merge_and_unload` "
    "and save that, or remove the adapter's files"
)
"""Why a folder with an adapter is refused, with the remedy."""

REFUSED = {
    reason: kinds.split()
    for reason, kinds in {
        EXPERTS: "afmoe deepseek_v2 deepseek_v3 deepseek_v4 ernie4_5_moe flex_olmo glm4_moe glm4_moe_lite glm_moe_dsa "
        "gpt_oss granitemoe jetmoe laguna llama4 llama4_text minimax_m2 mixtral olmoe phimoe qwen2_moe qwen3_moe "
        "qwen3_vl_moe",
        RECURRENT: "bamba falcon_h1 falcon_mamba granitemoehybrid jamba lfm2 lfm2_moe mamba mamba2 nemotron_h "
        "olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv zamba2",
        ENCODER_DECODER: "bart blenderbot florence2 led longt5 m2m_100 marian mbart mt5 pegasus switch_transformers "
        "t5 t5gemma t5gemma2",
        ENCODER: "bert roberta",
        AUDIO: "audio-spectrogram-transformer audioflamingo3 glmasr hubert musicflamingo qwen2_audio wav2vec2",
        VISION: "deit shieldgemma2 vit",
        OWN_RESIDUAL: "bloom mpt",
        NO_MODULE: "opt xglm",
        NORMED_STREAM: "openai-gpt",
        LATENT: "youtu",
        QUANTIZED: "bitnet",
        LOOPED: "hrm_text",
        LAYER_INPUTS: "gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text",
        SHARED_NORM: "nanochat",
        NONLINEAR_HEAD: "modernbert-decoder",
        OWN_TEXT_MODEL: "emu3 glm4v muse_glimmer qwen2_5_vl qwen3_vl",
    }.items()
}  # fmt: skip
"""Architectures that TransformerLens or transformers know and that do not run, by reason."""


def has_legacy_keys(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in TransformerLens' legacy format, or was converted from it."""
    return "model_type" not in config and {"d_model", "n_ctx"} <= set(config)


def find_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """Returns the architecture of the model with this config.json. For a multimodal model, `config` describes the text
    model.

    Returns None for TransformerLens' legacy format. Raises ValueError, with the reason, if the model does not run.
    """
    if has_legacy_keys(config):
        if config.get("attn_only"):
            raise ValueError("it has attention only and no MLP; choose another model (docs/models.md)")
        if config.get("shortformer_pos"):
            raise ValueError(
                "it has shortformer positions, which TransformerLens' native models do not support"
            )
        return None
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError("config.json has no model_type; is it a language model's?")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "") if isinstance(quantization, Mapping) else ""
        raise ValueError(
            f"its weights are quantized ({method or 'quantization_config'}); name the model with its original weights"
        )
    if kind in ARCHITECTURES:
        for key in ARCHITECTURES[kind].refused_keys:
            if config.get(key):
                raise ValueError(f"{kind} models with {key} do not run; choose another (docs/models.md)")
        return ARCHITECTURES[kind]
    for reason, kinds in REFUSED.items():
        if kind in kinds:
            raise ValueError(f"{kind} models do not run: {reason}; choose another (docs/models.md)")
    if config.get("auto_map"):
        raise ValueError(
            f"{kind} models do not run: their code is in the model's repository, and downloaded code is never run; "
            "choose another (docs/models.md)"
        )
    raise ValueError(
        f"{kind} models do not run: TransformerLens does not name their modules; choose another (docs/models.md)"
    )


def models_table() -> Iterator[str]:
    """Yields the lines of the tables of docs/models.md."""
    yield "| model_type | models | MLP | attention and MLP |"
    yield "|---|---|---|---|"
    for kind, each in ARCHITECTURES.items():
        blocks = "parallel" if each.parallel else "one after the other"
        if each.parallel_keys:
            blocks += f", unless `{'` or `'.join(each.parallel_keys)}` says otherwise"
        if each.refused_keys:
            blocks += f"; refused with `{each.refused_keys[0]}`"
        yield f"| `{kind}` | {each.models} | {'gated' if each.gated else 'plain'} | {blocks} |"
    yield from ("", "Multimodal models, of which the text model is copied:", "")
    yield "| model_type | models |"
    yield "|---|---|"
    yield from (f"| `{kind}` | {models} |" for kind, models in MULTIMODAL.items())
    yield from ("", "## Models that are refused", "")
    yield "| why | model_type |"
    yield "|---|---|"
    for reason, kinds in REFUSED.items():
        yield f"| {reason} | {', '.join(f'`{kind}`' for kind in kinds)} |"
