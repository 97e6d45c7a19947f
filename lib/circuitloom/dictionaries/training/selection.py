"""Finds, on a CPU, which features of a batch can be active.

The dense encoder product gives the scores. A search then finds the largest scores. The product and the search run on
one block of tokens at a time, so that the complete [token, feature] matrix never exists. Within a block, features are
put into groups, and the largest score of each group is found first. The k-th largest of these group maxima is a lower
bound of the k-th largest score. Only groups whose maximum reaches this bound are searched.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ...config.dictionaries import Run
from ...core.hardware import fast_dtype
from .collectives import SINGLE_PROCESS, Collectives
from .parameters import Parameters
from .sparse import SelectedEntries, SparsityPattern

DENSE_ABOVE = 1 / 12
"""If a larger share of the entries is active, dense products are faster than sparse products."""
BLOCK_ENTRIES = 2**22
"""Largest number of scores that are in memory at the same time."""
GROUP_SIZES = (16, 8, 4)
"""Possible numbers of features per group.

The first number is used that divides the width and leaves at least k * `MIN_GROUPS_PER_K` groups.
"""
MIN_GROUPS_PER_K = 4
"""Smallest allowed number of groups, divided by k."""


@torch.no_grad()
def select(
    p: Parameters, run: Run, x: Float[Tensor, "token d_in"], collectives: Collectives = SINGLE_PROCESS
) -> SelectedEntries | None:
    """Returns the entries that may be active. Returns None if there are so many that dense products are faster.

    For topk and batchtopk these are the entries with the largest pre-activation times |W_dec[i]|. If entries tie for
    the last place, all of them are returned. For relu these are the entries with a pre-activation above 0. For jumprelu
    these are the entries with a pre-activation above the threshold minus half the bandwidth.
    """
    if run.act == "topk":
        return select_top_k(run, run.k, x, p.W_enc, p.encoder_bias, p.decoder_norm, collectives)
    if run.act == "batchtopk":
        return _select_batch_top_k(run, x, p.W_enc, p.encoder_bias, p.decoder_norm, collectives)
    scores, candidates = _BlockedScores(run, x, p.W_enc, p.encoder_bias), _Candidates()
    floor = 0.0 if p.threshold is None else (p.threshold - run.bandwidth / 2).to(score_dtype(run))
    for first, block in scores.blocks():
        candidates.add(first, block, indices_above(block, floor))
        if candidates.share > DENSE_ABOVE:
            return None
    return SelectedEntries(*scores.exact(candidates), x)


@torch.no_grad()
def select_top_k(
    run: Run,
    k: int,
    x: Float[Tensor, "token d_in"],
    weight: Float[Tensor, "feature d_in"],
    bias: Float[Tensor, " feature"],
    norm: Float[Tensor, " feature"],
    collectives: Collectives = SINGLE_PROCESS,
) -> SelectedEntries:
    """For each token, returns the k entries with the largest positive scores (weight x + bias) * norm.

    Entries that tie with the k-th entry are returned too.
    """
    scores, candidates = _BlockedScores(run, x, weight * norm[:, None], bias * norm), _Candidates()
    wanted = candidates_per_token(k, len(norm), scores.are_rounded)
    for first, block in scores.blocks():
        candidates.add(first, block, top_k_per_row(block, wanted))
    pattern, exact = scores.exact(candidates)
    kept = _in_top_k(pattern, exact, k)
    if collectives.is_tensor_parallel:
        # of this process's k largest entries, keep those that are among the k largest of all processes
        pattern, exact = pattern.keep(kept), exact[kept]
        kth = collectives.kth_largest_per_token(_padded_rows(pattern, exact), k)
        kept = exact >= kth[pattern.token]
    return _selected(pattern, exact, kept, norm, x)


def _select_batch_top_k(
    run: Run, x: Tensor, weight: Tensor, bias: Tensor, norm: Tensor, collectives: Collectives
) -> SelectedEntries:
    """Returns the entries of the batch with the largest positive scores (weight x + bias) * norm.

    The number of entries is k times the number of tokens. Entries that tie with the last of these are returned too.
    """
    scores = _BlockedScores(run, x, weight * norm[:, None], bias * norm)
    width = len(norm)
    per_token = min(width, 2 * run.k)
    while True:
        candidates, bound = _Candidates(), torch.zeros(())
        for first, block in scores.blocks():
            indices, block_bound = top_n_of_block(block, per_token * len(block))
            candidates.add(first, block, indices)
            bound = torch.maximum(bound, block_bound)
        pattern, exact = scores.exact(candidates)
        floor = kth_largest(exact, run.k * collectives.global_tokens(len(x)), collectives)
        # if the floor is below a block's bound, the block may have entries above the floor that were not found
        if per_token == width or not collectives.any(floor < bound):
            return _selected(pattern, exact, exact >= floor, norm, x)
        per_token = min(width, 2 * per_token)


def _selected(
    pattern: SparsityPattern, scores: Tensor, kept: Bool[Tensor, " entry"], norm: Tensor, x: Tensor
) -> SelectedEntries:
    pattern = pattern.keep(kept)
    return SelectedEntries(pattern, scores[kept] / norm.index_select(0, pattern.feature), x)


def score_dtype(run: Run) -> torch.dtype:
    """Returns the dtype of the run's large matrix products."""
    return torch.bfloat16 if uses_bfloat16(run) else torch.float32


