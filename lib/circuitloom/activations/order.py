"""The order in which activations are stored: which token each row comes from."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from ..corpus.tokens import Tokens, scored_positions

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
