"""Sorts all activations of a basis from token order to feature order, on disk (external sort).

1. `write_blocks` runs the tokens through the model and the encoder, and writes blocks to disk. A block contains the
   activations of consecutive sequences, sorted by feature. After an interruption, `write_blocks` writes only missing
   blocks.
2. `feature_ranges` divides the features into ranges. The activations of one range at a time are read from all blocks
   and merged. The required memory does not depend on the number of tokens or activations.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Integer
from torch import Tensor

from ..config.features import Features
from ..core.atomic_io import fsync
from ..core.progress import progress
from ..corpus.token_arrays import count_sequences
from ..corpus.tokens import Tokens
from ..evaluation.held_out import HeldOut, load_sequences, passes
from ..language_model.batches import Batch
from ..language_model.hooks import Site, capture
from ..language_model.model import LanguageModel
from .basis import FeatureBasis

BLOCK_POSITIONS = 2**16
"""Maximum number of positions per block. Offsets then fit into 16-bit integers, which numpy sorts fastest."""
ENCODE_BATCH = 4096
"""Maximum number of tokens per encoder call. A smaller number needs less memory for dense activations."""
MAX_ENTRIES = 2**22
"""Maximum number of activations in memory."""
MAX_FEATURES = 2**12
"""Maximum number of features per range. A larger range needs more memory for examples."""


@dataclass(frozen=True)
class SortedBlock:
    """Activations at consecutive positions of the flattened token array, sorted by feature and then by position."""

    start: Int[np.ndarray, " feature_plus_1"]
    """Feature i has the entries start[i]:start[i + 1]."""
    offset: Integer[np.ndarray, " entry"]
    """Position of each entry, counted from the start of the block."""
    value: Float32[np.ndarray, " entry"]

    def write(self, folder: Path) -> None:
        """Write the block to `folder` atomically."""
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for name, array in vars(self).items():
            np.save(new / f"{name}.npy", array)
            fsync(new / f"{name}.npy")
        new.rename(folder)
        fsync(folder.parent)


def read_block(folder: Path) -> SortedBlock:
    """Returns the block in `folder` with memory-mapped arrays."""
    return SortedBlock(
        *(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("start", "offset", "value"))
    )


def block_sequences(context: int) -> int:
    """Returns the number of sequences per block."""
    return max(1, BLOCK_POSITIONS // context)


def block_slices(tokens: Tokens, wanted: int | None) -> list[slice]:
    """Returns one slice of sequences per block.

    The blocks cover the first `wanted` tokens. If `wanted` is None, the blocks cover all tokens.
    """
    sequences, size = count_sequences(tokens, wanted), block_sequences(tokens.context)
    return [slice(start, min(start + size, sequences)) for start in range(0, sequences, size)]


def block_folders(work: Path) -> list[Path]:
    """Returns the folders of the blocks in `work`, in text order."""
    return sorted(folder for folder in work.glob("block*") if folder.suffix != ".new")


def write_blocks(
    bases: Sequence[FeatureBasis],
    model: LanguageModel,
    tokens: Tokens,
    config: Features,
    works: Sequence[Path],
) -> int:
    """Write the missing blocks of `bases[i]` to `works[i]`. Returns the number of scored tokens in all blocks."""
    scored = 0
    slices = block_slices(tokens, config.tokens)
    title = f"features: {', '.join(dict.fromkeys(basis.run for basis in bases))}"
    with progress(title, slices[-1].stop * tokens.context, "tokens") as bar:
        for number, rows in enumerate(slices):
            block = load_sequences(tokens, rows)
            scored += block.n_tokens
            folders = [work / f"block{number:06d}" for work in works]
            missing = [i for i, folder in enumerate(folders) if not folder.is_dir()]
            encoded = encode_block([bases[i] for i in missing], model, block, config.batch)
            for i, sorted_block in zip(missing, encoded, strict=True):
                sorted_block.write(folders[i])
            bar.update(block.token.numel())
    return scored


@torch.inference_mode()
def encode_block(
    bases: Sequence[FeatureBasis], model: LanguageModel, sequences: HeldOut, batch: Batch
) -> list[SortedBlock]:
    """Returns one block per basis with the activations at the scored positions of `sequences`.

    Raises ValueError if an activation of the model is not finite.
    """
    if not bases:
        return []
    entries: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in bases]
    sites = list(dict.fromkeys(basis.site for basis in bases))
    waiting: dict[Site, list[tuple[Tensor, Tensor]]] = {}
    first = 0
    for rows in passes(sequences, model, batch):
        scored = rows.scored.flatten().nonzero()[:, 0] + first
        first += rows.token.numel()
        captured = capture(model, rows.token, sites)
        inputs = {site: value[rows.scored].float() for site, value in captured.items()}
        for site, value in inputs.items():
            model.check_finite(value, f"layer {site.layer}: {site.name} on held-out text")
        for basis, found in zip(bases, entries, strict=True):
            if basis.mapped:
                continue
            for begin in range(0, len(scored), ENCODE_BATCH):
                part = slice(begin, begin + ENCODE_BATCH)
                found.append(_encode(basis, inputs[basis.site][part], scored[part], sequences))
        # an encoder that is read from its file at each call takes all tokens of the block at once
        for site in {basis.site for basis in bases if basis.mapped}:
            waiting.setdefault(site, []).append((inputs[site], scored))
    for basis, found in zip(bases, entries, strict=True):
        if basis.mapped:
            x, scored = map(torch.cat, zip(*waiting[basis.site], strict=True))
            found.append(_encode(basis, x, scored, sequences))
    blocks = []
    for basis, found in zip(bases, entries, strict=True):
        offset, number, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
        blocks.append(sort_block(offset, number, value, basis.width))
    return blocks


def _encode(
    basis: FeatureBasis, x: Float[Tensor, "token d"], scored: Int[Tensor, " token"], sequences: HeldOut
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns place in the block, feature and value of each activation. `scored` are the places of the tokens."""
    token, feature, value = basis.encode(x)
    offset = scored[token].cpu().numpy().astype(_unsigned(sequences.token.numel()))
    return offset, feature.cpu().numpy().astype(_unsigned(basis.width)), value.cpu().numpy()


