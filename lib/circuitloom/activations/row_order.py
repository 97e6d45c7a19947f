"""Defines the order of rows in cached activations. Writes the sequence and the position of each row to `rows.zarr`."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr
from jaxtyping import Int, Integer

from ..core.atomic_io import fingerprint, fsync, partial_folder, replace_folder
from ..core.zarr_groups import consolidate
from ..corpus.token_arrays import TokenArrays, scored_positions
from .arrays import create_array, shard_file, write_shard

_READ_SEQUENCES = 8192
"""Number of sequences per read."""


class ShardBatch(NamedTuple):
    """A batch of sequences. Its tokens fill some rows of one shard."""

    tokens: Int[np.ndarray, "sequence position"]
    sequences: Integer[np.ndarray, " sequence"]
    """Index of each sequence in the split."""
    source: Int[np.ndarray, " row"]
    """Index, in the flattened `tokens`, of the token that fills each row."""
    slot: Int[np.ndarray, " row"]
    """Index of each row within the shard."""


@dataclass(frozen=True)
class RowOrder:
    """The order of rows in cached activations.

    The sequences of the split are permuted. The scored tokens of the permuted sequences are concatenated and cut into
    shards. Then the tokens are permuted within each shard. The order depends only on the tokens, the seed, the shard
    size and the number of rows. It is the same for every site, layer, number format and batch size.
    """

    token: Integer[np.ndarray, "sequence position"]
    """Token ids of the split."""
    separator_id: int | None
    """Token id of the BOS, or of the EOS if the tokenizer has no BOS. Its positions have no rows."""
    permutation: Integer[np.ndarray, " sequence"]
    """Indices of the sequences in permuted order."""
    first: Integer[np.ndarray, " boundary"]
    """Index of the first row of each permuted sequence, before the permutation within shards. The last entry is the
    total number of scored tokens."""
    rows: int
    """Number of rows."""
    shard_rows: int
    """Number of rows per shard. The last shard may have fewer rows."""
    seed: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    @cached_property
    def digest(self) -> str:
        """Digest of the order. If two caches have the same digest, row i comes from the same token in both caches."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.token).view(np.uint8).data, digest_size=16)
        digest.update(
            repr((self.token.shape, self.separator_id, self.rows, self.shard_rows, self.seed)).encode()
        )
        return digest.hexdigest()

    def bounds(self, shard: int) -> tuple[int, int]:
        """Returns (start, stop). The rows of `shard` are `start` to `stop` (exclusive)."""
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)

    def batches(self, shard: int, size: int) -> Iterator[ShardBatch]:
        """Yields the sequences that fill `shard`, `size` sequences per batch. A sequence may have tokens in two
        shards."""
        start, stop = self.bounds(shard)
        slots = np.random.default_rng((self.seed, shard + 1)).permutation(stop - start)
        begin = int(np.searchsorted(self.first, start, side="right")) - 1
        end = int(np.searchsorted(self.first, stop, side="left"))
        for low in range(begin, end, size):
            high = min(low + size, end)
            sequences = self.permutation[low:high]
            tokens = self.token[sequences].astype(np.int64)
            source = np.flatnonzero(scored_positions(tokens, self.separator_id))
            row = np.arange(self.first[low], self.first[high]) - start
            inside = (row >= 0) & (row < stop - start)
            yield ShardBatch(tokens, sequences, source[inside], slots[row[inside]])


def row_order(tokens: TokenArrays, seed: int, shard_rows: int, limit: int | None = None) -> RowOrder:
    """Returns the order of rows for the scored tokens of `tokens`. There are at most `limit` rows.

    Raises ValueError if no token is scored.
    """
    token = np.empty((len(tokens), tokens.context), tokens.token.dtype)
    count = np.empty(len(tokens), np.int32)
    for start in range(0, len(tokens), _READ_SEQUENCES):
        block = tokens.read(tokens.token, slice(start, start + _READ_SEQUENCES))
        token[start : start + _READ_SEQUENCES] = block
        count[start : start + _READ_SEQUENCES] = scored_positions(block, tokens.separator_id).sum(1)
    # the permutations within shards use the seeds (seed, 1), (seed, 2), ...
    permutation = np.random.default_rng((seed, 0)).permutation(len(tokens)).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(count[permutation], dtype=np.int64)])
    rows = int(first[-1]) if limit is None else min(int(first[-1]), limit)
    if not rows:
        raise ValueError(
            f"{tokens.path}: no token other than separators of documents; give the corpus more text"
        )
    return RowOrder(token, tokens.separator_id, permutation, first, rows, shard_rows, seed)


def write_row_origins(order: RowOrder, path: Path, batch: int = 1024) -> None:
    """Write the sequence and the position of each row to the Zarr group `path`, atomically. `batch` is the number of
    sequences that are processed at a time."""
    context = order.token.shape[1]
    dtypes = {"sequence": "int32", "position": "int16" if context <= 2**15 else "int32"}
    with partial_folder(path, fingerprint(order=order.digest)) as work:
        group = zarr.open_group(work / path.name, mode="w")
        arrays = {
            n: create_array(work / path.name, n, (order.rows,), t, order.shard_rows)
            for n, t in dtypes.items()
        }
        for shard in range(order.shards):
            start, stop = order.bounds(shard)
            columns = {name: np.empty(stop - start, dtype) for name, dtype in dtypes.items()}
            for part in order.batches(shard, batch):
                columns["sequence"][part.slot] = part.sequences[part.source // context]
                columns["position"][part.slot] = part.source % context
            for name, column in columns.items():
                write_shard(arrays[name], shard, column)
                fsync(shard_file(arrays[name], shard))
        group.attrs.put({"order": order.digest})
        consolidate(work / path.name)
        replace_folder(work / path.name, path)
        shutil.rmtree(work)
