"""Concatenates documents to a stream of tokens, and cuts the stream into sequences of equal length. Each finished block
of sequences is written to disk. A killed run resumes after the last finished block."""

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, Integer

from ..core.atomic_io import fsync, write_atomically
from ..core.tables import DOCUMENT, read_table, write_table
from .pieces import LONG, encode_pieces
from .source import START, Counts, Document, Place
from .token_arrays import SequenceArrays
from .tokenizer import Tokenizer
from .unknown_words import named_unknown_words

_BATCH_DOCUMENTS = 1000
"""Maximum number of documents tokenized per call."""
_BATCH_CHARACTERS = 1_000_000
"""Number of characters after which a batch of documents is complete. Bounds the memory that a batch takes, and the text
that is tokenized in vain at the end of a split."""


@dataclass(frozen=True)
class Cursor:
    """Position in a split where packing resumes."""

    place: Place = START
    """Position of the next document in the source."""
    document: int = 0
    """Number of the next document within the split. Skipped documents do not count."""
    character: int = 0
    """Character of the next document from which it is tokenized. Only long documents have a place other than 0."""
    skip: int = 0
    """Number of tokens from `character` on that are already packed. The BOS or EOS counts as a token."""
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
    n_tokens: int | None
    """Number of tokens of the document, without BOS and EOS. None for a long document: `write_documents` counts it."""
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
    special: bool = False
    """Whether strings of special tokens give special tokens, as in chats that a template has written."""

    def __post_init__(self) -> None:
        _check_vocabulary([np.array([*self.prefix, *self.suffix], np.int32)], self)

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
    tokens: Integer[np.ndarray, " token"]
    character: int = 0
    """Character of the document from which its tokens are counted in `skip`."""
    skip: int = 0
    """Number of tokens between `character` and this span."""
    is_last: bool = True
    """Whether the document has no tokens after this span."""
    n_tokens: int | None = None
    """Number of tokens of the document, without BOS and EOS. None if the document is tokenized in pieces."""

    @property
    def begins_document(self) -> bool:
        """Whether the span contains the first token of the document."""
        return self.character == self.skip == 0


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
    their number, or None if it stops at the limit. Documents are tokenized only as far as their tokens are needed.
    Raises ValueError if a token id is not in the model's vocabulary, and UnknownWordError if a word has no token.
    """
    pending: list[_Span] = []
    n_pending = 0
    spans = _tokenize(documents, packing, cursor)
    while limit is None or cursor.sequences < limit:
        wanted = block if limit is None else min(block, limit - cursor.sequences)
        while n_pending < wanted * packing.stride and (span := next(spans, None)):
            n_pending += len(span.tokens)
            pending.append(span)
        sequences = min(wanted, n_pending // packing.stride)
        if not sequences:
            return Rest(n_pending, sum(span.begins_document for span in pending))
        taken, pending = _split(pending, sequences * packing.stride)
        n_pending -= sequences * packing.stride
        cursor = _advance(cursor, sequences, taken, pending)
        yield _block(taken, packing, cursor)
    return None


def _tokenize(documents: Iterable[Document], packing: Packing, cursor: Cursor) -> Iterator[_Span]:
    """Yields the tokens of all documents from `cursor` on. A long document gives several spans."""
    # the windows of long documents read special tokens as text
    longest = None if packing.special else LONG
    for batch in _batches(documents, cursor.document, longest):
        number, source = batch[0]
        resumed = number == cursor.document
        if longest is not None and len(source.text) > longest:
            with named_unknown_words([source], packing.tokenizer):
                yield from _tokenize_long(
                    source, number, packing, cursor.character * resumed, cursor.skip * resumed
                )
            continue
        before, after = (np.array(ids, np.int32) for ids in (packing.prefix, packing.suffix))
        given = [document for _, document in batch]
        with named_unknown_words(given, packing.tokenizer, packing.special):
            encoded = packing.tokenizer.encode([document.text for document in given], packing.special)
        _check_vocabulary(encoded, packing)
        for (number, source), ids in zip(batch, encoded, strict=True):
            skip = cursor.skip if number == cursor.document else 0
            tokens = np.concatenate([before, ids, after])[skip:]
            yield _Span(source, number, tokens, skip=skip, n_tokens=len(ids))


def _batches(
    documents: Iterable[Document], first: int, longest: int | None
) -> Iterator[list[tuple[int, Document]]]:
    """Yields batches of numbered documents. The first number is `first`. A document of more than `longest` characters
    is a batch of its own."""
    batch: list[tuple[int, Document]] = []
    characters = 0
    for number, document in enumerate(documents, first):
        is_long = longest is not None and len(document.text) > longest
        if is_long and batch:
            yield batch
            batch, characters = [], 0
        batch.append((number, document))
        characters += len(document.text)
        if is_long or len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokenize_long(
    source: Document, number: int, packing: Packing, character: int, skip: int
) -> Iterator[_Span]:
    """Yields the tokens of a long document in spans, from (`character`, `skip`) on, as in `Cursor`."""
    before, after = (np.array(ids, np.int32) for ids in (packing.prefix, packing.suffix))
    # only the tokens from character 0 on begin with the BOS
    n_before = 0 if character else len(before)
    if skip < n_before:
        yield _Span(source, number, before, is_last=False)
    for piece in encode_pieces(packing.tokenizer, source.text, character, max(0, skip - n_before)):
        _check_vocabulary([piece.tokens], packing)
        tokens = np.concatenate([piece.tokens, after]) if piece.is_last else piece.tokens
        place = piece.skip + (0 if piece.character else len(before))
        yield _Span(source, number, tokens, piece.character, place, piece.is_last)


def _check_vocabulary(encoded: Sequence[Integer[np.ndarray, " _token"]], packing: Packing) -> None:
    """Raises ValueError if a token id is not in the model's vocabulary."""
    if not packing.model_vocabulary:
        return
    largest = max(int(ids.max(initial=0)) for ids in encoded)
    if largest >= packing.model_vocabulary:
        raise ValueError(
            f"corpus.tokenizer: gives token {largest}, but the model knows {packing.model_vocabulary} tokens; "
            "use the tokenizer that the model was trained with"
        )


