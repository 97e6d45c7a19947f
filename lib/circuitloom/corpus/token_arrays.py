"""Writes and reads the tokens of a split as sharded Zarr 3 arrays with checksums. The corpus stage writes these arrays.
This module does not import torch. `tokens` reads the arrays as tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Int, Integer
from zarr.codecs import Crc32cCodec, ZstdCodec

from ..core.errors import first_line
from ..core.zarr_groups import consolidate

ARRAYS = ("token", "document")
ATTRIBUTES = ("bos_id", "separator_id", "vocabulary")
"""Attributes that every group of token arrays has."""
SEQUENCES_PER_SHARD = 8192
SEQUENCES_PER_CHUNK = 256

SequenceArrays = tuple[Integer[np.ndarray, "sequence position"], Integer[np.ndarray, "sequence position"]]
"""Token ids and document numbers of some sequences."""


def write_tokens(
    path: Path, blocks: Iterable[SequenceArrays], sequences: int, attributes: dict[str, Any]
) -> None:
    """Write the arrays `token` and `document`, [sequence, position], to the Zarr group `path`.

    `blocks` yields consecutive parts of both arrays. Each part except the last must fill complete shards. `sequences`
    is the total number of sequences.
    """
    group = zarr.create_group(path, overwrite=True, attributes=attributes)
    blocks = iter(blocks)
    first = next(blocks)
    context = first[0].shape[1]
    token, document = (
        _create(group, name, (sequences, context), values.dtype)
        for name, values in zip(ARRAYS, first, strict=True)
    )
    start = 0
    for tokens, documents in chain([first], blocks):
        stop = start + len(tokens)
        token[start:stop], document[start:stop] = tokens, documents
        start = stop
    assert start == sequences
    consolidate(path)


def _create(group: zarr.Group, name: str, shape: tuple[int, int], dtype: np.dtype) -> zarr.Array:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        shards=(SEQUENCES_PER_SHARD, shape[1]),
        chunks=(SEQUENCES_PER_CHUNK, shape[1]),
        # the checksum codec comes last, so that the checksum covers all compressed bytes, including the zstd header;
        # zstd's own checksum does not cover this header
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=("sequence", "position"),
        # without this setting, Zarr does not write a shard that contains only zeros, and the shard looks lost
        config={"write_empty_chunks": True},
    )


def check_shards(path: Path, array: zarr.Array) -> None:
    """Raise ValueError if a shard of `array` is missing, because Zarr reads a missing shard as zeros.

    `path` is the folder of the array's Zarr group.
    """
    shards = array.shards
    assert shards is not None
    expected = ceil(array.shape[0] / shards[0])
    folder = path / array.basename / "c"
    missing = [i for i in range(expected) if not (folder / str(i) / "0").is_file()]
    if missing:
        raise ValueError(
            f"{folder / str(missing[0]) / '0'}: {len(missing)} of {expected} shards are missing; "
            f"delete {path} and run again"
        )


@dataclass(frozen=True)
class TokenArrays:
    """Token sequences of equal length. A sequence is loaded from disk only when it is needed.

    All documents are concatenated to a stream, and the stream is cut into sequences. If the tokenizer has a BOS, the
    stream contains a BOS before each document. Each sequence then consists of a further BOS and `context` - 1 tokens
    of the stream. If the tokenizer has no BOS, each sequence consists of `context` tokens of the stream, which contains
    an EOS after each document if the tokenizer has one.
    """

    path: Path
    token: zarr.Array
    """Token ids, [sequence, position]."""
    document: zarr.Array
    """Number of the document that each token belongs to, [sequence, position]. Numbers count within the split."""
    bos_id: int | None
    """Token id of the BOS, which may be 0. None if the tokenizer has no BOS."""
    separator_id: int | None
    """Token id of the BOS, or of the EOS if the tokenizer has no BOS. None if it has neither."""
    vocabulary: int
    """Vocabulary size of the tokenizer."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return self.token.shape[0]

    @property
    def context(self) -> int:
        """Number of tokens per sequence."""
        return self.token.shape[1]

    def read(
        self, array: zarr.Array, indices: slice | Int[np.ndarray, " sequence"]
    ) -> Int[np.ndarray, "sequence position"]:
        """Returns the rows of `array` (`token` or `document`) at `indices`, as int64, in the order of `indices`.

        Raises ValueError if the stored rows are damaged.
        """
        try:
            rows = array[indices] if isinstance(indices, slice) else array.oindex[indices]
        # codec pipelines raise different errors for a damaged chunk
        except (ValueError, RuntimeError, OSError) as error:
            folder = self.path / array.basename
            raise ValueError(
                f"{folder}: damaged ({first_line(error)}); delete {self.path} and run again"
            ) from error
        return np.asarray(rows).astype(np.int64)


def open_token_arrays(path: Path | str) -> TokenArrays:
    """Open the token arrays in `path`.

    Raises ValueError if `path` is not a group of token arrays, or if a shard is missing.
    """
    path = Path(path)
    try:
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        token, document = (group[name] for name in ARRAYS)
        bos_id, separator_id, vocabulary = (group.attrs[name] for name in ATTRIBUTES)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a token array ({first_line(error)}); run the corpus stage again"
        ) from error
    assert isinstance(token, zarr.Array) and isinstance(document, zarr.Array)
    assert isinstance(vocabulary, int)
    assert bos_id is None or isinstance(bos_id, int)
    assert separator_id is None or isinstance(separator_id, int)
    for array in (token, document):
        check_shards(path, array)
    return TokenArrays(path, token, document, bos_id, separator_id, vocabulary)


def scored_positions(
    tokens: Int[Any, "sequence position"], separator_id: int | None
) -> Bool[Any, "sequence position"]:
    """Returns whether each position is scored. All positions are scored, except position 0 and every separator.

    The separator is the BOS, or the EOS if the tokenizer has no BOS. `tokens` is an array or a tensor, and so is the
    result.
    """
    # no token id is negative
    scored = tokens >= 0 if separator_id is None else tokens != separator_id
    scored[:, 0] = False
    return scored


def count_sequences(tokens: TokenArrays, wanted: int | None) -> int:
    """Returns the number of complete sequences in the first `wanted` tokens, but at least 1.

    If `wanted` is None, all sequences are counted.
    """
    return len(tokens) if wanted is None else min(len(tokens), max(1, wanted // tokens.context))
