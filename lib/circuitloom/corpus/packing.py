"""Concatenates documents to a stream of tokens, and cuts the stream into sequences of equal length. Each finished block
of sequences is written to disk. A killed run resumes after the last finished block."""

import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Integer

from ..core.atomic_io import fsync, write_atomically
from ..core.tables import DOCUMENT, read_table, write_table
from .source import START, Counts, Document, Place
from .token_arrays import SequenceArrays
from .tokenizer import Tokenizer

_TOKENIZER_BATCH = 1000
"""Number of documents tokenized per call."""


@dataclass(frozen=True)
class Cursor:
    """Position in a split where packing resumes."""

    place: Place = START
    """Position of the next document in the source."""
    document: int = 0
    """Number of the next document within the split. Skipped documents do not count."""
    offset: int = 0
    """Number of the next document's tokens that are already packed. The BOS counts as a token."""
    sequences: int = 0
    """Number of sequences packed so far."""
    counts: Counts = field(default_factory=dict)
    """What reading has counted before `place`."""

    @classmethod
    def read(cls, file: Path) -> "Cursor":
        """Read a cursor from the JSON file of a block."""
        keys = json.loads(file.read_text())
        counts = {kind: (number, first) for kind, (number, first) in keys.pop("counts").items()}
        return cls(Place(*keys.pop("place")), counts=counts, **keys)


@dataclass(frozen=True)
class PackedDocument:
    """A packed document, as a row of table DOCUMENT."""

    document: int
    text: str
    n_tokens: int
    """Number of tokens of the document, without BOS and EOS."""
    log_probability: float | None
    """Log probability that the grammar generates this document, in nats. None for real text."""


@dataclass(frozen=True)
class SequenceBlock:
    """Consecutive packed sequences."""

    token: Integer[np.ndarray, "sequence position"]
    document: Integer[np.ndarray, "sequence position"]
    documents: list[PackedDocument]
    """Documents that begin in the block, in order."""
    cursor: Cursor
    """Position where the next block begins."""


class Rest(NamedTuple):
    """What does not fill a last sequence."""

    tokens: int
    documents: int
    """Number of documents that are completely dropped."""


@dataclass(frozen=True)
class Packing:
    """Settings for packing documents into sequences."""

    tokenizer: Tokenizer
    context: int
    """Number of tokens per sequence."""
    model_vocabulary: int = 0
    """Vocabulary size of the language model. 0 if the model will get the tokenizer's vocabulary size."""

    @property
    def prefix(self) -> list[int]:
        """Token ids before each document and each sequence: [BOS], or [] if the tokenizer has no BOS."""
        return [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]

    @property
    def suffix(self) -> list[int]:
        """Token ids after each document: [EOS] if the tokenizer has an EOS but no BOS, and otherwise []."""
        return [] if self.prefix or self.tokenizer.eos_id is None else [self.tokenizer.eos_id]

    @property
    def stride(self) -> int:
        """Number of tokens per sequence, without the BOS at the start."""
        return self.context - len(self.prefix)

    @property
    def dtype(self) -> type[np.unsignedinteger] | type[np.signedinteger]:
        """Data type of stored token ids: uint16 if every id fits, and otherwise int32."""
        return np.uint16 if self.tokenizer.vocabulary <= 2**16 else np.int32


@dataclass(frozen=True)
class _Span:
    """Consecutive tokens of one document. A BOS or EOS counts as a token of the document."""

    source: Document
    document: int
    offset: int
    """Number of the document's tokens before this span."""
    n_tokens: int
    tokens: Integer[np.ndarray, " token"]