def sort_block(
    offset: Integer[np.ndarray, " entry"],
    feature: Integer[np.ndarray, " entry"],
    value: Float32[np.ndarray, " entry"],
    width: int,
) -> SortedBlock:
    """Returns a block with the activations sorted by feature. The arguments must be sorted by position."""
    order = stable_order(feature, width)
    start = np.concatenate([[0], np.bincount(feature, minlength=width).cumsum()])
    return SortedBlock(start, offset[order], value[order])


def stable_order(keys: Integer[np.ndarray, " entry"], bound: int) -> Int[np.ndarray, " entry"]:
    """Returns a stable argsort of `keys`. All keys must be in [0, bound)."""
    # numpy has a fast radix sort for 16 bits, so keys are sorted by their lower half and then by their upper half
    order = keys.astype(np.uint16).argsort(kind="stable")
    if bound > 2**16:
        upper = (keys >> 16).astype(np.uint16)
        order = order[upper[order].argsort(kind="stable")]
    return order


def _unsigned(bound: int) -> type[np.unsignedinteger]:
    return np.uint16 if bound <= 2**16 else np.uint32


@dataclass(frozen=True)
class SortedActivations:
    """Activations of a feature range in consecutive blocks, sorted by feature and then by token."""

    feature: Int[np.ndarray, " entry"]
    """Index of the feature within the feature range."""
    token: Int[np.ndarray, " entry"]
    """Index of each entry's token in the flattened token array."""
    value: Float32[np.ndarray, " entry"]

    def reduce(
        self, values: Float[np.ndarray, " entry"], operation: np.ufunc, n_features: int
    ) -> Float[np.ndarray, " feature"]:
        """Returns operation.reduce(values) over the entries of each feature. A feature without entries gets 0."""
        reduced = np.zeros(n_features, values.dtype)
        if len(values):
            first = np.flatnonzero(np.diff(self.feature, prepend=-1))
            reduced[self.feature[first]] = operation.reduceat(values, first)
        return reduced


@dataclass(frozen=True)
class FeatureRange:
    """Consecutive features with at most `MAX_ENTRIES` activations in total. A range of one feature may have more."""

    low: int
    high: int
    n: Int[np.ndarray, " feature"]
    """Number of activations of each feature."""
    blocks: Sequence[Path]
    block_positions: int

    @property
    def width(self) -> int:
        """Number of features."""
        return self.high - self.low

    def batches(self) -> Iterator[SortedActivations]:
        """Yield batches of the range's activations, in text order.

        A range with at most `MAX_ENTRIES` activations has one batch. Otherwise each batch covers consecutive blocks.
        """
        if self.n.sum() <= MAX_ENTRIES:
            yield self._all
        else:
            yield from self._read()

    @cached_property
    def _all(self) -> SortedActivations:
        return next(self._read(), None) or _empty()

    def _read(self) -> Iterator[SortedActivations]:
        pending: list[SortedActivations] = []
        n_pending = 0
        for number, folder in enumerate(self.blocks):
            activations = self._of_block(read_block(folder), number)
            if pending and n_pending + len(activations.value) > MAX_ENTRIES:
                yield _merge(pending, self.width)
                pending, n_pending = [], 0
            pending.append(activations)
            n_pending += len(activations.value)
        if pending:
            yield _merge(pending, self.width)

    def _of_block(self, block: SortedBlock, number: int) -> SortedActivations:
        start = np.asarray(block.start[self.low : self.high + 1])
        mine = slice(start[0], start[-1])
        feature = np.repeat(np.arange(self.width, dtype=np.int32), np.diff(start))
        token = block.offset[mine].astype(np.int64) + number * self.block_positions
        return SortedActivations(feature, token, np.array(block.value[mine]))


def feature_ranges(blocks: Sequence[Path], block_positions: int, width: int) -> Iterator[FeatureRange]:
    """Yield ranges that cover all features in ascending order. A range has at most `MAX_FEATURES` features."""
    n = np.zeros(width, np.int64)
    for folder in blocks:
        n += np.diff(read_block(folder).start)
    low = 0
    while low < width:
        within = int(np.searchsorted(n[low:].cumsum(), MAX_ENTRIES, side="right"))
        high = min(width, low + max(1, min(within, MAX_FEATURES)))
        yield FeatureRange(low, high, n[low:high], blocks, block_positions)
        low = high


def _merge(batches: Sequence[SortedActivations], width: int) -> SortedActivations:
    joined = SortedActivations(
        *(
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("feature", "token", "value")
        )
    )
    if width == 1 or len(batches) == 1:
        return joined
    order = stable_order(joined.feature, width)
    return SortedActivations(joined.feature[order], joined.token[order], joined.value[order])


def _empty() -> SortedActivations:
    return SortedActivations(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32))
