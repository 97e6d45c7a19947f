"""Tiny random models of three architectures, as folders in the Hugging Face layout."""

import shutil
import tempfile
from pathlib import Path

import torch

VOCABULARY = 64
CONTEXT = 32
D_MODEL = 16
LAYERS = 3
ARCHITECTURES = ("gpt2", "llama", "neox")


def tiny_gpt2(folder: Path, activation: str = "gelu_new", seed: int = 0) -> Path:
    """LayerNorm, learned positions, sequential blocks, a plain MLP; `activation="relu"` for ReLU."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=D_MODEL, n_layer=LAYERS, n_head=2,
        activation_function=activation, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _save(GPT2LMHeadModel, config, folder, seed)


def tiny_llama(folder: Path, seed: int = 0) -> Path:
    """RMSNorm, rotary positions, sequential blocks, a SwiGLU MLP, grouped heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=D_MODEL, intermediate_size=40,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _save(LlamaForCausalLM, config, folder, seed)


def tiny_neox(folder: Path, parallel: bool = True, seed: int = 0) -> Path:
    """LayerNorm, rotary positions, blocks whose attention and MLP run in parallel (or not), a GELU MLP."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=D_MODEL, intermediate_size=64,
        num_hidden_layers=LAYERS, num_attention_heads=2, use_parallel_residual=parallel,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _save(GPTNeoXForCausalLM, config, folder, seed)


def tiny_model(architecture: str, folder: Path, seed: int = 0) -> Path:
    """One of `ARCHITECTURES` by name."""
    return {"gpt2": tiny_gpt2, "llama": tiny_llama, "neox": tiny_neox}[architecture](folder, seed=seed)


_saved: dict[tuple[str, str, int], Path] = {}
_folder = tempfile.TemporaryDirectory(prefix="tiny-models-")


def _save(cls, config, folder: Path, seed: int) -> Path:
    """Save a random model with its tokenizer. A process makes each model once, and copies its files."""
    key = repr(cls), config.to_json_string(use_diff=False), seed
    if key not in _saved:
        _saved[key] = Path(_folder.name) / str(len(_saved))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(config)
            # new norms and biases are ones and zeros, which would hide a missing gain or bias
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(_saved[key])
        _tokenizer().save_pretrained(_saved[key])
    shutil.copytree(_saved[key], folder, dirs_exist_ok=True)
    return folder


def _tokenizer():
    """Word level: `<pad>`, `<bos>`, `<eos>`, `<unk>`, then the words w4, w5, ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = special + [f"w{i}" for i in range(len(special), VOCABULARY)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )
