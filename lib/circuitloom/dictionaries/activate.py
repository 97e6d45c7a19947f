"""Which features are active in training, and how much: selection, then values through which gradients flow."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config.dictionaries import Run
from . import rows
from .parameters import Parameters
from .reduction import ALONE, Reduction
from .selection import kth_largest, select, select_top_k
from .sparse import Decode, Encode, Entries


@dataclass(frozen=True)
class Activated:
    """Activations of a batch: a dense matrix, or the entries of a pattern."""

    pre: Float[Tensor, "*entries"]
    """Pre-activations, [token, feature] or [entry]."""
    z: Float[Tensor, "*entries"]
    """Activations, of the same shape."""
    pattern: Entries | None

    def per_feature(self, vector: Float[Tensor, " feature"]) -> Float[Tensor, "*entries"]:
        """`vector` of each entry's feature, of the shape of z."""
        if self.pattern is None:
            return vector.expand_as(self.z)
        return vector.index_select(0, self.pattern.feature)

    def decode(self, W_dec: Float[Tensor, "feature d_out"]) -> Float[Tensor, "token d_out"]:
        """Z @ W_dec."""
        if self.pattern is None:
            return self.z @ W_dec
        return Decode.apply(self.z, W_dec, self.pattern)  # type: ignore[return-value]

    def fired(self, width: int) -> Bool[Tensor, " feature"]:
        """Whether each feature is active on any token."""
        if self.pattern is None:
            return (self.z > 0).any(0)
        # one place more for the silent, since a GPU would have to be waited for to leave them out
        place = torch.where(self.z > 0, self.pattern.feature, width).long()
        fired = torch.zeros(width + 1, dtype=torch.bool, device=place.device)
        return fired.index_fill_(0, place, True)[:width]


def activate_sparse(
    p: Parameters, run: Run, x: Float[Tensor, "token d_in"], reduction: Reduction = ALONE
) -> Activated | None:
    """Activations of the features that can be active; None where dense products are faster, or all that there is."""
    if rows.kernels_serve(run, x):
        selected = rows.choose(p, run, x)
        if reduction.splits_features:
            scores = selected.pre.relu() * p.decoder_norm.detach()[selected.pattern.feature]
            selected = replace(
                selected, pre=torch.where(_among_all(scores, run.k, reduction), selected.pre, 0.0)
            )
    elif x.is_cuda:
        return None
    else:
        selected = select(p, run, x, reduction)
    if selected is None:
        return None
    pre: Tensor = Encode.apply(p.W_enc, p.encoder_bias, selected)  # type: ignore[assignment]
    return Activated(pre, _values(p, run, pre, selected.pattern), selected.pattern)


def activate_dense(
    p: Parameters,
    run: Run,
    x: Float[Tensor, "token d_in"],
    bias: Float[Tensor, " feature"],
    reduction: Reduction = ALONE,
) -> Activated:
    """The formula as it stands, on all features: for GPUs, for dense codes, and as the sparse one's reference.

    `bias` is the encoder's, computed by the caller: it must not be rounded by autocast.
    """
    pre = torch.nn.functional.linear(x, p.W_enc, bias).float()
    z = _values(p, run, pre, None)
    if run.act in ("topk", "batchtopk"):
        scores = pre.detach() * p.decoder_norm.detach()
        if run.act == "batchtopk":
            kept = scores >= kth_largest(scores.flatten(), run.k * reduction.tokens(len(x)), reduction)
        elif reduction.splits_features:
            kept = scores >= reduction.kth_of_tokens(scores, run.k)[:, None]
        else:
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(
                1, scores.topk(run.k, dim=1).indices, True
            )
        z = z * kept
    return Activated(pre, z, None)


def _among_all(scores: Float[Tensor, " entry"], k: int, reduction: Reduction) -> Bool[Tensor, " entry"]:
    """Whether an entry, k of a token's in each process, is among the k largest of all."""
    rows = scores.detach().view(-1, k)
    return (rows >= reduction.kth_of_tokens(rows, k)[:, None]).flatten()


def _values(p: Parameters, run: Run, pre: Tensor, pattern: Entries | None) -> Tensor:
    if p.threshold is None:
        return pre.relu()
    threshold = (
        p.threshold.expand_as(pre) if pattern is None else p.threshold.index_select(0, pattern.feature)
    )
    return JumpReLU.apply(pre, threshold, run.bandwidth)  # type: ignore[return-value]


def rectangle(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Kernel that stands for the derivative of a step at the threshold (Rajamanoharan et al. 2024, equation 11)."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth


class JumpReLU(torch.autograd.Function):
    """pre where it exceeds the threshold, else 0; the threshold's gradient by the rectangle kernel."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # noqa: D102
        pre, threshold = ctx.saved_tensors
        on_threshold = -threshold * rectangle(pre, threshold, ctx.bandwidth) * gradient
        return gradient * (pre > threshold), on_threshold, None


class Step(torch.autograd.Function):
    """1 where pre exceeds the threshold, else 0; gradients to the threshold alone, by the rectangle kernel."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # noqa: D102
        pre, threshold = ctx.saved_tensors
        return None, -rectangle(pre, threshold, ctx.bandwidth) * gradient, None


def top_k_of(
    p: Parameters,
    run: Run,
    k: int,
    x: Float[Tensor, "token d_in"],
    features: Int[Tensor, " some"],
    reduction: Reduction = ALONE,
) -> Activated:
    """The k most active of some features alone, numbered by their place in `features`.

    Where processes have features of their own, these are among the k most active of all processes'.

    A feature whose pre-activation is never positive gets no gradient from it (as in Gao et al. 2024).
    """
    weight, bias = p.W_enc.index_select(0, features), p.encoder_bias.index_select(0, features)
    norm = p.decoder_norm.detach().index_select(0, features)
    if reduction.splits_features:
        pre = torch.nn.functional.linear(x, weight, bias)
        scores = pre.detach() * norm
        return Activated(pre, pre.relu() * (scores >= reduction.kth_of_tokens(scores, k)[:, None]), None)
    if x.is_cuda:
        pre = torch.nn.functional.linear(x, weight, bias)
        chosen = (pre.detach() * norm).topk(k, dim=1, sorted=False).indices
        return Activated(pre, torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen).relu()), None)
    selected = select_top_k(run, k, x, weight, bias, norm)
    pre: Tensor = Encode.apply(weight, bias, selected)  # type: ignore[assignment]
    return Activated(pre, pre.relu(), selected.pattern)
