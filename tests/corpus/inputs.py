"""Small corpora and tokenizers for the tests of this stage."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from tokenizers import Regex

from circuitloom.config.corpus import Corpus
from circuitloom.core.tables import read_table
from circuitloom.corpus.build import TokenizerSource, build_corpus
from circuitloom.corpus.files import DataFile, file_format
from circuitloom.corpus.rows import Row
from circuitloom.corpus.tokenizer import Tokenizer
from circuitloom.corpus.tokens import open_tokens

TEXTS = [f"Story {n} is about the number {n}, and it says so {n} times over." for n in range(120)]


def section(**keys):
    """A validated corpus section."""
    return TypeAdapter(Corpus).validate_python({"context": 16, **keys})


def built(folder: Path, tokenizer: Path | None = None, seed: int = 0, vocabulary: int = 0, **keys) -> Path:
    """Build the corpus with config `keys` in `folder`; returns `folder`."""
    name = None if tokenizer is None else str(tokenizer)
    build_corpus(section(**keys), folder, seed, TokenizerSource(name, None, vocabulary))
    return folder


def texts(folder: Path, split: str) -> list[str]:
    """The documents of a split of a corpus."""
    rows = read_table(folder / "document.parquet").to_pylist()
    return [row["text"] for row in rows if row["split"] == split]


def assert_same_tokens(formats: dict[str, dict], folder: Path, tokenizer: Path) -> None:
    """Build a corpus with the config keys of each of `formats`; all must have the same tokens and documents."""
    want = None
    for name, keys in formats.items():
        corpus = built(folder / name, tokenizer, validation_share=0.3, **keys)
        splits = ("train", "validation")
        arrays = [open_tokens(corpus / f"{split}.zarr").take(slice(0, 10**6)).numpy() for split in splits]
        got = [*arrays, *(texts(corpus, split) for split in splits)]
        want = want or got
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True)), name


def jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    """Write a JSON Lines file with one document per line."""
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


def rows(path: Path, start: int = 0, **keys) -> list[str | Row]:
    """Rows of a file."""
    kind = file_format(str(path))
    assert kind
    return list(DataFile(str(path), kind, **keys).rows(start))


def write(path: Path, content: str | bytes) -> Path:
    """Write a file; returns `path`."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(path: Path, documents: list[str]) -> Path:
    """Write a Parquet file with one document per row, and a second column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"number": range(len(documents)), "text": documents}), path)
    return path


def bpe(folder: Path, bos: str | None = "<s>", eos: str | None = None) -> Path:
    """Save a byte-level BPE tokenizer in `folder`, the BOS (if any) with id 0; returns `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from circuitloom.corpus.chronicle.grammar import write_episode

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [token for token in (bos, eos) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([*TEXTS, *(write_episode(8, "train", n).text for n in range(50))], trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos).save_pretrained(folder)
    return folder


SPECIAL = ["<unk>", "<s>", "</s>"]
"""Special tokens of `trained`, with ids 0 to 2."""
BYTE_LEVEL, LLAMA, UNIGRAM, CHARACTERS, WORD_PIECE, WORDS = KINDS = (
    "byte-level BPE", "BPE with a blank in front", "Unigram", "Unigram without words", "WordPiece", "words",
)  # fmt: skip
"""Kinds of tokenizers."""


@cache
def trained(kind: str) -> Tokenizer:
    """A tokenizer of one of `KINDS` whose BOS is `<s>` and whose EOS is `</s>`."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    options = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == BYTE_LEVEL:
        backend = Backend(models.BPE())
        # a text's blanks and digits as in GPT-4's and Llama 3's tokenizers
        digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+(?!\S)| ?[^\s\p{N}]+|\s+"), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, **options)
    elif kind == LLAMA:
        backend = Backend(models.BPE())
        # the whole text is one word, as in Llama's and Gemma's tokenizers
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        trainer = trainers.BpeTrainer(vocab_size=400, max_token_length=8, **options)
    elif kind == UNIGRAM:
        backend = Backend(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", **options)
    elif kind == CHARACTERS:
        backend = Backend(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        trainer = trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", **options)
    elif kind == WORD_PIECE:
        backend = Backend(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, **options)
    else:
        backend = Backend(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=400, **options)
    backend.train_from_iterator(TEXTS + ["Ein Maß für Größe: naïve œuvre, 中文 的 文本 2024."] * 3, trainer)
    if kind == LLAMA:
        state = json.loads(backend.to_str())
        size = len(state["model"]["vocab"])
        state["model"]["vocab"] |= {f"<0x{byte:02X}>": size + byte for byte in range(256)}
        state["model"].update(byte_fallback=True, unk_token="<unk>")
        backend = Backend.from_str(json.dumps(state))
    return Tokenizer(backend, bos_id=1, eos_id=2)
