"""Small corpora for the tests of this stage."""

import json
from pathlib import Path

from pydantic import TypeAdapter

from circuitloom.config.corpus import Corpus
from circuitloom.corpus.build import TokenizerSource, build_corpus

TEXTS = [f"Story {n} is about the number {n}, and it says so {n} times over." for n in range(120)]


def section(**keys):
    """A validated corpus section."""
    return TypeAdapter(Corpus).validate_python({"context": 16, **keys})


def built(folder: Path, tokenizer: Path | None = None, seed: int = 0, vocabulary: int = 0, **keys) -> Path:
    """Build the corpus with config `keys` in `folder`; returns `folder`."""
    name = None if tokenizer is None else str(tokenizer)
    build_corpus(section(**keys), folder, seed, TokenizerSource(name, None, vocabulary))
    return folder


def jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    """Write a JSON Lines file with one document per line."""
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
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
