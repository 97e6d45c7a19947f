"""Finds, on a CPU, the features of a batch that can be active.

The dense encoder product gives the scores. A search then finds the largest scores. The product and the search run on
one block of tokens at a time, so that the complete [token, feature] matrix never exists. Within a block, features are
put into groups, and the largest score of each group is found first. The k-th largest of these group maxima is a lower
bound of the k-th largest score. All scores that reach this bound are candidates.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from ...config.dictionaries import Run
from ...core.hardware import fast_dtype
from .collectives import SINGLE_PROCESS, Collectives
from .parameters import Parameters
from .sparse import SelectedEntries, SparsityPattern

DENSE_ABOVE = 1 / 12
"""If a larger fraction of the entries is active, dense products are faster than sparse products."""
BLOCK_ENTRIES = 2**22
"""Maximum number of scores in memory."""
GROUP_SIZES = (16, 8, 4)
"""Possible numbers of features per group, in order of preference.

The chosen number must divide the width, and must give at least k * `MIN_GROUPS_PER_K` groups.
"""
MIN_GROUPS_PER_K = 4
"""Minimum ratio of the number of groups to k."""
MapLayers = Callable[..., Iterable]
"""`map`, or a function like it that works on several layers at a time."""


@torch.no_grad()
def select(
    p: Parameters, run: Run, x: Float[Tensor, "token d_in"], collectives: Collectives = SINGLE_PROCESS
) -> SelectedEntries | None:
    """Returns the entries that can be active. Returns None if dense products are faster.

    - topk and batchtopk: entries with the largest pre-activation times |W_dec[i]|, including ties
    - relu: entries with a pre-activation above 0
    - jumprelu: entries with a pre-activation above threshold - bandwidth / 2
    """
    if run.act == "topk":
        return select_top_k(run, run.k, x, p.W_enc, p.encoder_bias, p.decoder_norm, collectives)
    if run.act == "batchtopk":
        [selected] = select_batch_top_k(run, [(p, x)], collectives)
        return selected
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
    """Returns the k entries of each token with the largest positive scores (weight x + bias) * norm.

    Ties with the k-th entry are included.
    """
    scores, candidates = _BlockedScores(run, x, weight, bias, norm), _Candidates()
    wanted = candidates_per_token(k, len(norm), scores.are_rounded)
    for first, block in scores.blocks():
        candidates.add(first, block, top_k_per_row(block, wanted))
    pattern, exact = scores.exact(candidates)
    kept = _in_top_k(pattern, exact, k)
    if collectives.is_tensor_parallel:
        # of this process's k largest entries, keep those that are among the k largest of all processes
        indices = _flat_indices(kept)
        pattern, exact = pattern.keep(indices), exact[indices]
        kth = collectives.kth_largest_per_token(_padded_rows(pattern, exact), k)
        kept = exact >= kth[pattern.token]
    return _selected(pattern, exact, kept, norm, x)


@torch.no_grad()
def select_batch_top_k(
    run: Run,
    layers: Sequence[tuple[Parameters, Tensor]],
    collectives: Collectives = SINGLE_PROCESS,
    map_layers: MapLayers = map,
) -> list[SelectedEntries]:
    """Returns this process's entries among the largest positive scores (weight x + bias) * norm of several layers.

    `layers` has the parameters and the input of each layer. Their number times k n scores are the largest, n being the
    number of tokens in the global batch. Ties with the last entry are included.
    """
    norms = [p.decoder_norm for p, _ in layers]
    scores = [
        _BlockedScores(run, x, p.W_enc, p.encoder_bias, norm)
        for (p, x), norm in zip(layers, norms, strict=True)
    ]
    wanted = run.k * len(layers) * collectives.global_tokens(len(layers[0][1]))
    per_token = [min(len(norm), 2 * run.k) for norm in norms]
    found = list(map_layers(_top_of_layer, scores, per_token))
    while True:
        floor = kth_largest(torch.cat([exact for _, exact, _ in found]), wanted, collectives)
        # if the floor is below a block's bound, the block may have entries above the floor that were not found
        short = [
            i
            for i, (_, _, bound) in enumerate(found)
            if per_token[i] < len(norms[i]) and collectives.any(floor < bound)
        ]
        if not short:
            break
        for i in short:
            per_token[i] = min(len(norms[i]), 2 * per_token[i])
            found[i] = _top_of_layer(scores[i], per_token[i])
    return [
        _selected(pattern, exact, exact >= floor, norm, x)
        for (pattern, exact, _), norm, (_, x) in zip(found, norms, layers, strict=True)
    ]


@torch.no_grad()
def _top_of_layer(
    scores: "_BlockedScores", per_token: int
) -> tuple[SparsityPattern, Float[Tensor, " entry"], Float[Tensor, ""]]:
    """Returns (pattern, exact scores, bound). All entries with scores above the bound are included."""
    candidates, bound = _Candidates(), torch.zeros(())
    for first, block in scores.blocks():
        indices, block_bound = top_n_of_block(block, per_token * len(block))
        candidates.add(first, block, indices)
        bound = torch.maximum(bound, block_bound)
    return *scores.exact(candidates), bound


def _selected(
    pattern: SparsityPattern, scores: Tensor, kept: Bool[Tensor, " entry"], norm: Tensor, x: Tensor
) -> SelectedEntries:
    indices = _flat_indices(kept)
    pattern = pattern.keep(indices)
    return SelectedEntries(
        pattern, scores.index_select(0, indices) / norm.index_select(0, pattern.feature), x
    )


def score_dtype(run: Run) -> torch.dtype:
    """Returns the dtype of the run's large matrix products."""
    return torch.bfloat16 if uses_bfloat16(run) else torch.float32


