"""Documents laid end to end and cut into sequences, block by block. What of a split has been packed so far, on disk:
killed at any moment, the next run goes on from it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Integer

from ..core.atomic_io import flush, replace
from ..core.tables import DOCUMENT, read_table, write_table
from .source import Document
from .tokenizer import Tokenizer
from .tokens import SequenceArrays

_BATCH = 1000


@dataclass(frozen=True)
class Cursor:
    """How far a split has been packed: enough to go on as if nothing had been in between."""

    place: int = 0
    """Place in the source's stream of the document to go on with."""
    document: int = 0
    """Number of that document within the split."""
    offset: int = 0
    """Tokens of it that are packed already, its BOS included."""
    sequences: int = 0
    """Sequences packed."""


@dataclass(frozen=True)
class Row:
    """A document that begins in a block."""

    document: int
    text: str
    n_tokens: int
    """Without BOS and EOS."""
    log_probability: float | None


@dataclass(frozen=True)
class SequenceBlock:
    """Some sequences, and where the next ones begin."""

    token: Integer[np.ndarray, "sequence position"]
    document: Integer[np.ndarray, "sequence position"]
    rows: list[Row]
    """Documents whose first token is in the block, in order."""
    cursor: Cursor


@dataclass(frozen=True)
class Layout:
    """How tokens are packed."""

    tokenizer: Tokenizer
    context: int
    """Tokens in a sequence."""
    model_vocabulary: int = 0
    """Tokens that the language model knows; 0 where it will be made to fit."""

    @property
    def before(self) -> list[int]:
        """What stands in front of each document, and of each sequence: the BOS, where there is one."""
        return [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]

    @property
    def after(self) -> list[int]:
        """What separates documents where there is no BOS: the EOS, where there is one."""
        return [] if self.before or self.tokenizer.eos_id is None else [self.tokenizer.eos_id]

    @property
    def stride(self) -> int:
        """Tokens of the stream in a sequence: all but the BOS in front."""
        return self.context - len(self.before)

    @property
    def dtype(self) -> type[np.unsignedinteger] | type[np.signedinteger]:
        """Smallest format, of those that later stages read, that holds every token id."""
        return np.uint16 if self.tokenizer.vocabulary <= 2**16 else np.int32


@dataclass(frozen=True)
class _Piece:
    """A document with its separator, or what is left of it."""

    source: Document
    document: int
    offset: int
    """Tokens that earlier blocks took."""
    n_tokens: int
    tokens: Integer[np.ndarray, " token"]