def _split(spans: list[_Span], tokens: int) -> tuple[list[_Span], list[_Span]]:
    """Returns the spans of the first `tokens` tokens, and the spans of all later tokens."""
    ends = np.cumsum([len(span.tokens) for span in spans])
    last = int(np.searchsorted(ends, tokens))
    span = spans[last]
    kept = len(span.tokens) - int(ends[last] - tokens)
    head = replace(span, tokens=span.tokens[:kept])
    tail = replace(span, tokens=span.tokens[kept:], skip=span.skip + kept)
    return [*spans[:last], head], [tail] * bool(len(tail.tokens)) + spans[last + 1 :]


def _advance(cursor: Cursor, sequences: int, taken: list[_Span], pending: list[_Span]) -> Cursor:
    total = cursor.sequences + sequences
    last = taken[-1]
    if not pending and last.is_last:
        file, row = last.source.place
        place = Place(file, row + 1)
        return Cursor(place, last.document + 1, sequences=total, counts=last.source.after)
    first = pending[0] if pending else replace(last, skip=last.skip + len(last.tokens))
    return Cursor(first.source.place, first.document, first.character, first.skip, total, first.source.before)


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
        if span.begins_document
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
        # asdict copies deeply, which takes longer than writing the rows
        rows = [{"split": self.split, **vars(row)} for row in block.documents]
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

    def token_counts(self, packing: Packing) -> Int[np.ndarray, " document"]:
        """Returns the number of packed tokens of each document, without BOS and EOS."""
        prefix = len(packing.prefix)
        counts = np.zeros(0, np.int64)
        for _, document in self.arrays():
            found = np.bincount(document[:, prefix:].ravel(), minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
        counts -= prefix
        counts[: self.cursor.document] -= len(packing.suffix)
        return counts


def write_documents(path: Path, splits: list[PackedBlocks], packing: Packing) -> None:
    """Write the documents of all `splits` to `path` as table DOCUMENT. Each block becomes one row group."""
    # the complete table may not fit into memory
    # with page checksums pyarrow notices flipped bytes; DuckDB does not check them
    with pq.ParquetWriter(path, DOCUMENT.schema, compression="zstd", write_page_checksum=True) as writer:
        for blocks in splits:
            for table in _counted(blocks, packing):
                writer.write_table(table)


def _counted(blocks: PackedBlocks, packing: Packing) -> Iterator[pa.Table]:
    """Yields the DOCUMENT rows of each block, with the number of tokens of long documents."""
    counts: Int[np.ndarray, " document"] | None = None
    column = DOCUMENT.schema.get_field_index("n_tokens")
    for table in blocks.tables():
        if not table["n_tokens"].null_count:
            yield table
            continue
        counts = blocks.token_counts(packing) if counts is None else counts
        packed = counts[table["document"].to_numpy()]
        known = table["n_tokens"].to_pylist()
        filled = [int(n) if given is None else given for n, given in zip(packed, known, strict=True)]
        yield table.set_column(column, table.schema.field(column), pa.array(filled, pa.int32()))