def uses_bfloat16(run: Run) -> bool:
    """Whether the run's large matrix products are in bfloat16. With `precision: auto`, the hardware decides."""
    if run.precision == "auto":
        return fast_dtype() == torch.bfloat16
    return run.precision == "bfloat16"


def candidates_per_token(k: int, width: int, rounded: bool) -> int:
    """Returns the number of candidates that almost surely include a token's k largest exact scores.

    `rounded` says whether the scores are bfloat16.
    """
    # bfloat16 has a relative error of 0.4 %
    return min(width, k + max(4, k // 4)) if rounded else k


def kth_largest(
    values: Float[Tensor, " entry"], k: int, collectives: Collectives = SINGLE_PROCESS
) -> Float[Tensor, ""]:
    """Returns the k-th largest positive value over all processes.

    If at most k values are positive, returns the smallest positive normal float32.
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
    """Computes the scores (weight x + bias) * norm in the run's precision, one block of tokens at a time."""

    run: Run
    x: Float[Tensor, "token d_in"]
    weight: Float[Tensor, "feature d_in"]
    bias: Float[Tensor, " feature"]
    norm: Float[Tensor, " feature"] | None = None
    """Factor of the scores of each feature. None is 1."""

    @property
    def are_rounded(self) -> bool:
        """Whether the scores are bfloat16."""
        return uses_bfloat16(self.run)

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "token feature"]]]:
        """Yields (flat index of the first entry, scores) for each block. The next block overwrites the scores."""
        dtype, width = score_dtype(self.run), len(self.bias)
        weight = self._scaled.to(dtype).T
        x = pad(pad(self.x, (0, 1), value=1.0), (0, 3)).to(dtype)
        rows = min(len(x), max(1, BLOCK_ENTRIES // width))
        buffer = torch.empty(rows, width, dtype=dtype)
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            yield start * width, torch.mm(part, weight, out=buffer[: len(part)])

    def exact(self, candidates: "_Candidates") -> tuple[SparsityPattern, Float[Tensor, " entry"]]:
        """Returns the sparsity pattern and the float32 scores of the candidates."""
        pattern = SparsityPattern.from_flat_indices(
            torch.cat(candidates.indices), len(self.x), len(self.bias)
        )
        if not self.are_rounded:
            return pattern, torch.cat(candidates.scores)
        d = self.x.shape[1]
        scaled, bias = self._scaled[:, :d].contiguous(), self._scaled[:, d]
        return pattern, pattern.sample(self.x, scaled) + bias.index_select(0, pattern.feature)

    @cached_property
    def _scaled(self) -> Float[Tensor, "feature d_in_plus_4"]:
        """The weight and the bias, multiplied by the norm.

        The bias is a column of the weight, because adding it takes two more passes over a block. Columns of zeros
        follow, because MKL is slower if the number of columns is odd.
        """
        (width, d), norm = self.weight.shape, self.norm
        scaled = self.weight.new_empty(width, d + 4)
        scaled[:, d + 1 :] = 0
        if norm is None:
            scaled[:, :d], scaled[:, d] = self.weight, self.bias
        else:
            # written in place, because each copy of the weight is another pass over it
            torch.mul(self.weight, norm[:, None], out=scaled[:, :d])
            torch.mul(self.bias, norm, out=scaled[:, d])
        return scaled


class _Candidates:
    """The candidate entries found so far. `searched` is the number of searched scores.

    `indices` contains ascending indices into the flattened [token, feature] scores.
    """

    def __init__(self) -> None:
        self.indices: list[Int[Tensor, " entry"]] = []
        self.scores: list[Float[Tensor, " entry"]] = []
        self.searched = 0

    def add(self, first: int, block: Float[Tensor, "token feature"], indices: Int[Tensor, " entry"]) -> None:
        """Add the entries at `indices` of the flattened `block`. `first` is the batch's flat index of block[0, 0]."""
        self.scores.append(block.view(-1).index_select(0, indices))
        self.indices.append(indices + first)
        self.searched += block.numel()

    @property
    def share(self) -> float:
        """Number of candidates divided by the number of searched scores."""
        return sum(map(len, self.indices)) / self.searched


def top_k_per_row(scores: Float[Tensor, "token feature"], k: int) -> Int[Tensor, " entry"]:
    """Returns flat indices, in ascending order, that include the k largest positive scores of each row.

    A row with fewer than k positive scores has fewer than k indices. Other rows may have more than k indices, because
    the search keeps all scores that reach a lower bound of the k-th largest score.
    """
    keys = _keys(scores)
    if k >= keys.shape[1]:
        return _flat_indices(keys > 0)
    return _indices_reaching(keys, _kth_keys(_group_maxima(keys, k), k)[:, None])


def top_n_of_block(
    scores: Float[Tensor, "token feature"], n: int
) -> tuple[Int[Tensor, " entry"], Float[Tensor, ""]]:
    """Returns (indices, bound). `indices` are the flat indices of all scores >= bound, in ascending order.

    The bound is positive. If at least `n` scores are positive, at least `n` scores reach the bound.
    """
    keys = _keys(scores)
    maxima = _group_maxima(keys, -(-n // len(keys)))
    floor = _kth_keys(maxima.view(1, -1), min(n, maxima.numel()))
    return _indices_reaching(keys, floor), _scores(floor, scores.dtype)[0].float()


def indices_above(
    scores: Float[Tensor, "token feature"], floor: float | Float[Tensor, " feature"]
) -> Int[Tensor, " entry"]:
    """Returns the flat indices of scores > floor, in ascending order."""
    return _flat_indices(scores > floor)


def _group_maxima(keys: Shaped[Tensor, "token feature"], k: int) -> Shaped[Tensor, "token group"]:
    """Returns the largest key of each group of features, or all keys if no number in `GROUP_SIZES` fits."""
    width = keys.shape[1]
    fitting = (size for size in GROUP_SIZES if width % size == 0 and width // size >= MIN_GROUPS_PER_K * k)
    if (size := next(fitting, 1)) == 1:
        return keys
    # a group's features are width / size apart, so that amax reads contiguous memory
    return keys.view(len(keys), size, -1).amax(1)


def _keys(scores: Float[Tensor, "token feature"]) -> Shaped[Tensor, "token feature"]:
    """Returns the int16 bit patterns of bfloat16 scores. Returns float32 scores unchanged.

    Bit patterns of positive scores have the same order as the scores. All other bit patterns are at most 0.
    """
    return scores.view(torch.int16) if scores.dtype == torch.bfloat16 else scores


def _scores(keys: Shaped[Tensor, " some"], dtype: torch.dtype) -> Float[Tensor, " some"]:
    return keys.view(torch.bfloat16) if dtype == torch.bfloat16 else keys


def _kth_keys(keys: Shaped[Tensor, "token feature"], k: int) -> Shaped[Tensor, " token"]:
    """Returns the k-th largest key of each row, but at least the smallest positive key."""
    # numpy's vectorised partition is three to six times as fast as torch.topk and torch.kthvalue
    kth = np.partition(keys.numpy(), keys.shape[1] - k, axis=1)[:, keys.shape[1] - k]
    smallest = 1 if keys.dtype == torch.int16 else torch.finfo(keys.dtype).tiny
    return torch.from_numpy(kth).clamp_min(smallest)


def _indices_reaching(
    keys: Shaped[Tensor, "token feature"], floor: Shaped[Tensor, "..."]
) -> Int[Tensor, " entry"]:
    """Returns the flat indices, in ascending order, of the keys that reach `floor`."""
    # comparing all keys takes less time than gathering the keys of those groups that reach the floor
    return torch.from_numpy(np.flatnonzero(keys.numpy() >= floor.numpy()))


def _flat_indices(mask: Bool[Tensor, "*shape"]) -> Int[Tensor, " entry"]:
    # numpy takes half the time of torch.nonzero
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _padded_rows(pattern: SparsityPattern, values: Float[Tensor, " entry"]) -> Float[Tensor, "token most"]:
    """Returns `values` as a matrix with one row per token. Short rows are padded with -inf."""
    counts = pattern.row_start.diff()
    longest = int(counts.max())
    rows = torch.full((pattern.tokens, longest), -torch.inf)
    # a mask, because assigning by a pair of indices per value takes several times as long
    rows.numpy()[(torch.arange(longest) < counts[:, None]).numpy()] = values.numpy()
    return rows


def _in_top_k(pattern: SparsityPattern, values: Float[Tensor, " entry"], k: int) -> Bool[Tensor, " entry"]:
    """Whether each entry is among the k largest of its token. Ties with the k-th largest are included."""
    rows = _padded_rows(pattern, values)
    beyond = rows.shape[1] - k
    if beyond <= 0:
        return torch.ones_like(values, dtype=torch.bool)
    kth = np.partition(rows.numpy(), beyond, axis=1)[:, beyond]
    return values >= torch.from_numpy(pattern.per_entry(kth))
