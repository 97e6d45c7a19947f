"""Which features are active in training, and how much: selection, then values through which gradients flow. What
training minimises: reconstruction, sparsity, and the revival of dead features."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...config.dictionaries import Run
from ..kernels import fixed_k as rows
from .collectives import ALONE, Collectives
from .parameters import Parameters
from .selection import kth_largest, select, select_top_k, uses_bfloat16
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
    p: Parameters, run: Run, x: Float[Tensor, "token d_in"], reduction: Collectives = ALONE
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
    reduction: Collectives = ALONE,
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


def _among_all(scores: Float[Tensor, " entry"], k: int, reduction: Collectives) -> Bool[Tensor, " entry"]:
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


class StepFunction(torch.autograd.Function):
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
    reduction: Collectives = ALONE,
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


SMALLEST = 1e-12
"""What is divided by is at least this: an output of zero, or a batch without error, is no division by zero."""
TANH_SCALE = 4.0
"""c of the penalty tanh(c z |W_dec|) (Anthropic, January 2025 update)."""


@dataclass(frozen=True)
class Terms:
    """Parts of the loss on one batch, and what the batch tells about the features."""

    loss: Float[Tensor, ""]
    """What is minimised; gradients flow from here."""
    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    """Squared error a token over the stored variance of y."""
    l0: Float[Tensor, ""]
    """Active features a token."""
    fired: Bool[Tensor, " feature"]
    smallest: Float[Tensor, ""]
    """Smallest positive z |W_dec| of the batch, for batchtopk; infinite where nothing fired, and for the others."""

    @torch.no_grad()
    def reduced(self, reduction: Collectives) -> "Terms":
        """The terms of the whole batch and all features, from each process' shares; `fired` of its own features."""
        of_tokens = torch.stack([self.reconstruction, self.auxiliary, self.fvu])
        reconstruction, auxiliary, fvu = reduction.over_tokens(of_tokens)
        of_both = torch.stack([self.sparsity, self.l0])
        sparsity, l0 = reduction.over_tokens(reduction.over_features(of_both))
        return Terms(
            loss=reconstruction + sparsity + auxiliary,
            reconstruction=reconstruction,
            sparsity=sparsity,
            auxiliary=auxiliary,
            fvu=fvu,
            l0=l0,
            fired=reduction.over_tokens(self.fired.int()) > 0,
            smallest=reduction.gather(self.smallest.to(fvu.device)).min(),
        )


def evaluate_terms(
    p: Parameters,
    run: Run,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    variance: float,
    sparsity_weight: float,
    dead: Int[Tensor, " dead"],
    dense: bool = False,
    reduction: Collectives = ALONE,
) -> Terms:
    """The loss on a batch in normalised units, sparse products where they pay.

    `variance` is V in the same units, `sparsity_weight` the λ of this step, `dead` the features to revive. Of several
    processes, each gets the terms of its share: gradients summed over processes are those of the whole.
    """
    activated = None if dense else activate_sparse(p, run, x, reduction)
    if activated is None:
        bias = p.encoder_bias
        with torch.autocast(x.device.type, torch.bfloat16, enabled=uses_bfloat16(run) and not dense):
            activated = activate_dense(p, run, x, bias, reduction)
            decoded = activated.decode(p.W_dec)
    else:
        decoded = activated.decode(p.W_dec)
    y_hat = reduction.over_features(decoded.float()) + reduction.once(p.b_dec)
    if p.W_skip is not None:
        y_hat = y_hat + x @ reduction.once(p.W_skip).T
    tokens = reduction.tokens(len(x))
    squared = (y - y_hat).square().sum(1)
    if run.loss == "paper":
        # mean over tokens and dimensions of squared error over the output's norm, as the authors' code has it
        norm_y = torch.linalg.vector_norm(y, dim=1).clamp_min(SMALLEST)
        reconstruction = (squared / norm_y).sum() / tokens / y.shape[1]
    else:
        reconstruction = squared.sum() / tokens / variance
    sparsity = sparsity_weight * _penalty(p, run, activated, variance) / tokens
    auxiliary = _auxiliary(p, run, x, (y - y_hat).detach(), dead, reduction)
    return Terms(
        loss=reconstruction + sparsity + auxiliary,
        reconstruction=reconstruction.detach(),
        sparsity=sparsity.detach(),
        auxiliary=auxiliary.detach(),
        fvu=squared.detach().sum() / tokens / variance,
        l0=(activated.z.detach() > 0).sum() / tokens,
        fired=activated.fired(len(p.W_enc)),
        smallest=_smallest(activated, p.decoder_norm) if run.act == "batchtopk" else torch.tensor(torch.inf),
    )


def _penalty(p: Parameters, run: Run, activated: Activated, variance: float) -> Tensor:
    """Sparsity penalty summed over tokens, without λ."""
    z = activated.z
    if run.act in ("topk", "batchtopk"):
        return torch.zeros((), device=z.device)
    if run.loss == "paper":
        return z.sum()
    if run.act == "relu":
        return (z * activated.per_feature(p.decoder_norm)).sum() / variance**0.5
    if run.penalty == "tanh":
        return torch.tanh(TANH_SCALE * z * activated.per_feature(p.decoder_norm)).sum()
    assert p.threshold is not None
    return StepFunction.apply(activated.pre, activated.per_feature(p.threshold), run.bandwidth).sum()  # type: ignore[union-attr]


def _auxiliary(
    p: Parameters, run: Run, x: Tensor, error: Tensor, dead: Tensor, reduction: Collectives
) -> Tensor:
    """AuxK (Gao et al. 2024): the dead features' own reconstruction of what the living leave over."""
    if run.act not in ("topk", "batchtopk") or run.aux == 0:
        return torch.zeros((), device=x.device)
    all_dead = reduction.count_features(len(dead))
    if all_dead == 0:
        return torch.zeros((), device=x.device)
    k = min(max(1, x.shape[1] // 2), all_dead)
    activated = top_k_of(p, run, k, x, dead, reduction)
    revived = reduction.over_features(activated.decode(p.W_dec.index_select(0, dead)))
    tokens = reduction.tokens(len(x))
    mean = reduction.over_tokens(error.sum(0)) / tokens
    variance = reduction.over_tokens((error - mean).square().sum(1).sum()) / tokens
    return run.aux * (error - revived).square().sum(1).sum() / tokens / variance.clamp_min(SMALLEST)


@torch.no_grad()
def _smallest(activated: Activated, norm: Tensor) -> Tensor:
    scores = activated.z * activated.per_feature(norm)
    return torch.where(scores > 0, scores, torch.inf).min()
