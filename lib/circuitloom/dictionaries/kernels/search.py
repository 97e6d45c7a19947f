"""Triton kernels that select the k features with the largest scores for each token.

`prepare_weights` rounds the weights. `find_candidates` finds slightly more than k candidates per token from rounded
scores. `choose_top_k` selects k of the candidates by scores with float32 sums.

`find_candidates` does not sort. The columns of each row are divided into groups. The floor is the `wanted`-th largest
group maximum. All entries that reach the floor are candidates. There are at least `wanted` candidates, and usually few
more. If there are too many candidates, a bitwise search of the row finds the `wanted`-th largest score instead. This
happens if many scores tie, or if the largest scores are in few groups.
"""

from typing import no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

from . import kernel

GROUPS = 1024
"""Default number of groups per row. Short rows have fewer groups. Rows with many candidates have more groups."""
SMALLEST_NORM = tl.constexpr(1e-30)
"""Lower bound of the divisor |W_dec[i]|. If |W_dec[i]| is 0, the score and the pre-activation are 0."""


@kernel
@no_type_check
def _prepare_weights(
    W_enc, W_dec, norm, weight, decoder, d_in, d_out, D_BLOCK: tl.constexpr, ROUND: tl.constexpr
):
    feature = tl.program_id(0).to(tl.int64)
    square = tl.zeros([D_BLOCK], tl.float32)
    for start in range(0, d_out, D_BLOCK):
        column = start + tl.arange(0, D_BLOCK)
        row = tl.load(W_dec + feature * d_out + column, mask=column < d_out, other=0)
        square += row * row
        if ROUND:
            rounded = row.to(decoder.dtype.element_ty)
            tl.store(decoder + feature * d_out + column, rounded, mask=column < d_out)
    length = tl.sqrt(tl.sum(square))
    tl.store(norm + feature, length)
    for start in range(0, d_in, D_BLOCK):
        column = start + tl.arange(0, D_BLOCK)
        row = tl.load(W_enc + feature * d_in + column, mask=column < d_in, other=0) * length
        tl.store(weight + feature * d_in + column, row.to(weight.dtype.element_ty), mask=column < d_in)


def prepare_weights(
    W_enc: Float[Tensor, "feature d_in"], W_dec: Float[Tensor, "feature d_out"], dtype: torch.dtype
) -> tuple[Float[Tensor, " feature"], Float[Tensor, "feature d_in"], Float[Tensor, "feature d_out"]]:
    """Returns |W_dec[i]|, W_enc[i] * |W_dec[i]|, and W_dec. The two matrices have dtype `dtype`."""
    (width, d_in), d_out = W_enc.shape, W_dec.shape[1]
    norm, weight = W_enc.new_empty(width), torch.empty_like(W_enc, dtype=dtype)
    rounds = dtype != W_dec.dtype
    decoder = torch.empty_like(W_dec, dtype=dtype) if rounds else W_dec
    block = min(1024, triton.next_power_of_2(max(d_in, d_out)))
    _prepare_weights[(width,)](
        W_enc, W_dec, norm, weight, decoder, d_in, d_out, D_BLOCK=block, ROUND=rounds, num_warps=4
    )
    return norm, weight, decoder


@kernel
@no_type_check
def _keys(scores, place, width, BITS: tl.constexpr):
    """Returns integers that have the same order as scores[place]. A place >= `width` gives the smallest integer.

    `scores` contains bfloat16 or float32 scores, viewed as integers.
    """
    bits = tl.load(scores + place, mask=place < width, other=-(1 << (BITS - 1))).to(tl.int32)
    key = bits ^ ((bits >> 31) & ((1 << (BITS - 1)) - 1))
    return tl.where(place < width, key, -(1 << (BITS - 1)))


@kernel
@no_type_check
def _kth_key(keys, wanted, BITS: tl.constexpr):
    """Returns the `wanted`-th largest of `keys`. The result is computed bit by bit."""
    enough = tl.sum((keys >= 0).to(tl.int32)) >= wanted
    least = tl.where(enough, 0, -(1 << (BITS - 1)))
    for i in tl.static_range(BITS - 1):
        higher = least | (1 << (BITS - 2 - i))
        enough = tl.sum((keys >= higher).to(tl.int32)) >= wanted
        least = tl.where(enough, higher, least)
    return least


