"""Token arrays, configs and a hub cache for the tests of language models."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from tests.models import VOCABULARY

from circuitloom.config.language_model import Pretrain
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.corpus.tokenizer import Tokenizer, word_tokenizer
from circuitloom.corpus.tokens import Tokens, open_tokens

CONTEXT = 16


def make_tokens(
    folder: Path,
    sequences: int = 64,
    bos_id: int | None = 0,
    context: int = CONTEXT,
    largest: int = VOCABULARY - 1,
) -> Tokens:
    """Sequences in which every token is the previous one plus five, cycling through 2 to `largest`."""
    inside = context - (bos_id is not None)
    stream = np.arange(sequences * inside) * 5 % (largest - 1) + 2
    token = stream.astype(np.uint16).reshape(sequences, inside)
    if bos_id is not None:
        token = np.concatenate([np.full((sequences, 1), bos_id, np.uint16), token], axis=1)
    attributes = {"bos_id": bos_id, "separator_id": bos_id, "vocabulary": largest + 1}
    write_tokens(folder, [(token, np.zeros_like(token, np.int32))], sequences, attributes)
    return open_tokens(folder)


def make_tokenizer(folder: Path, words: int = VOCABULARY - 1) -> Path:
    """A folder with a tokenizer of `words` words and a BOS."""
    tokenizer: Tokenizer = word_tokenizer([f"w{i}" for i in range(words)])
    tokenizer.save(folder)
    return folder


def make_config(**keys) -> Pretrain:
    """Config of a one-block model that trains in a second; `keys` override."""
    usual = {"source": "pretrain", "layers": 1, "d_model": 32, "heads": 2, "tokens": 15_000, "batch": 8}
    return Pretrain.model_validate({**usual, **keys})


def make_hub_repository(cache: Path, name: str, folder: Path, revision: str = "main") -> str:
    """Add `folder` to a hub cache as a repository; returns the commit of `revision`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(f"{name} {revision}".encode()).hexdigest()
    snapshot = repository / "snapshots" / commit
    for part in ("blobs", "refs"):
        (repository / part).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    for file in (file for file in folder.rglob("*") if file.is_file()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return commit


def make_legacy(folder: Path, act_fn: str = "gelu", normalization: str = "LNPre", seed: int = 0) -> Path:
    """A two-layer model in TransformerLens' legacy format, with a checkpoint folder."""
    layers, d, heads, e, m, context, vocabulary = 2, 16, 4, 4, 64, 32, VOCABULARY
    config = {
        "n_layers": layers, "d_model": d, "d_mlp": m, "d_head": e, "n_heads": heads, "n_ctx": context,
        "d_vocab": vocabulary, "act_fn": act_fn, "attn_only": False, "normalization": normalization,
    }  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    shapes = {"embed.W_E": (vocabulary, d), "pos_embed.W_pos": (context, d)}
    for layer in range(layers):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.attn.W_{x}": (heads, d, e) for x in "QKV"}
        shapes |= {f"{block}.attn.b_{x}": (heads, e) for x in "QKV"}
        shapes |= {f"{block}.attn.W_O": (heads, e, d), f"{block}.attn.b_O": (d,)}
        shapes |= {f"{block}.mlp.W_in": (d, m), f"{block}.mlp.b_in": (m,)}
        shapes |= {f"{block}.mlp.W_out": (m, d), f"{block}.mlp.b_out": (d,)}
        if act_fn == "solu_ln":
            shapes |= {f"{block}.mlp.ln.w": (m,), f"{block}.mlp.ln.b": (m,)}
    shapes |= {"unembed.W_U": (d, vocabulary), "unembed.b_U": (vocabulary,)}
    state = {name: torch.randn(shape, generator=random) / 2 for name, shape in shapes.items()}
    # legacy files contain this buffer
    state["blocks.0.attn.mask"] = torch.ones(context, context).tril().bool()
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "model_final.pth")
    torch.save({}, folder / "checkpoints" / "model_100.pth")
    return folder
