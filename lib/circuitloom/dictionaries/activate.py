"""Which features are active in training, and how much: selection, then values through which gradients flow."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config.dictionaries import Run
from .parameters import Parameters
from .sparse import Decode, Encode, Pattern

DENSE_ABOVE = 1 / 12
"""Share of active entries above which dense products are faster than sparse ones (docs/benchmarks/training.md)."""


@dataclass(frozen=True)
class Activated:
    """Activations of a batch: a dense matrix, or the entries of a pattern."""

    pre: Float[Tensor, "*entries"]
    """Pre-activations, [token, feature] or [entry]."""
    z: Float[Tensor, "*entries"]
    """Activations, of the same shape."""
    pattern: Pattern | None

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
        return torch.zeros(width, dtype=torch.bool).index_fill_(
            0, self.pattern.feature[self.z > 0].long(), True
        )


def activate_sparse(p: Parameters, run: Run, x: Float[Tensor, "token d_in"]) -> Activated | None:
    """Activations of the features that can be active; None where they are too many for sparse products to pay."""
    pattern = _select(p, run, x)
    if pattern is None:
        return None
    pre = Encode.apply(x, p.W_enc, pattern) + p.encoder_bias.index_select(0, pattern.feature)
    return Activated(pre, _values(p, run, pre, pattern), pattern)


def activate_dense(p: Parameters, run: Run, x: Float[Tensor, "token d_in"]) -> Activated:
    """The formula as it stands, on all features: for GPUs, for dense codes, and as the sparse one's reference."""
    pre = torch.nn.functional.linear(x, p.W_enc, p.encoder_bias).float()
    z = _values(p, run, pre, None)
    if run.act in ("topk", "batchtopk"):
        scores = pre.detach() * p.decoder_norm.detach()
        if run.act == "topk":
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(
                1, scores.topk(run.k, dim=1).indices, True
            )
        else:
            kept = scores >= _kth_largest(scores.flatten(), run.k * len(x))
        z = z * kept
    return Activated(pre, z, None)


def _values(p: Parameters, run: Run, pre: Tensor, pattern: Pattern | None) -> Tensor:
    if p.threshold is None:
        return pre.relu()
    threshold = (
        p.threshold.expand_as(pre) if pattern is None else p.threshold.index_select(0, pattern.feature)
    )
    return JumpReLU.apply(pre, threshold, run.bandwidth)  # type: ignore[return-value]


@torch.no_grad()
def _select(p: Parameters, run: Run, x: Float[Tensor, "token d_in"]) -> Pattern | None:
    """Entries that may be active: the one dense product, in the run's precision, on which only the choice rests."""
    selects_by_norm = run.act in ("topk", "batchtopk")
    weight = p.W_enc * p.decoder_norm[:, None] if selects_by_norm else p.W_enc
    bias = p.encoder_bias * p.decoder_norm if selects_by_norm else p.encoder_bias
    low = torch.bfloat16 if uses_bfloat16(run) else torch.float32
    scores = torch.addmm(bias.to(low), x.to(low), weight.to(low).T)
    if run.act == "topk":
        return _top_k(p, run.k, x, scores)
    if run.act == "batchtopk":
        return _batch_top_k(p, run.k, x, scores)
    floor = 0 if p.threshold is None else (p.threshold - run.bandwidth / 2).to(low)
    mask = scores > floor
    if int(mask.sum()) > DENSE_ABOVE * mask.numel():
        return None
    return Pattern.of_mask(mask)


def _top_k(p: Parameters, k: int, x: Tensor, scores: Float[Tensor, "token feature"]) -> Pattern:
    width = scores.shape[1]
    if scores.dtype == torch.float32:
        return Pattern.of_rows(scores.topk(k, dim=1, sorted=False).indices, width)
    # bfloat16 errs by 0.4 %: a margin of candidates, then the choice among their exact scores
    candidates = min(width, k + max(4, k // 4))
    pattern = Pattern.of_rows(scores.topk(candidates, dim=1, sorted=False).indices, width)
    exact = _exact_scores(p, x, pattern).view(-1, candidates)
    features = pattern.feature.view(-1, candidates).gather(1, exact.topk(k, dim=1, sorted=False).indices)
    return Pattern.of_rows(features, width)


def _batch_top_k(p: Parameters, k: int, x: Tensor, scores: Float[Tensor, "token feature"]) -> Pattern:
    width, tokens = scores.shape[1], len(x)
    candidates = min(width, 4 * k)
    while True:
        pattern = Pattern.of_rows(scores.topk(candidates, dim=1, sorted=False).indices, width)
        exact = _exact_scores(p, x, pattern)
        kept = (exact >= _kth_largest(exact, k * tokens)).view(tokens, candidates)
        # a token all of whose candidates are kept may have more that should be
        if candidates == width or not bool(kept.all(1).any()):
            return _entries(pattern, kept.flatten())
        candidates = min(width, 2 * candidates)


def _entries(pattern: Pattern, kept: Bool[Tensor, " entry"]) -> Pattern:
    counts = torch.bincount(pattern.token[kept], minlength=pattern.tokens)
    start = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return Pattern(start, pattern.feature[kept], pattern.width)


def _exact_scores(p: Parameters, x: Tensor, pattern: Pattern) -> Float[Tensor, " entry"]:
    pre = pattern.sample(x, p.W_enc) + p.encoder_bias.index_select(0, pattern.feature)
    return pre * p.decoder_norm.index_select(0, pattern.feature)


def _kth_largest(values: Float[Tensor, " entry"], k: int) -> Float[Tensor, ""]:
    """The k-th largest of the positive values; 0 where fewer are positive."""
    positive = values[values > 0]
    if len(positive) <= k:
        return torch.zeros((), device=values.device)
    return positive.kthvalue(len(positive) - k + 1).values.clamp_min(torch.finfo(torch.float32).tiny)


def uses_bfloat16(run: Run) -> bool:
    """Whether the run's large products are in bfloat16: as it says, or `auto`, where the hardware has it."""
    if run.precision == "auto":
        return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return run.precision == "bfloat16"


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
    p: Parameters, k: int, x: Float[Tensor, "token d_in"], features: Int[Tensor, " some"]
) -> Activated:
    """The k most active of some features alone, numbered by their place in `features`.

    A feature whose pre-activation is never positive gets no gradient from it (as in Gao et al. 2024).
    """
    weight, bias = p.W_enc.index_select(0, features), p.encoder_bias.index_select(0, features)
    with torch.no_grad():
        chosen = torch.addmm(bias, x, weight.T).topk(k, dim=1, sorted=False).indices
    if x.is_cuda:
        pre = torch.nn.functional.linear(x, weight, bias)
        z = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen).relu())
        return Activated(pre, z, None)
    pattern = Pattern.of_rows(chosen, len(features))
    pre = Encode.apply(x, weight, pattern) + bias.index_select(0, pattern.feature)
    return Activated(pre, pre.relu(), pattern)
