"""Documents laid end to end and cut into sequences, block by block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Integer

from .source import Document
from .tokenizer import Tokenizer

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
class Block:
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
) -> Iterator[Block]:
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


def _block(taken: list[_Piece], layout: Layout, cursor: Cursor) -> Block:
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
    return Block(token, document, rows, cursor)