def uses_bfloat16(run: Run) -> bool:
    """Whether the run's large matrix products are in bfloat16.

    With `precision: auto` they are in bfloat16 if the hardware supports bfloat16.
    """
    if run.precision == "auto":
        return fast_dtype() == torch.bfloat16
    return run.precision == "bfloat16"


def candidates_per_token(k: int, width: int, rounded: bool) -> int:
    """Returns how many of a token's largest scores to take as candidates.

    The candidates almost surely contain the k largest exact scores. `rounded` says whether the scores are bfloat16.
    """
    # bfloat16 has a relative error of 0.4 %
    return min(width, k + max(4, k // 4)) if rounded else k


def kth_largest(
    values: Float[Tensor, " entry"], k: int, collectives: Collectives = SINGLE_PROCESS
) -> Float[Tensor, ""]:
    """Returns the k-th largest positive value of all processes.

    If at most k values are positive, returns the smallest positive normal float32. All positive values then reach the
    result.
    """
    kth = _local_kth_largest(values, k)
    if collectives.world_size == 1:
        return kth
    # the k largest values of each process, taken together, contain the k largest values of all processes
    largest = kth.repeat(k)
    above = values[values > kth]
    largest[: len(above)] = above
    return _local_kth_largest(collectives.all_gather(largest).flatten(), k)


def _local_kth_largest(values: Float[Tensor, " entry"], k: int) -> Float[Tensor, ""]:
    positive = values[values > 0]
    tiny = torch.finfo(torch.float32).tiny
    if len(positive) <= k:
        return torch.full((), tiny, device=values.device)
    return positive.kthvalue(len(positive) - k + 1).values.clamp_min(tiny)


@dataclass(frozen=True)
class _BlockedScores:
    """The scores weight x + bias of a batch, in the run's precision.

    The scores are computed for one block of tokens at a time.
    """

    run: Run
    x: Float[Tensor, "token d_in"]
    weight: Float[Tensor, "feature d_in"]
    bias: Float[Tensor, " feature"]

    @property
    def are_rounded(self) -> bool:
        """Whether scores are in bfloat16. If they are, the final choice of entries uses exact scores."""
        return uses_bfloat16(self.run)

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "token feature"]]]:
        """Yields, for each block, the flat index of the block's first entry, and the block's scores.

        The next block overwrites these scores.
        """
        dtype, width = score_dtype(self.run), len(self.bias)
        weight, bias = self.weight.to(dtype).T, self.bias.to(dtype)
        rows = min(len(self.x), max(1, BLOCK_ENTRIES // width))
        buffer = torch.empty(rows, width, dtype=dtype)
        for start in range(0, len(self.x), rows):
            part = self.x[start : start + rows].to(dtype)
            yield start * width, torch.addmm(bias, part, weight, out=buffer[: len(part)])

    def exact(self, candidates: "_Candidates") -> tuple[SparsityPattern, Float[Tensor, " entry"]]:
        """Returns the candidates as a pattern, and the candidates' float32 scores."""
        pattern = SparsityPattern.from_flat_indices(
            torch.cat(candidates.indices), len(self.x), len(self.bias)
        )
        if not self.are_rounded:
            return pattern, torch.cat(candidates.scores)
        return pattern, pattern.sample(self.x, self.weight) + self.bias.index_select(0, pattern.feature)


class _Candidates:
    """The entries found so far.

    `indices` holds ascending indices into the flattened scores of the batch. `scores` holds the scores at these
    indices. `searched` is the number of scores that were searched.
    """

    def __init__(self) -> None:
        self.indices: list[Int[Tensor, " entry"]] = []
        self.scores: list[Float[Tensor, " entry"]] = []
        self.searched = 0

    def add(self, first: int, block: Float[Tensor, "token feature"], indices: Int[Tensor, " entry"]) -> None:
        """Add the entries at `indices` of the flattened `block`.

        `first` is the flat index of the block's first entry.
        """
        self.scores.append(block.view(-1).index_select(0, indices))
        self.indices.append(indices + first)
        self.searched += block.numel()

    @property
    def share(self) -> float:
        """Share of the searched entries that are candidates."""
        return sum(map(len, self.indices)) / self.searched


def top_k_per_row(scores: Float[Tensor, "token feature"], k: int) -> Int[Tensor, " entry"]:
    """Returns the flat indices, in ascending order, of the k largest positive scores of each row.

    If fewer than k scores of a row are positive, the row has fewer indices. A row may also have more than k indices,
    because the search uses a lower bound of the row's k-th largest score. All scores that reach this bound are
    returned.
    """
    keys = _keys(scores)
    tokens, width = keys.shape
    if k >= width:
        return _flat_indices(keys > 0)
    group_size = _group_size(width, k)
    if group_size == 1:
        return _flat_indices(keys >= _kth_keys(keys, k)[:, None])
    maxima = keys.view(tokens, group_size, -1).amax(1)
    floors = _kth_keys(maxima, k)
    groups = _flat_indices(maxima >= floors[:, None])
    return _search_groups(keys, groups, group_size, floors.index_select(0, groups // maxima.shape[1]))


def top_n_of_block(
    scores: Float[Tensor, "token feature"], n: int
) -> tuple[Int[Tensor, " entry"], Float[Tensor, ""]]:
    """Returns the flat indices, in ascending order, of the block's largest scores, and a bound.

    The indices are those of all scores that reach the bound. The bound is positive. At least `n` scores reach the
    bound, unless fewer than `n` scores are positive.
    """
    keys = _keys(scores)
    tokens, width = keys.shape
    per_token = -(-n // tokens)
    group_size = _group_size(width, per_token)
    maxima = keys.view(tokens, group_size, -1).amax(1)
    floor = _kth_keys(maxima.view(1, -1), min(n, maxima.numel()))
    groups = _flat_indices(maxima >= floor)
    return _search_groups(keys, groups, group_size, floor), _scores(floor, scores.dtype)[0].float()


def indices_above(
    scores: Float[Tensor, "token feature"], floor: float | Float[Tensor, " feature"]
) -> Int[Tensor, " entry"]:
    """Returns the flat indices, in ascending order, of the scores above `floor`."""
    return _flat_indices(scores > floor)


def _group_size(width: int, k: int) -> int:
    """Returns the number of features per group, or 1 if no number in `GROUP_SIZES` fits."""
    fitting = (size for size in GROUP_SIZES if width % size == 0 and width // size >= MIN_GROUPS_PER_K * k)
    return next(fitting, 1)


def _keys(scores: Float[Tensor, "token feature"]) -> Shaped[Tensor, "token feature"]:
    """Returns values that can be compared instead of the scores.

    For bfloat16 scores these are the int16 bit patterns. The patterns of positive scores have the same order as the
    scores. The patterns of all other scores are negative or zero. Scores of another dtype are returned unchanged.
    """
    return scores.view(torch.int16) if scores.dtype == torch.bfloat16 else scores


def _scores(keys: Shaped[Tensor, " some"], dtype: torch.dtype) -> Float[Tensor, " some"]:
    return keys.view(torch.bfloat16) if dtype == torch.bfloat16 else keys


def _kth_keys(keys: Shaped[Tensor, "token feature"], k: int) -> Shaped[Tensor, " token"]:
    """Returns the k-th largest key of each row, or the smallest positive key if the k-th largest is not positive."""
    # numpy's vectorised partition is three to six times as fast as torch.topk and torch.kthvalue
    kth = np.partition(keys.numpy(), keys.shape[1] - k, axis=1)[:, keys.shape[1] - k]
    smallest = 1 if keys.dtype == torch.int16 else torch.finfo(keys.dtype).tiny
    return torch.from_numpy(kth).clamp_min(smallest)


def _search_groups(
    keys: Shaped[Tensor, "token feature"], groups: Int[Tensor, " group"], group_size: int, floor: Tensor
) -> Int[Tensor, " entry"]:
    """Returns the flat indices, in ascending order, of the keys in `groups` that reach `floor`.

    `floor` has one value per group, or a single value for all groups.
    """
    groups_per_row = keys.shape[1] // group_size
    # a group's features are groups_per_row apart, so that amax reads contiguous memory
    first = groups + groups // groups_per_row * (keys.shape[1] - groups_per_row)
    indices = (torch.arange(0, keys.shape[1], groups_per_row)[:, None] + first).view(-1)
    reached = keys.view(-1).index_select(0, indices).view(group_size, -1) >= floor
    return torch.from_numpy(np.sort(indices.index_select(0, _flat_indices(reached)).numpy()))


def _flat_indices(mask: Shaped[Tensor, "token feature"]) -> Int[Tensor, " entry"]:
    # numpy takes half the time of torch.nonzero
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _padded_rows(pattern: SparsityPattern, values: Float[Tensor, " entry"]) -> Float[Tensor, "token most"]:
    """Returns the values as a matrix with one row per token. Shorter rows are padded with -inf."""
    counts = pattern.row_start.diff()
    column = torch.arange(len(values)) - pattern.row_start[:-1].long().repeat_interleave(counts)
    rows = torch.full((pattern.tokens, int(counts.max())), -torch.inf)
    rows[pattern.token, column] = values
    return rows


def _in_top_k(pattern: SparsityPattern, values: Float[Tensor, " entry"], k: int) -> Bool[Tensor, " entry"]:
    """Whether the value of each entry is among the k largest values of the entry's token.

    All entries that tie with the k-th largest are included.
    """
    longest = int(pattern.row_start.diff().max())
    if longest <= k:
        return torch.ones_like(values, dtype=torch.bool)
    rows = _padded_rows(pattern, values)
    kth = np.partition(rows.numpy(), longest - k, axis=1)[:, longest - k]
    return values >= torch.from_numpy(kth)[pattern.token]
