"""The order in which activations are stored: which token each row comes from. `rows.zarr`: the sequence and position
that each row of the activations comes from."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import zarr
from jaxtyping import Int, Integer
from torch import Tensor

from ..core.atomic_io import fingerprint, flush, move, partial_folder
from ..corpus.tokens import Tokens, scored_positions
from .arrays import create_array, open_array, read_rows, shard_file, write_shard

_READ = 8192
"""Sequences read at a time while rows are counted."""


class Placement(NamedTuple):
    """A batch of sequences of one shard, and where the activations of its tokens go."""

    tokens: Int[Tensor, "sequence position"]
    sequences: Integer[np.ndarray, " sequence"]
    """Number of each sequence in the split."""
    source: Int[Tensor, " row"]
    """Which of the batch's sequence * position activations each row is."""
    slot: Int[Tensor, " row"]
    """Where in the shard each row goes."""


@dataclass(frozen=True)
class RowOrder:
    """Sequences permuted over the whole split, their scored tokens laid out one after another and cut into
    shards, then tokens permuted within each shard.

    A pure function of the tokens, the seed and the shard's size: the same for every site, layer, number
    format and batch size.
    """

    token: Integer[np.ndarray, "sequence position"]
    """All sequences of the split."""
    bos_id: int | None
    permutation: Integer[np.ndarray, " sequence"]
    """Sequences in the order in which they are laid out."""
    first: Integer[np.ndarray, " boundary"]
    """Row, before tokens are permuted, at which each sequence of that order starts; the total at the end."""
    rows: int
    """Rows in all."""
    shard_rows: int
    """Rows of a shard; the last may have fewer."""
    seed: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    @cached_property
    def digest(self) -> str:
        """Names this order: two arrays with the same digest have the same token in every row."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.token).view(np.uint8).data, digest_size=16)
        digest.update(repr((self.token.shape, self.bos_id, self.rows, self.shard_rows, self.seed)).encode())
        return digest.hexdigest()

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row of `shard`, and the first after it."""
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)

    def batches(self, shard: int, size: int) -> Iterator[Placement]:
        """The sequences that fill `shard`, `size` at a time; one across its end fills the next shard too."""
        start, stop = self.bounds(shard)
        slots = torch.from_numpy(np.random.default_rng((self.seed, shard + 1)).permutation(stop - start))
        begin = int(np.searchsorted(self.first, start, side="right")) - 1
        end = int(np.searchsorted(self.first, stop, side="left"))
        for low in range(begin, end, size):
            high = min(low + size, end)
            sequences = self.permutation[low:high]
            tokens = torch.from_numpy(self.token[sequences].astype(np.int64))
            source = scored_positions(tokens, self.bos_id).flatten().nonzero().squeeze(1)
            row = torch.arange(int(self.first[low]), int(self.first[high])) - start
            inside = (row >= 0) & (row < stop - start)
            yield Placement(tokens, sequences, source[inside], slots[row[inside]])


def row_order(tokens: Tokens, seed: int, shard_rows: int, limit: int | None = None) -> RowOrder:
    """The order of the scored tokens of `tokens`, of which at most `limit` are kept.

    Raises ValueError where no token is scored.
    """
    token = np.empty((len(tokens), tokens.context), tokens.token.dtype)
    count = np.empty(len(tokens), np.int32)
    for start in range(0, len(tokens), _READ):
        block = tokens.take(slice(start, start + _READ))
        token[start : start + _READ] = block.numpy()
        count[start : start + _READ] = scored_positions(block, tokens.bos_id).sum(1).numpy()
    # seeds (seed, 1), (seed, 2), ... are the shards'
    permutation = np.random.default_rng((seed, 0)).permutation(len(tokens)).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(count[permutation], dtype=np.int64)])
    rows = int(first[-1]) if limit is None else min(int(first[-1]), limit)
    if not rows:
        raise ValueError(f"{tokens.path}: no token besides the BOS; give the corpus more text")
    return RowOrder(token, tokens.bos_id, permutation, first, rows, shard_rows, seed)


class RowOrigins(NamedTuple):
    """Where rows come from."""

    sequence: Integer[np.ndarray, " row"]
    """Row of the training split's token array."""
    position: Integer[np.ndarray, " row"]
    """Place in the sequence, from 0."""


def write_rows(order: RowOrder, path: Path, batch: int = 1024) -> None:
    """Write `order` as the Zarr group `path`, whole or not at all, `batch` sequences at a time."""
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
            for placed in order.batches(shard, batch):
                slot, source = placed.slot.numpy(), placed.source.numpy()
                columns["sequence"][slot] = placed.sequences[source // context]
                columns["position"][slot] = source % context
            for name, column in columns.items():
                write_shard(arrays[name], shard, column)
                flush(shard_file(arrays[name], shard))
        group.attrs.put({"order": order.digest})
        move(work / path.name, path)
        shutil.rmtree(work)


def read_origin(path: Path, start: int, stop: int) -> RowOrigins:
    """Where rows `start` to `stop` come from; ValueError where `path` is damaged."""
    remedy = f"delete {path} and run again"
    return RowOrigins(
        *(read_rows(open_array(path / n, remedy), start, stop, remedy) for n in RowOrigins._fields)
    )
