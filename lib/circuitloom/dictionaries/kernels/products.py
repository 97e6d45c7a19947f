"""Triton kernels for products with a sparse [token, feature] matrix Z. Z has k entries per token. Sums are float32.

Results are deterministic. Every sum has a fixed order, and no kernel uses atomic additions.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

from . import kernel

SEGMENT = 128
"""Maximum number of entries that one program sums. A feature with more entries is split over several programs."""
MAX_INT16_WIDTH = 2**15
"""Maximum number of features for 16-bit sort keys. Sorting 32-bit keys takes twice as long."""


@kernel
@no_type_check
def _sample(left, right, feature, out, d, k, K_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * K_BLOCK + tl.arange(0, K_BLOCK)
    valid = slot < k
    place = tl.load(feature + row * k + slot, mask=valid, other=0).to(tl.int64)
    product = tl.zeros([K_BLOCK, D_BLOCK], tl.float32)
    for start in range(0, d, D_BLOCK):
        column = start + tl.arange(0, D_BLOCK)
        inside = column < d
        vector = tl.load(left + row * d + column, mask=inside, other=0).to(tl.float32)
        mask = valid[:, None] & inside[None, :]
        matrix = tl.load(right + place[:, None] * d + column[None, :], mask=mask, other=0)
        product += vector[None, :] * matrix.to(tl.float32)
    tl.store(out + row * k + slot, tl.sum(product, 1), mask=valid)


def sample(
    left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"], features: Int[Tensor, "token k"]
) -> Float[Tensor, "token k"]:
    """Returns out[t, j] = (left @ right.T)[t, features[t, j]]."""
    (tokens, k), d = features.shape, left.shape[1]
    out = torch.empty(tokens, k, dtype=torch.float32, device=left.device)
    block = min(16, triton.next_power_of_2(k))
    _sample[(tokens, triton.cdiv(k, block))](
        left,
        right,
        features,
        out,
        d,
        k,
        K_BLOCK=block,
        D_BLOCK=min(64, triton.next_power_of_2(d)),
        num_warps=4,
    )
    return out


@kernel
@no_type_check
def _times(values, feature, dense, out, d, k, K_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
    inside = column < d
    total = tl.zeros([K_BLOCK, D_BLOCK], tl.float32)
    for start in range(0, k, K_BLOCK):
        slot = start + tl.arange(0, K_BLOCK)
        valid = slot < k
        place = tl.load(feature + row * k + slot, mask=valid, other=0).to(tl.int64)
        value = tl.load(values + row * k + slot, mask=valid, other=0)
        mask = valid[:, None] & inside[None, :]
        matrix = tl.load(dense + place[:, None] * d + column[None, :], mask=mask, other=0)
        total += value[:, None] * matrix.to(tl.float32)
    tl.store(out + row * d + column, tl.sum(total, 0), mask=inside)


def times(
    values: Float[Tensor, "token k"], features: Int[Tensor, "token k"], dense: Float[Tensor, "feature d"]
) -> Float[Tensor, "token d"]:
    """Returns Z @ dense. Z is the sparse matrix with Z[t, features[t, j]] = values[t, j]."""
    (tokens, k), d = features.shape, dense.shape[1]
    out = torch.empty(tokens, d, dtype=torch.float32, device=dense.device)
    block = min(1024, triton.next_power_of_2(d))
    _times[(tokens, triton.cdiv(d, block))](
        values,
        features,
        dense,
        out,
        d,
        k,
        K_BLOCK=min(8, triton.next_power_of_2(k)),
        D_BLOCK=block,
        num_warps=2,
    )
    return out


@kernel
@no_type_check
def _transposed_times(
    values,
    order,
    first,
    extra_first,
    owner,
    dense,
    out,
    sums,
    width,
    d,
    k,
    extras,
    SEGMENT: tl.constexpr,
    E_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    # extra segments come first, so that at the end no program still works on a long feature
    program = tl.program_id(0)
    is_extra = program < extras
    feature = tl.where(is_extra, tl.load(owner + program, mask=is_extra, other=0), program - extras).to(
        tl.int64
    )
    live = feature < width
    extra = tl.load(extra_first + feature, mask=live & is_extra, other=0)
    segment = tl.where(is_extra, program - extra + 1, 0)
    begin = tl.load(first + feature, mask=live, other=0) + segment * SEGMENT
    stop = tl.minimum(tl.load(first + feature + 1, mask=live, other=0), begin + SEGMENT)
    column = tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
    inside = column < d
    total = tl.zeros([E_BLOCK, D_BLOCK], tl.float32)
    amount = tl.zeros([E_BLOCK], tl.float32)
    for start in range(begin, stop, E_BLOCK):
        at = start + tl.arange(0, E_BLOCK)
        valid = at < stop
        entry = tl.load(order + at, mask=valid, other=0)
        value = tl.load(values + entry, mask=valid, other=0)
        token = entry // k
        mask = valid[:, None] & inside[None, :]
        rows = tl.load(dense + token[:, None] * d + column[None, :], mask=mask, other=0)
        total += value[:, None] * rows.to(tl.float32)
        amount += value
    target = tl.where(is_extra, width + program, program - extras).to(tl.int64)
    tl.store(out + target * d + column, tl.sum(total, 0), mask=column < tl.where(live, d, 0))
    if tl.program_id(1) == 0:
        tl.store(sums + target, tl.sum(amount), mask=live)


@kernel
@no_type_check
def _add_extras(extra_first, owner, out, sums, width, d, E_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr):
    extra = tl.program_id(0)
    feature = tl.load(owner + extra).to(tl.int64)
    if tl.load(extra_first + feature, mask=feature < width, other=-1) == extra:
        column = tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
        inside = column < d
        total = tl.zeros([E_BLOCK, D_BLOCK], tl.float32)
        amount = tl.zeros([E_BLOCK], tl.float32)
        stop = tl.load(extra_first + feature + 1)
        for start in range(extra, stop, E_BLOCK):
            at = (width + start + tl.arange(0, E_BLOCK)).to(tl.int64)
            valid = at < width + stop
            mask = valid[:, None] & inside[None, :]
            total += tl.load(out + at[:, None] * d + column[None, :], mask=mask, other=0)
            amount += tl.load(sums + at, mask=valid, other=0)
        there = tl.load(out + feature * d + column, mask=inside, other=0)
        tl.store(out + feature * d + column, there + tl.sum(total, 0), mask=inside)
        if tl.program_id(1) == 0:
            tl.store(sums + feature, tl.load(sums + feature) + tl.sum(amount))


@dataclass(frozen=True)
class EntriesByFeature:
    """Entries sorted by feature. Each feature's entries are divided into segments of at most `SEGMENT` entries.

    Every feature has a first segment. A feature with more than `SEGMENT` entries also has extra segments.
    """

    order: Int[Tensor, " entry"]
    """Indices of the entries, int64, sorted by feature, then by token."""
    first: Int[Tensor, " feature_plus_1"]
    """int32. Feature i has the sorted entries first[i]:first[i + 1]."""
    extra_first: Int[Tensor, " feature_plus_1"]
    """int32. Feature i has the extra segments extra_first[i]:extra_first[i + 1]."""
    owner: Int[Tensor, " extra"]
    """Feature of each extra segment, int32.

    The length is the largest possible number of extra segments. Unused elements equal the number of features.
    """

    @classmethod
    def sort(cls, feature: Int[Tensor, " entry"], width: int) -> "EntriesByFeature":
        """Returns the entries sorted by feature. `feature` is the feature of each entry, in token order."""
        key = feature.to(torch.int16) if width <= MAX_INT16_WIDTH else feature
        ordered, order = key.sort(stable=True)
        features = torch.arange(width, dtype=key.dtype, device=key.device)
        first = torch.searchsorted(ordered, features, out_int32=True)
        first = torch.nn.functional.pad(first, (0, 1), value=len(order))
        more = (first.diff() - 1).clamp_min_(0) // SEGMENT
        ends = more.cumsum(0, dtype=torch.int32)
        segments = torch.arange(len(order) // SEGMENT, dtype=torch.int32, device=key.device)
        owner = torch.searchsorted(ends, segments, right=True, out_int32=True)
        return cls(order, first, torch.nn.functional.pad(ends, (1, 0)), owner)


def transposed_times(
    values: Float[Tensor, "token k"], entries: EntriesByFeature, dense: Float[Tensor, "token d"]
) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
    """Returns Z.T @ dense and Z.T @ 1. Z is the sparse [token, feature] matrix with `values` at `entries`."""
    k, d, width, extras = values.shape[1], dense.shape[1], len(entries.first) - 1, len(entries.owner)
    # the rows of extra segments follow the rows of the features
    out = dense.new_empty(width + extras, d, dtype=torch.float32)
    sums = values.new_empty(width + extras)
    block = min(256, triton.next_power_of_2(d))
    blocks = triton.cdiv(d, block)
    _transposed_times[(extras + width, blocks)](
        values,
        entries.order,
        entries.first,
        entries.extra_first,
        entries.owner,
        dense,
        out,
        sums,
        width,
        d,
        k,
        extras,
        SEGMENT=SEGMENT,
        E_BLOCK=4,
        D_BLOCK=block,
        num_warps=1,
    )
    if extras:
        _add_extras[(extras, blocks)](
            entries.extra_first, entries.owner, out, sums, width, d, E_BLOCK=4, D_BLOCK=block, num_warps=1
        )
    return out[:width], sums[:width]