def pack_documents(
    documents: Iterable[Document],
    packing: Packing,
    cursor: Cursor,
    block: int,
    limit: int | None = None,
) -> Generator[SequenceBlock, None, Rest | None]:
    """Yield blocks of `block` sequences. The last block may be smaller.

    `documents` must begin with the document at `cursor`. `limit` is the maximum number of sequences of the split,
    including the sequences before `cursor`. Tokens after the last complete sequence are dropped: the generator returns
    their number, or None if it stops at the limit. Raises ValueError if a token id is not in the model's vocabulary.
    """
    pending: list[_Span] = []
    n_pending = 0
    numbered = enumerate(documents, cursor.document)
    while limit is None or cursor.sequences < limit:
        wanted = block if limit is None else min(block, limit - cursor.sequences)
        while n_pending < wanted * packing.stride and (batch := list(islice(numbered, _TOKENIZER_BATCH))):
            spans = _tokenize(batch, packing, cursor)
            n_pending += sum(len(span.tokens) for span in spans)
            pending += spans
        sequences = min(wanted, n_pending // packing.stride)
        if not sequences:
            return Rest(n_pending, sum(span.offset == 0 for span in pending))
        taken, pending = _split(pending, sequences * packing.stride)
        n_pending -= sequences * packing.stride
        cursor = _advance(cursor, sequences, taken, pending)
        yield _block(taken, packing, cursor)
    return None


def _tokenize(batch: list[tuple[int, Document]], packing: Packing, cursor: Cursor) -> list[_Span]:
    tokenizer = packing.tokenizer
    spans = []
    for (number, source), ids in zip(batch, tokenizer.encode([d.text for _, d in batch]), strict=True):
        tokens = np.concatenate([packing.prefix, ids, packing.suffix]).astype(np.int32)
        largest = int(tokens.max(initial=0))
        if packing.model_vocabulary and largest >= packing.model_vocabulary:
            raise ValueError(
                f"corpus.tokenizer: gives token {largest}, but the model knows {packing.model_vocabulary} tokens; "
                "use the tokenizer that the model was trained with"
            )
        offset = cursor.offset if number == cursor.document else 0
        spans.append(_Span(source, number, offset, len(ids), tokens[offset:]))
    return spans


def _split(spans: list[_Span], tokens: int) -> tuple[list[_Span], list[_Span]]:
    """Returns the spans of the first `tokens` tokens, and the spans of all later tokens."""
    ends = np.cumsum([len(span.tokens) for span in spans])
    last = int(np.searchsorted(ends, tokens))
    span = spans[last]
    kept = len(span.tokens) - int(ends[last] - tokens)
    head = _Span(span.source, span.document, span.offset, span.n_tokens, span.tokens[:kept])
    tail = _Span(span.source, span.document, span.offset + kept, span.n_tokens, span.tokens[kept:])
    return [*spans[:last], head], [tail] * bool(len(tail.tokens)) + spans[last + 1 :]


def _advance(cursor: Cursor, sequences: int, taken: list[_Span], pending: list[_Span]) -> Cursor:
    total = cursor.sequences + sequences
    if pending:
        first = pending[0]
        return Cursor(first.source.place, first.document, first.offset, total, first.source.before)
    last = taken[-1]
    file, row = last.source.place
    return Cursor(Place(file, row + 1), last.document + 1, 0, total, last.source.after)


def _block(spans: list[_Span], packing: Packing, cursor: Cursor) -> SequenceBlock:
    token = np.concatenate([span.tokens for span in spans]).astype(packing.dtype).reshape(-1, packing.stride)
    document = np.repeat([s.document for s in spans], [len(s.tokens) for s in spans]).astype(np.int32)
    document = document.reshape(-1, packing.stride)
    for bos_id in packing.prefix:
        token = np.pad(token, ((0, 0), (1, 0)), constant_values=bos_id)
        document = np.pad(document, ((0, 0), (1, 0)), mode="edge")
    documents = [
        PackedDocument(span.document, span.source.text, span.n_tokens, span.source.log_probability)
        for span in spans
        if span.offset == 0
    ]
    return SequenceBlock(token, document, documents, cursor)


@dataclass(frozen=True)
class PackedBlocks:
    """The packed blocks of one split on disk. A block is complete when its cursor file exists."""

    folder: Path
    split: str

    def __len__(self) -> int:
        """Returns the number of complete blocks."""
        return len(list(self.folder.glob("*.json")))

    def append(self, block: SequenceBlock) -> None:
        """Write `block` after the existing blocks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(self):06d}"
        np.savez(self.folder / f"{name}.npz", token=block.token, document=block.document)
        rows = [{"split": self.split, **asdict(row)} for row in block.documents]
        write_table(DOCUMENT, rows, self.folder / f"{name}.parquet")
        fsync(self.folder / f"{name}.npz")
        write_atomically(self.folder / f"{name}.json", json.dumps(asdict(block.cursor)).encode())

    @property
    def cursor(self) -> Cursor:
        """Position where the next block begins."""
        if not len(self):
            return Cursor()
        return Cursor.read(self.folder / f"{len(self) - 1:06d}.json")

    def arrays(self) -> Iterator[SequenceArrays]:
        """Yield the token ids and document numbers of each block."""
        for number in range(len(self)):
            with np.load(self.folder / f"{number:06d}.npz") as block:
                yield block["token"], block["document"]

    def tables(self) -> Iterator[pa.Table]:
        """Yield the DOCUMENT rows of each block."""
        for number in range(len(self)):
            yield read_table(self.folder / f"{number:06d}.parquet")

    def texts(self) -> Iterator[str]:
        """Yield the text of every document, in order."""
        for table in self.tables():
            yield from table["text"].to_pylist()


def write_documents(path: Path, splits: list[PackedBlocks]) -> None:
    """Write the documents of all `splits` to `path` as table DOCUMENT. Each block becomes one row group."""
    # the complete table may not fit into memory
    # with page checksums pyarrow notices flipped bytes; DuckDB does not check them
    with pq.ParquetWriter(path, DOCUMENT.schema, compression="zstd", write_page_checksum=True) as writer:
        for blocks in splits:
            for table in blocks.tables():
                writer.write_table(table)