def pack(
    documents: Iterable[Document], layout: Layout, cursor: Cursor, block: int, limit: int | None = None
) -> Iterator[SequenceBlock]:
    """Blocks of `block` sequences, the last one shorter; `documents` begin at the cursor's.

    Stops at `limit` sequences in all, or with the documents: what does not fill a sequence then is dropped.
    Raises ValueError where a token id is not in the model's vocabulary.
    """
    pending: list[_Piece] = []
    held = 0
    numbered = enumerate(documents, cursor.document)
    while limit is None or cursor.sequences < limit:
        wanted = block if limit is None else min(block, limit - cursor.sequences)
        while held < wanted * layout.stride and (batch := list(islice(numbered, _BATCH))):
            pieces = _tokenise(batch, layout, cursor)
            held += sum(len(piece.tokens) for piece in pieces)
            pending += pieces
        sequences = min(wanted, held // layout.stride)
        if not sequences:
            return
        taken, pending = _split(pending, sequences * layout.stride)
        held -= sequences * layout.stride
        cursor = _advance(cursor, sequences, taken, pending)
        yield _block(taken, layout, cursor)


def _tokenise(batch: list[tuple[int, Document]], layout: Layout, cursor: Cursor) -> list[_Piece]:
    tokenizer = layout.tokenizer
    pieces = []
    for (number, source), ids in zip(batch, tokenizer.encode([d.text for _, d in batch]), strict=True):
        tokens = np.concatenate([layout.before, ids, layout.after]).astype(np.int32)
        largest = int(tokens.max(initial=0))
        if layout.model_vocabulary and largest >= layout.model_vocabulary:
            raise ValueError(
                f"corpus.tokenizer: gives token {largest}, but the model knows {layout.model_vocabulary} tokens; "
                "use the tokenizer that the model was trained with"
            )
        offset = cursor.offset if number == cursor.document else 0
        pieces.append(_Piece(source, number, offset, len(ids), tokens[offset:]))
    return pieces


def _split(pieces: list[_Piece], tokens: int) -> tuple[list[_Piece], list[_Piece]]:
    """`pieces` cut after so many tokens."""
    ends = np.cumsum([len(piece.tokens) for piece in pieces])
    last = int(np.searchsorted(ends, tokens))
    piece = pieces[last]
    kept = len(piece.tokens) - int(ends[last] - tokens)
    head = _Piece(piece.source, piece.document, piece.offset, piece.n_tokens, piece.tokens[:kept])
    tail = _Piece(piece.source, piece.document, piece.offset + kept, piece.n_tokens, piece.tokens[kept:])
    return [*pieces[:last], head], [tail] * bool(len(tail.tokens)) + pieces[last + 1 :]


def _advance(cursor: Cursor, sequences: int, taken: list[_Piece], pending: list[_Piece]) -> Cursor:
    done = cursor.sequences + sequences
    if pending:
        first = pending[0]
        return Cursor(first.source.place, first.document, first.offset, done)
    return Cursor(taken[-1].source.place + 1, taken[-1].document + 1, 0, done)


def _block(taken: list[_Piece], layout: Layout, cursor: Cursor) -> SequenceBlock:
    token = np.concatenate([piece.tokens for piece in taken]).astype(layout.dtype).reshape(-1, layout.stride)
    document = np.repeat([p.document for p in taken], [len(p.tokens) for p in taken]).astype(np.int32)
    document = document.reshape(-1, layout.stride)
    for bos_id in layout.before:
        token = np.pad(token, ((0, 0), (1, 0)), constant_values=bos_id)
        document = np.pad(document, ((0, 0), (1, 0)), mode="edge")
    rows = [
        Row(piece.document, piece.source.text, piece.n_tokens, piece.source.log_probability)
        for piece in taken
        if piece.offset == 0
    ]
    return SequenceBlock(token, document, rows, cursor)


@dataclass(frozen=True)
class PackedBlocks:
    """The blocks of one split, a pair of files each; a block counts once its cursor is written."""

    folder: Path
    split: str

    def __len__(self) -> int:
        """Blocks that are whole."""
        return len(list(self.folder.glob("*.json")))

    def append(self, block: SequenceBlock) -> None:
        """Write `block` behind those that are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(self):06d}"
        np.savez(self.folder / f"{name}.npz", token=block.token, document=block.document)
        rows = [{"split": self.split, **asdict(row)} for row in block.rows]
        write_table(DOCUMENT, rows, self.folder / f"{name}.parquet")
        flush(self.folder / f"{name}.npz")
        replace(self.folder / f"{name}.json", json.dumps(asdict(block.cursor)).encode())

    @property
    def cursor(self) -> Cursor:
        """Where the next block begins."""
        if not len(self):
            return Cursor()
        return Cursor(**json.loads((self.folder / f"{len(self) - 1:06d}.json").read_text()))

    def arrays(self) -> Iterator[SequenceArrays]:
        """Token ids and document numbers of each block."""
        for number in range(len(self)):
            with np.load(self.folder / f"{number:06d}.npz") as part:
                yield part["token"], part["document"]

    def tables(self) -> Iterator[pa.Table]:
        """The documents that begin in each block."""
        for number in range(len(self)):
            yield read_table(self.folder / f"{number:06d}.parquet")

    def texts(self) -> Iterator[str]:
        """The text of every document, in order."""
        for table in self.tables():
            yield from table["text"].to_pylist()


def write_documents(path: Path, parts: list[PackedBlocks]) -> None:
    """The table DOCUMENT of some splits, a row group a block, so that it never is in memory whole."""
    # page checksums: DuckDB reads flipped bytes without a word, pyarrow finds them
    with pq.ParquetWriter(path, DOCUMENT.schema, compression="zstd", write_page_checksum=True) as writer:
        for part in parts:
            for table in part.tables():
                writer.write_table(table)
