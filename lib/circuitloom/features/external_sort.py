"""The pass: tokens through model and encoder, block by block, every activation to disk.

A block holds the activations of some whole sequences, sorted by feature. What is on disk is all that the tables
are made of, so that memory does not depend on the number of tokens, and a killed pass goes on after its last whole
block. The activations of a pass, feature after feature: blocks merged, some features at a time."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Integer

from ..config.features import Features
from ..core.atomic_io import fsync
from ..core.progress import progress
from ..corpus.tokens import Tokens
from ..evaluation.held_out import HeldOut, count_sequences, load_sequences
from ..language_model.hooks import capture
from ..language_model.model import LanguageModel
from .basis import FeatureBasis

BLOCK_POSITIONS = 2**16
"""Positions of a block at most: a place in it fits 16 bits, by which numpy sorts fastest."""
ENCODE_BATCH = 4096
"""Tokens whose activations, of all features, are held at once."""


@dataclass(frozen=True)
class SortedBlock:
    """Activations at consecutive positions of the flattened token array, by feature and then by position."""

    start: Int[np.ndarray, " feature_plus_1"]
    """Entries of feature i are start[i] to start[i + 1]."""
    place: Integer[np.ndarray, " entry"]
    """Position in the block, from 0."""
    value: Float32[np.ndarray, " entry"]

    def write(self, folder: Path) -> None:
        """Write the block to `folder`, whole or not at all."""
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for name, array in vars(self).items():
            np.save(new / f"{name}.npy", array)
            fsync(new / f"{name}.npy")
        new.rename(folder)
        fsync(folder.parent)


def read_block(folder: Path) -> SortedBlock:
    """The block in `folder`, its arrays mapped: what is not asked for is not read."""
    return SortedBlock(
        *(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("start", "place", "value"))
    )


def block_sequences(context: int) -> int:
    """Sequences in a block."""
    return max(1, BLOCK_POSITIONS // context)


def block_folders(work: Path) -> list[Path]:
    """The blocks in `work`, in the order of their tokens."""
    return sorted(folder for folder in work.glob("block*") if folder.suffix != ".new")


def write_blocks(
    basis: FeatureBasis, model: LanguageModel, tokens: Tokens, config: Features, work: Path
) -> int:
    """Write the blocks of all tokens to `work`, but for those that are there; returns the tokens that count."""
    scored = 0
    sequences = count_sequences(tokens, config.tokens)
    label = f"features: {basis.run} layer {basis.layer}"
    with progress(label, sequences * tokens.context, "tokens") as bar:
        for number, rows in enumerate(_blocks(sequences, block_sequences(tokens.context))):
            part = load_sequences(tokens, rows)
            scored += part.n_tokens
            folder = work / f"block{number:06d}"
            if not folder.is_dir():
                encode_block(basis, model, part, config.batch).write(folder)
            bar.update(part.token.numel())
    return scored


def _blocks(sequences: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, sequences)) for start in range(0, sequences, size))


@torch.inference_mode()
def encode_block(basis: FeatureBasis, model: LanguageModel, part: HeldOut, batch: int) -> SortedBlock:
    """The activations of some sequences, at their scored positions."""
    places, features, values = [], [], []
    first = 0
    for rows in part.to(model.device).batches(batch):
        where = rows.scored.flatten().nonzero()[:, 0] + first
        first += rows.token.numel()
        x = capture(model, rows.token, [basis.site])[basis.site][rows.scored].float()
        for begin in range(0, len(x), ENCODE_BATCH):
            token, feature, value = basis.encode(x[begin : begin + ENCODE_BATCH])
            places.append(where[token + begin].cpu().numpy().astype(_whole(part.token.numel())))
            features.append(feature.cpu().numpy().astype(_whole(basis.width)))
            values.append(value.cpu().numpy())
    return sort_block(np.concatenate(places), np.concatenate(features), np.concatenate(values), basis.width)


def sort_block(
    place: Integer[np.ndarray, " entry"],
    feature: Integer[np.ndarray, " entry"],
    value: Float32[np.ndarray, " entry"],
    width: int,
) -> SortedBlock:
    """Activations that are sorted by place, as a block."""
    order = stable_order(feature, width)
    start = np.concatenate([[0], np.bincount(feature, minlength=width).cumsum()])
    return SortedBlock(start, place[order], value[order])


def stable_order(keys: Integer[np.ndarray, " entry"], bound: int) -> Int[np.ndarray, " entry"]:
    """The order that sorts non-negative `keys` below `bound`, equal ones as they are."""
    # numpy has a radix sort for 16 bits, many times as fast as its sort for more: so by the lower half, then the upper
    order = keys.astype(np.uint16).argsort(kind="stable")
    if bound > 2**16:
        upper = (keys >> 16).astype(np.uint16)
        order = order[upper[order].argsort(kind="stable")]
    return order


def _whole(bound: int) -> type[np.unsignedinteger]:
    return np.uint16 if bound <= 2**16 else np.uint32


MAX_ENTRIES = 2**22
"""Activations held at once."""
MAX_FEATURES = 2**12
"""Features held at once: their examples are held with their surroundings."""


@dataclass(frozen=True)
class SortedActivations:
    """Activations of some features, by feature and then by token; all of them, or those of a stretch of the text."""

    feature: Int[np.ndarray, " entry"]
    """Number of the feature, from 0 for the first of the chunk."""
    token: Int[np.ndarray, " entry"]
    """Position in the flattened token array."""
    value: Float32[np.ndarray, " entry"]

    def totals(
        self, values: Float[np.ndarray, " entry"], reduce: np.ufunc, n_features: int
    ) -> Float[np.ndarray, " feature"]:
        """`values` of each feature's entries reduced; 0 where it has none."""
        total = np.zeros(n_features, values.dtype)
        if len(values):
            first = np.flatnonzero(np.diff(self.feature, prepend=-1))
            total[self.feature[first]] = reduce.reduceat(values, first)
        return total


