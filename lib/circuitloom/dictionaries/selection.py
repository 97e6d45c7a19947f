"""Which features of a token can be active: the one dense product of a sparse step, and the search in its result."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config.dictionaries import Run
from ..hardware import fast_dtype
from .parameters import Parameters
from .sparse import Pattern

DENSE_ABOVE = 1 / 12
"""Share of active entries above which dense products are faster than sparse ones."""
PARTIAL_SORT = 64
"""torch.topk sorts partially while k is at most a 64th of the row, and is slow beyond."""


@torch.no_grad()
def select(p: Parameters, run: Run, x: Float[Tensor, "token d_in"]) -> Pattern | None:
    """Entries that may be active; None where they are too many for sparse products to pay.

    The product is in the run's precision; under topk and batchtopk the last choice is among exact scores.
    """
    by_norm = run.act in ("topk", "batchtopk")
    norm = p.decoder_norm if by_norm else None
    weight = p.W_enc if norm is None else p.W_enc * norm[:, None]
    bias = p.encoder_bias if norm is None else p.encoder_bias * norm
    scores = rough_scores(run, x, weight, bias)
    if run.act == "topk":
        return _top_k(weight, bias, run.k, x, scores)
    if run.act == "batchtopk":
        return _batch_top_k(weight, bias, run.k, x, scores)
    floor = 0 if p.threshold is None else (p.threshold - run.bandwidth / 2).to(scores.dtype)
    mask = scores > floor
    if int(mask.sum()) > DENSE_ABOVE * mask.numel():
        return None
    return Pattern.of_mask(mask)


def rough_scores(
    run: Run,
    x: Float[Tensor, "token d_in"],
    weight: Float[Tensor, "feature d_in"],
    bias: Float[Tensor, " feature"],
) -> Float[Tensor, "token feature"]:
    """weight x + bias in the run's precision."""
    low = rough_dtype(run)
    return torch.addmm(bias.to(low), x.to(low), weight.to(low).T)


def rough_dtype(run: Run) -> torch.dtype:
    """Number format of the run's large products."""
    return torch.bfloat16 if uses_bfloat16(run) else torch.float32


def margin(k: int, scores: Float[Tensor, "token feature"]) -> int:
    """How many of the largest rough scores surely, or nearly so, hold the k largest exact ones."""
    # bfloat16 errs by 0.4 %
    return k if scores.dtype == torch.float32 else min(scores.shape[1], k + max(4, k // 4))


def uses_bfloat16(run: Run) -> bool:
    """Whether the run's large products are in bfloat16: as it says, or `auto`, where the hardware has it."""
    if run.precision == "auto":
        return fast_dtype() == torch.bfloat16
    return run.precision == "bfloat16"


def kth_largest(values: Float[Tensor, " entry"], k: int) -> Float[Tensor, ""]:
    """The k-th largest of the positive values; the smallest positive number where fewer are positive."""
    positive = values[values > 0]
    tiny = torch.finfo(torch.float32).tiny
    if len(positive) <= k:
        return torch.full((), tiny, device=values.device)
    return positive.kthvalue(len(positive) - k + 1).values.clamp_min(tiny)


def _top_k(
    weight: Tensor, bias: Tensor, k: int, x: Tensor, scores: Float[Tensor, "token feature"]
) -> Pattern:
    if scores.dtype == torch.float32:
        return largest(scores, k)
    # a margin of candidates, then the choice among their exact scores
    pattern = largest(scores, margin(k, scores))
    return pattern.keep(_among_largest(pattern, _exact(weight, bias, x, pattern), k))


def _batch_top_k(
    weight: Tensor, bias: Tensor, k: int, x: Tensor, scores: Float[Tensor, "token feature"]
) -> Pattern:
    tokens, width = scores.shape
    candidates = min(width, 4 * k)
    while True:
        pattern = largest(scores, candidates)
        exact = _exact(weight, bias, x, pattern)
        kept = exact >= kth_largest(exact, k * tokens)
        # a token all of whose candidates are kept may have more that should be
        used = torch.bincount(pattern.token[kept], minlength=tokens)
        if candidates == width or not bool((used >= candidates).any()):
            return pattern.keep(kept)
        candidates = min(width, 2 * candidates)


def largest(scores: Float[Tensor, "token feature"], k: int) -> Pattern:
    """At least the k largest entries of each row; more only where several equal the k-th."""
    width = scores.shape[1]
    if k * PARTIAL_SORT <= width or k == width:
        return Pattern.of_rows(scores.topk(k, dim=1, sorted=False).indices, width)
    # numpy's partition has vector instructions: three times as fast as what torch.topk does here
    values = scores.float().numpy()
    kth = np.partition(values, width - k, axis=1)[:, width - k]
    return Pattern.of_mask(torch.from_numpy(values >= kth[:, None]))


def _among_largest(pattern: Pattern, values: Float[Tensor, " entry"], k: int) -> Bool[Tensor, " entry"]:
    """Whether an entry is among the k largest of its token; both of two equal ones are."""
    counts = pattern.row_start.diff()
    widest = int(counts.max())
    if widest <= k:
        return torch.ones_like(values, dtype=torch.bool)
    place = torch.arange(len(values)) - pattern.row_start[:-1].long().repeat_interleave(counts)
    rows = torch.full((pattern.tokens, widest), -torch.inf)
    rows[pattern.token, place] = values
    kth = np.partition(rows.numpy(), widest - k, axis=1)[:, widest - k]
    return values >= torch.from_numpy(kth)[pattern.token]


def _exact(weight: Tensor, bias: Tensor, x: Tensor, pattern: Pattern) -> Float[Tensor, " entry"]:
    return pattern.sample(x, weight) + bias.index_select(0, pattern.feature)
