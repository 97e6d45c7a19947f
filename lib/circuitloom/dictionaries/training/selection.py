"""The search for the largest scores of a block, on a CPU: few passes over all, and those by vector instructions.

The maxima of groups of features are found first. The k-th largest of these maxima is a bound: at least k scores of
a token reach it, one in each of k groups, and no other group holds one that does. Which features of a token can be
active: the one dense product of a sparse step, and the search in its result."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ...config.dictionaries import Run
from ...core.hardware import fast_dtype
from .collectives import ALONE, Collectives
from .parameters import Parameters
from .sparse import Selected, SparsityPattern

GROUPS = (16, 8, 4)
"""Features of a group: the most of these that divides the width and leaves enough groups."""
GROUPS_PER_WANTED = 4
"""Groups for each of the entries wanted of a token, at least."""


def largest_of_rows(scores: Float[Tensor, "token feature"], k: int) -> Int[Tensor, " entry"]:
    """Places, ascending, in the flattened block, of at least the k largest positive scores of each row.

    A row has fewer where fewer are positive, and more where others lie between the k-th and the bound that is found.
    """
    keys = _keys(scores)
    tokens, width = keys.shape
    if k >= width:
        return _places(keys > 0)
    group = _group(width, k)
    if group == 1:
        return _places(keys >= _floors(keys, k)[:, None])
    maxima = keys.view(tokens, group, -1).amax(1)
    floors = _floors(maxima, k)
    hit = _places(maxima >= floors[:, None])
    return _within(keys, hit, group, floors.index_select(0, hit // maxima.shape[1]))


def largest_of_block(
    scores: Float[Tensor, "token feature"], n: int
) -> tuple[Int[Tensor, " entry"], Float[Tensor, ""]]:
    """Places, ascending, of at least the n largest positive scores of all rows together; and the bound they reach.

    The bound is a score: all that reach it are there.
    """
    keys = _keys(scores)
    tokens, width = keys.shape
    per_token = -(-n // tokens)
    group = _group(width, per_token)
    maxima = keys.view(tokens, group, -1).amax(1)
    floor = _floors(maxima.view(1, -1), min(n, maxima.numel()))
    hit = _places(maxima >= floor)
    return _within(keys, hit, group, floor), _scores(floor, scores.dtype)[0].float()


def reaching(
    scores: Float[Tensor, "token feature"], floor: float | Float[Tensor, " feature"]
) -> Int[Tensor, " entry"]:
    """Places, ascending, of the scores above `floor`."""
    return _places(scores > floor)


def _group(width: int, k: int) -> int:
    """Features of a group; 1 where grouping does not pay."""
    fitting = (each for each in GROUPS if width % each == 0 and width // each >= GROUPS_PER_WANTED * k)
    return next(fitting, 1)


def _keys(scores: Float[Tensor, "token feature"]) -> Shaped[Tensor, "token feature"]:
    """What is compared: positive bfloat16 are ordered as their bits are, and all others are negative or zero."""
    return scores.view(torch.int16) if scores.dtype == torch.bfloat16 else scores


def _scores(keys: Shaped[Tensor, " some"], dtype: torch.dtype) -> Float[Tensor, " some"]:
    return keys.view(torch.bfloat16) if dtype == torch.bfloat16 else keys


def _floors(keys: Shaped[Tensor, "token feature"], k: int) -> Shaped[Tensor, " token"]:
    """The k-th largest key of each row, or the smallest that is positive."""
    # numpy's partition has vector instructions: three to six times as fast as torch.topk and torch.kthvalue
    kth = np.partition(keys.numpy(), keys.shape[1] - k, axis=1)[:, keys.shape[1] - k]
    smallest = 1 if keys.dtype == torch.int16 else torch.finfo(keys.dtype).tiny
    return torch.from_numpy(kth).clamp_min(smallest)


def _within(
    keys: Shaped[Tensor, "token feature"], hit: Int[Tensor, " hit"], group: int, floor: Tensor
) -> Int[Tensor, " entry"]:
    """Places of the keys that reach `floor` (of each group, or of all) in the groups at places `hit`, ascending."""
    groups = keys.shape[1] // group
    # a group's features lie a stride apart, so that maxima of neighbouring groups are found side by side
    first = hit + hit // groups * (keys.shape[1] - groups)
    place = (torch.arange(0, keys.shape[1], groups)[:, None] + first).view(-1)
    reached = keys.view(-1).index_select(0, place).view(group, -1) >= floor
    return torch.from_numpy(np.sort(place.index_select(0, _places(reached)).numpy()))


def _places(mask: Shaped[Tensor, "token feature"]) -> Int[Tensor, " entry"]:
    # numpy finds them in half the time that torch takes
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


DENSE_ABOVE = 1 / 12
"""Share of active entries above which dense products are faster than sparse ones."""
BLOCK_ENTRIES = 2**22
"""Scores that exist at once."""


@dataclass(frozen=True)
class Scoring:
    """Scores weight x + bias of a batch, in the run's precision, of which a block exists at a time."""

    run: Run
    x: Float[Tensor, "token d_in"]
    weight: Float[Tensor, "feature d_in"]
    bias: Float[Tensor, " feature"]

    @property
    def rough(self) -> bool:
        """Whether scores are rounded, so that the last choice is among exact ones."""
        return uses_bfloat16(self.run)

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "token feature"]]]:
        """The place of each block's first entry, and the block, in memory that the next one reuses."""
        low, width = rough_dtype(self.run), len(self.bias)
        weight, bias = self.weight.to(low).T, self.bias.to(low)
        rows = min(len(self.x), max(1, BLOCK_ENTRIES // width))
        room = torch.empty(rows, width, dtype=low)
        for start in range(0, len(self.x), rows):
            part = self.x[start : start + rows].to(low)
            yield start * width, torch.addmm(bias, part, weight, out=room[: len(part)])

    def exact(self, found: "SelectedEntries") -> tuple[SparsityPattern, Float[Tensor, " entry"]]:
        """What was found, with exact scores."""
        pattern = SparsityPattern.of_places(torch.cat(found.places), len(self.x), len(self.bias))
        if not self.rough:
            return pattern, torch.cat(found.scores)
        return pattern, pattern.sample(self.x, self.weight) + self.bias.index_select(0, pattern.feature)


class SelectedEntries:
    """Entries of all blocks: places in the batch's matrix of scores, ascending, and what stands there."""

    def __init__(self) -> None:
        self.places: list[Int[Tensor, " entry"]] = []
        self.scores: list[Float[Tensor, " entry"]] = []
        self.seen = 0

    def add(self, first: int, block: Float[Tensor, "token feature"], places: Int[Tensor, " entry"]) -> None:
        """Take in a block's entries; `first` is the place of the block's first."""
        self.scores.append(block.view(-1).index_select(0, places))
        self.places.append(places + first)
        self.seen += block.numel()

    @property
    def share(self) -> float:
        """Of the entries seen, those that were found."""
        return sum(map(len, self.places)) / self.seen


@torch.no_grad()
def select(
    p: Parameters, run: Run, x: Float[Tensor, "token d_in"], reduction: Collectives = ALONE
) -> Selected | None:
    """Entries that may be active; None where they are too many for sparse products to pay.

    Under topk and batchtopk those of largest pre-activation times |W_dec[i]|; features of equal score are all kept.
    """
    if run.act == "topk":
        return select_top_k(run, run.k, x, p.W_enc, p.encoder_bias, p.decoder_norm, reduction)
    if run.act == "batchtopk":
        return _select_batch_top_k(run, x, p.W_enc, p.encoder_bias, p.decoder_norm, reduction)
    scoring, found = Scoring(run, x, p.W_enc, p.encoder_bias), SelectedEntries()
    floor = 0.0 if p.threshold is None else (p.threshold - run.bandwidth / 2).to(rough_dtype(run))
    for first, block in scoring.blocks():
        found.add(first, block, reaching(block, floor))
        if found.share > DENSE_ABOVE:
            return None
    return Selected(*scoring.exact(found), x)


@torch.no_grad()
def select_top_k(
    run: Run,
    k: int,
    x: Float[Tensor, "token d_in"],
    weight: Float[Tensor, "feature d_in"],
    bias: Float[Tensor, " feature"],
    norm: Float[Tensor, " feature"],
    reduction: Collectives = ALONE,
) -> Selected:
    """The k entries a token of largest positive (weight x + bias) norm; all of equal ones."""
    scoring, found = Scoring(run, x, weight * norm[:, None], bias * norm), SelectedEntries()
    wanted = margin(k, len(norm), scoring.rough)
    for first, block in scoring.blocks():
        found.add(first, block, largest_of_rows(block, wanted))
    pattern, scores = scoring.exact(found)
    kept = _among_largest(pattern, scores, k)
    if reduction.splits_features:
        # of each process' k largest features of a token, those that are among the k largest of all
        pattern, scores = pattern.keep(kept), scores[kept]
        kept = scores >= reduction.kth_of_tokens(_by_token(pattern, scores), k)[pattern.token]
    return _kept(pattern, scores, kept, norm, x)


def _select_batch_top_k(
    run: Run, x: Tensor, weight: Tensor, bias: Tensor, norm: Tensor, reduction: Collectives
) -> Selected:
    """The k · tokens entries of largest positive (weight x + bias) norm of the batch; all of equal ones."""
    scoring = Scoring(run, x, weight * norm[:, None], bias * norm)
    width = len(norm)
    candidates = min(width, 2 * run.k)
    while True:
        found, bound = SelectedEntries(), torch.zeros(())
        for first, block in scoring.blocks():
            places, reached = largest_of_block(block, candidates * len(block))
            found.add(first, block, places)
            bound = torch.maximum(bound, reached)
        pattern, scores = scoring.exact(found)
        floor = kth_largest(scores, run.k * reduction.tokens(len(x)), reduction)
        # in a block of which all that was found is kept there may be more to keep
        if candidates == width or not reduction.any(floor < bound):
            return _kept(pattern, scores, scores >= floor, norm, x)
        candidates = min(width, 2 * candidates)


def _kept(
    pattern: SparsityPattern, scores: Tensor, kept: Bool[Tensor, " entry"], norm: Tensor, x: Tensor
) -> Selected:
    pattern = pattern.keep(kept)
    return Selected(pattern, scores[kept] / norm.index_select(0, pattern.feature), x)


def rough_dtype(run: Run) -> torch.dtype:
    """Number format of the run's large products."""
    return torch.bfloat16 if uses_bfloat16(run) else torch.float32


def margin(k: int, width: int, rough: bool) -> int:
    """How many of the largest scores surely, or nearly so, hold the k largest exact ones."""
    # bfloat16 errs by 0.4 %
    return min(width, k + max(4, k // 4)) if rough else k


def uses_bfloat16(run: Run) -> bool:
    """Whether the run's large products are in bfloat16: as it says, or `auto`, where the hardware has it."""
    if run.precision == "auto":
        return fast_dtype() == torch.bfloat16
    return run.precision == "bfloat16"


def kth_largest(values: Float[Tensor, " entry"], k: int, reduction: Collectives = ALONE) -> Float[Tensor, ""]:
    """The k-th largest of all processes' positive values; the smallest positive number where fewer are positive."""
    kth = _kth_largest(values, k)
    if reduction.processes == 1:
        return kth
    # the k largest of each hold those of all
    largest = kth.repeat(k)
    above = values[values > kth]
    largest[: len(above)] = above
    return _kth_largest(reduction.gather(largest).flatten(), k)


def _kth_largest(values: Float[Tensor, " entry"], k: int) -> Float[Tensor, ""]:
    positive = values[values > 0]
    tiny = torch.finfo(torch.float32).tiny
    if len(positive) <= k:
        return torch.full((), tiny, device=values.device)
    return positive.kthvalue(len(positive) - k + 1).values.clamp_min(tiny)


def _by_token(pattern: SparsityPattern, values: Float[Tensor, " entry"]) -> Float[Tensor, "token most"]:
    """Values in a row for each token, -inf where it has fewer than another."""
    counts = pattern.row_start.diff()
    place = torch.arange(len(values)) - pattern.row_start[:-1].long().repeat_interleave(counts)
    rows = torch.full((pattern.tokens, int(counts.max())), -torch.inf)
    rows[pattern.token, place] = values
    return rows


def _among_largest(
    pattern: SparsityPattern, values: Float[Tensor, " entry"], k: int
) -> Bool[Tensor, " entry"]:
    """Whether an entry is among the k largest of its token; both of two equal ones are."""
    widest = int(pattern.row_start.diff().max())
    if widest <= k:
        return torch.ones_like(values, dtype=torch.bool)
    rows = _by_token(pattern, values)
    kth = np.partition(rows.numpy(), widest - k, axis=1)[:, widest - k]
    return values >= torch.from_numpy(kth)[pattern.token]
