"""Models in GGUF files: dequantized weights, the tokenizer, and messages of one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.corpus.inputs import TEXTS, bpe
from tests.language_model.inputs import make_tokenizer

from circuitloom.config import load_study
from circuitloom.config.language_model import ModelFolder
from circuitloom.config.model_shape import ModelShape, read_shape
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.language_model.installation import install
from circuitloom.language_model.model import load_model

gguf = pytest.importorskip("gguf", reason="pip install gguf==0.19.0")

HEADS, KEY_VALUE_HEADS = 4, 2
TOKENS = torch.arange(4, 20)[None]
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def llama():
    """A random model whose rows fill blocks of 32 numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[1:2] == ["layers"]:
        return f"blk.{parts[2]}.{NAMES['.'.join(parts[3:])]}.weight"
    return f"{NAMES['.'.join(parts)]}.weight"


def reordered(name: str, weight: np.ndarray, halves: tuple[int, int]) -> np.ndarray:
    """Rows of queries and keys: llama.cpp interleaves the halves of each head. Other weights as they are."""
    heads = {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.reshape(heads, *halves, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path, model, tokenizer: Path, quantization: str, parts: int = 1
) -> dict[str, torch.Tensor]:
    """Write a model to a GGUF file; returns its weights with the file's precision."""
    writer = gguf.GGUFWriter(file, "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_uint16("split.count", parts)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    words = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    vocabulary = sorted(words["vocab"], key=words["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in vocabulary])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in words["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    kind = gguf.GGMLQuantizationType[quantization]
    stored = {}
    for name, weight in model.state_dict().items():
        values = reordered(gguf_name(name), weight.numpy(), (2, -1))
        own = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(values, own)
        writer.add_tensor(gguf_name(name), data, raw_dtype=own)
        stored[name] = torch.from_numpy(
            reordered(gguf_name(name), gguf.dequantize(data, own), (-1, 2)).copy()
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return bpe(tmp_path / "tokenizer", "<s>", "</s>")


def section(file: Path) -> ModelFolder:
    return ModelFolder(source="path", path=str(file))


@pytest.mark.parametrize(
    ("quantization", "words"), [("F32", "read from F32"), ("Q8_0", "dequantized from Q8_0, F32")]
)
def test_a_gguf_file_is_read_dequantized_and_said_to_be(quantization, words, tokenizer, tmp_path, capsys):
    model, file = llama(), tmp_path / "tiny.gguf"
    stored = write_gguf(file, model, tokenizer, quantization)
    install(section(file), make_tokenizer(tmp_path / "other"), tmp_path / "model")
    assert f"circuitloom: language_model: {file}, {words}\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "model" / "source.json").read_text())["weights"] == words
    model.load_state_dict(stored)
    installed = load_model(tmp_path / "model", device="cpu")
    assert torch.equal(installed.logits(TOKENS), model(TOKENS).logits)
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    want = load_tokenizer(str(tokenizer))
    for name in (str(file), str(tmp_path / "model")):
        got = load_tokenizer(name)
        assert (got.bos_id, got.eos_id, got.vocabulary) == (want.bos_id, want.eos_id, want.vocabulary)
        assert all(map(np.array_equal, got.encode(TEXTS), want.encode(TEXTS)))


def test_the_sizes_are_read_from_the_file(tokenizer, tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, llama(), tokenizer, "F16")
    expected = ModelShape(
        layers=2, d_model=32, d_mlp=64, heads=4, context=64, vocabulary=500, gated=True, key_value_heads=2
    )
    assert read_shape(section(file), 8) == expected
    study = load_study(
        {
            "name": "x",
            "corpus": {"source": "files", "train": str(tmp_path / "a.txt"), "context": 16},
            "language_model": {"source": "path", "path": str(file)},
        }
    )
    assert study.tokenizer == (str(file), None) and not study.uses_hub


def test_a_file_that_does_not_exist_or_is_damaged_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"language_model.path: .*none.gguf does not exist; correct the path"
    ):
        read_shape(section(tmp_path / "none.gguf"), 8)
    for content in (b"GGUF", b"GGUF" + bytes(60), b"no such format", b""):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"transformers cannot read .*broken.gguf \(.*; use another"
        ) as error:
            read_shape(section(tmp_path / "broken.gguf"), 8)
        assert "\n" not in str(error.value)


def test_one_part_of_a_split_file_is_refused(tokenizer, tmp_path):
    write_gguf(tmp_path / "tiny-1-of-3.gguf", llama(), tokenizer, "F16", parts=3)
    with pytest.raises(ValueError, match=r"tiny-1-of-3.gguf \(one of 3 parts; join them with llama.cpp's"):
        read_shape(section(tmp_path / "tiny-1-of-3.gguf"), 8)


def test_a_folder_with_a_gguf_file_alone_names_the_file(tmp_path):
    (tmp_path / "a.gguf").touch()
    with pytest.raises(
        ValueError, match=r"config.json does not exist; name the GGUF file itself, such as .*a.gguf"
    ):
        read_shape(section(tmp_path), 8)


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"reading a.gguf needs a package; run `pip install gguf==0.19.0`"):
        read_shape(section(tmp_path / "a.gguf"), 8)