@kernel
@no_type_check
def _count(scores, width, floor, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the number of keys >= `floor` in a row."""
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, width, BLOCK):
        keys = _keys(scores, start + tl.arange(0, BLOCK), width, BITS)
        count += (keys >= floor).to(tl.int32)
    return tl.sum(count)


@kernel
@no_type_check
def _kth_key_of_row(scores, width, wanted, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the `wanted`-th largest key of a row. The result is computed bit by bit."""
    enough = _count(scores, width, 0, BITS, BLOCK) >= wanted
    least = tl.where(enough, 0, -(1 << (BITS - 1)))
    for i in range(BITS - 1):
        higher = least | (1 << (BITS - 2 - i))
        enough = _count(scores, width, higher, BITS, BLOCK) >= wanted
        least = tl.where(enough, higher, least)
    return least


@kernel
@no_type_check
def _append(
    scores, candidates, written, width, low, high, BITS: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr
):
    """Append the columns with keys in [low, high] to `candidates`. Returns the new number of candidates.

    `written` is the previous number of candidates. Columns beyond ROOM are counted but not stored.
    """
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        keys = _keys(scores, place, width, BITS)
        hit = (keys >= low) & (keys <= high) & (place < width)
        slot = written + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(candidates + slot, place, mask=hit & (slot < ROOM))
        written += tl.sum(hit.to(tl.int32))
    return written


@kernel
@no_type_check
def _expand_groups(
    scores,
    candidates,
    groups,
    width,
    floor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLDS: tl.constexpr,
    ROOM: tl.constexpr,
):
    """Replace each group in `candidates` by its columns with keys >= `floor`. Returns the number of these columns.

    Columns beyond ROOM are counted but not stored.
    """
    slot = tl.arange(0, ROOM)
    group = tl.load(candidates + slot, mask=slot < groups, other=width)
    place = group[:, None] + BLOCK * tl.arange(0, FOLDS)[None, :]
    hit = ((_keys(scores, place, width, BITS) >= floor) & (place < width)).to(tl.int32)
    total = tl.sum(hit, 1)
    target = (tl.cumsum(total, 0) - total)[:, None] + tl.cumsum(hit, 1) - 1
    # all threads must read the groups before one overwrites them
    tl.debug_barrier()
    tl.store(candidates + target, place, mask=(hit > 0) & (target < ROOM))
    return tl.sum(total)


@kernel
@no_type_check
def _find_candidates(
    scores,
    candidates,
    counts,
    width,
    wanted,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLDS: tl.constexpr,
    ROOM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores += row * width
    candidates += row * ROOM
    lane = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -(1 << (BITS - 1)), tl.int32)
    for start in range(0, width, BLOCK):
        largest = tl.maximum(largest, _keys(scores, start + lane, width, BITS))
    floor = _kth_key(largest, wanted, BITS)
    hit = (largest >= floor) & (lane < width)
    groups = tl.sum(hit.to(tl.int32))
    count = tl.full([], ROOM + 1, tl.int32)
    if groups <= ROOM:
        tl.store(candidates + tl.cumsum(hit.to(tl.int32), 0) - 1, lane, mask=hit)
        tl.debug_barrier()
        count = _expand_groups(scores, candidates, groups, width, floor, BITS, BLOCK, FOLDS, ROOM)
    if count > ROOM:
        floor = _kth_key_of_row(scores, width, wanted, BITS, BLOCK)
        highest = (1 << (BITS - 1)) - 1
        none = tl.full([], 0, tl.int32)
        above = _append(scores, candidates, none, width, floor + 1, highest, BITS, BLOCK, ROOM)
        count = _append(scores, candidates, above, width, floor, floor, BITS, BLOCK, ROOM)
        count = tl.minimum(count, ROOM)
    tl.store(counts + row, count)


def find_candidates(
    scores: Float[Tensor, "token feature"], wanted: int
) -> tuple[Int[Tensor, "token room"], Int[Tensor, " token"]]:
    """Returns candidates[token] and counts[token]. The first counts[token] candidates of a token are valid.

    The candidates are the columns of at least the `wanted` largest scores, in any order. Of the columns that tie with
    the `wanted`-th largest score, some may be missing. `scores` must be contiguous, and bfloat16 or float32.
    """
    tokens, width = scores.shape
    room = triton.next_power_of_2(max(8, wanted + wanted // 2))
    block = min(triton.next_power_of_2(width), max(GROUPS, 2 * room))
    bits = 8 * scores.element_size()
    candidates = torch.empty(tokens, room, dtype=torch.int32, device=scores.device)
    counts = torch.empty(tokens, dtype=torch.int32, device=scores.device)
    _find_candidates[(tokens,)](
        scores.view(torch.int16 if bits == 16 else torch.int32),
        candidates,
        counts,
        width,
        wanted,
        BITS=bits,
        BLOCK=block,
        FOLDS=triton.next_power_of_2(triton.cdiv(width, block)),
        ROOM=room,
        num_warps=8,
    )
    return candidates, counts


@kernel
@no_type_check
def _choose_top_k(
    x,
    weight,
    bias,
    norm,
    candidates,
    counts,
    feature,
    pre,
    d,
    k,
    D_BLOCK: tl.constexpr,
    ROOM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, ROOM)
    valid = slot < tl.load(counts + row)
    place = tl.load(candidates + row * ROOM + slot, mask=valid, other=0)
    product = tl.zeros([ROOM, D_BLOCK], tl.float32)
    for start in range(0, d, D_BLOCK):
        column = start + tl.arange(0, D_BLOCK)
        inside = column < d
        vector = tl.load(x + row * d + column, mask=inside, other=0).to(tl.float32)
        at = place.to(tl.int64)[:, None] * d + column[None, :]
        product += vector[None, :] * tl.load(weight + at, mask=valid[:, None] & inside[None, :], other=0).to(
            tl.float32
        )
    score = tl.sum(product, 1) + tl.load(bias + place)
    score = tl.where(valid, score, float("-inf"))
    better = (score[None, :] > score[:, None]) | (
        (score[None, :] == score[:, None]) & (place[None, :] < place[:, None])
    )
    kept = valid & (tl.sum((better & valid[None, :]).to(tl.int32), 1) < k)
    # ordered by feature, because sums over a token's entries must not depend on the order of the candidates
    target = tl.sum((kept[None, :] & (place[None, :] < place[:, None])).to(tl.int32), 1)
    kept &= target < k
    tl.store(feature + row * k + target, place, mask=kept)
    value = score / tl.maximum(tl.load(norm + place), SMALLEST_NORM)
    tl.store(pre + row * k + target, value, mask=kept)


def choose_top_k(
    x: Float[Tensor, "token d"],
    weight: Float[Tensor, "feature d"],
    bias: Float[Tensor, " feature"],
    norm: Float[Tensor, " feature"],
    candidates: Int[Tensor, "token room"],
    counts: Int[Tensor, " token"],
    k: int,
) -> tuple[Int[Tensor, "token k"], Float[Tensor, "token k"]]:
    """Returns the k candidates of each token with the largest scores weight x + bias, in ascending order of feature.

    Also returns score / norm of these candidates, in float32. Scores have float32 sums. If scores tie, the lowest
    feature indices are chosen.
    """
    tokens, room = candidates.shape
    d = x.shape[1]
    feature = torch.empty(tokens, k, dtype=torch.int32, device=x.device)
    pre = torch.empty(tokens, k, dtype=torch.float32, device=x.device)
    _choose_top_k[(tokens,)](
        x,
        weight,
        bias,
        norm,
        candidates,
        counts,
        feature,
        pre,
        d,
        k,
        D_BLOCK=min(64, triton.next_power_of_2(d)),
        ROOM=room,
        num_warps=2 if room <= 64 else room // 16,
    )
    return feature, pre