@dataclass(frozen=True)
class FeatureRange:
    """Consecutive features whose activations are held together: one piece, or several of a single feature."""

    low: int
    high: int
    n: Int[np.ndarray, " feature"]
    """Activations of each feature."""
    blocks: Sequence[Path]
    block_positions: int

    @property
    def width(self) -> int:
        """Number of features."""
        return self.high - self.low

    def pieces(self) -> Iterator[SortedActivations]:
        """The activations, in the order of the text where there are several pieces; sequences are not torn."""
        if self.n.sum() <= MAX_ENTRIES:
            yield self._whole
        else:
            yield from self._read()

    @cached_property
    def _whole(self) -> SortedActivations:
        return next(self._read(), None) or _empty()

    def _read(self) -> Iterator[SortedActivations]:
        parts: list[SortedActivations] = []
        held = 0
        for number, folder in enumerate(self.blocks):
            part = self._part(read_block(folder), number)
            if parts and held + len(part.value) > MAX_ENTRIES:
                yield _merge(parts, self.width)
                parts, held = [], 0
            parts.append(part)
            held += len(part.value)
        if parts:
            yield _merge(parts, self.width)

    def _part(self, block: SortedBlock, number: int) -> SortedActivations:
        start = np.asarray(block.start[self.low : self.high + 1])
        mine = slice(start[0], start[-1])
        feature = np.repeat(np.arange(self.width, dtype=np.int32), np.diff(start))
        token = block.place[mine].astype(np.int64) + number * self.block_positions
        return SortedActivations(feature, token, np.array(block.value[mine]))


def feature_ranges(blocks: Sequence[Path], block_positions: int, width: int) -> Iterator[FeatureRange]:
    """All features in order, as many at a time as `ENTRIES_AT_ONCE` allows."""
    n = np.zeros(width, np.int64)
    for folder in blocks:
        n += np.diff(read_block(folder).start)
    low = 0
    while low < width:
        within = int(np.searchsorted(n[low:].cumsum(), MAX_ENTRIES, side="right"))
        high = min(width, low + max(1, min(within, MAX_FEATURES)))
        yield FeatureRange(low, high, n[low:high], blocks, block_positions)
        low = high


def _merge(parts: Sequence[SortedActivations], width: int) -> SortedActivations:
    joined = SortedActivations(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("feature", "token", "value"))
    )
    if width == 1 or len(parts) == 1:
        return joined
    order = stable_order(joined.feature, width)
    return SortedActivations(joined.feature[order], joined.token[order], joined.value[order])


def _empty() -> SortedActivations:
    return SortedActivations(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32))
