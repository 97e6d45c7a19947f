"""The training objective: activations, reconstruction loss, sparsity penalty, and the losses that revive dead features:
AuxK (topk, batchtopk) and the pre-activation loss (relu, jumprelu)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...config.dictionaries import Run
from ..kernels import fixed_k
from .collectives import SINGLE_PROCESS, Collectives
from .parameters import Parameters
from .selection import kth_largest, select, select_top_k, uses_bfloat16
from .sparse import Decode, Encode, Entries, SelectedEntries

TOPK_ACTS = ("topk", "batchtopk")
"""Activation functions that keep only the largest activations. Their loss has AuxK instead of a sparsity penalty."""
EPSILON = 1e-12
"""Lower bound of divisors. The divisors are norms of outputs, and the variance of the residual error."""
TANH_SCALE = 4.0
"""The constant c of the penalty tanh(c z |W_dec[i]|) (Anthropic, January 2025 update)."""
BLOCK_ENTRIES = 2**22
"""Maximum number of pre-activations of dead features in memory."""


@dataclass(frozen=True)
class LossTerms:
    """Terms of the loss on one batch, and statistics of the batch's activations."""

    loss: Float[Tensor, ""]
    """Sum of `reconstruction`, `sparsity` and `auxiliary`. Only this field has gradients."""
    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained: mean of |y - y_hat|^2 over tokens, divided by the stored variance V of y."""
    l0: Float[Tensor, ""]
    """Mean number of active features per token."""
    fired: Bool[Tensor, " feature"]
    """Whether each feature is active on any token."""
    min_active: Float[Tensor, ""]
    """Smallest positive z |W_dec[i]| of the batch. Infinity without active features, or if `act` is not batchtopk."""

    @torch.no_grad()
    def all_reduce(self, collectives: Collectives) -> "LossTerms":
        """Returns the terms for the global batch and all features. `fired` covers only this process's features."""
        per_token = torch.stack([self.reconstruction, self.auxiliary, self.fvu])
        reconstruction, auxiliary, fvu = collectives.sum_over_tokens(per_token)
        per_token_and_feature = torch.stack([self.sparsity, self.l0])
        sparsity, l0 = collectives.sum_over_tokens(collectives.sum_over_features(per_token_and_feature))
        return LossTerms(
            loss=reconstruction + sparsity + auxiliary,
            reconstruction=reconstruction,
            sparsity=sparsity,
            auxiliary=auxiliary,
            fvu=fvu,
            l0=l0,
            fired=collectives.sum_over_tokens(self.fired.int()) > 0,
            min_active=collectives.all_gather(self.min_active.to(fvu.device)).min(),
        )


def compute_loss(
    p: Parameters,
    run: Run,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    variance: float,
    sparsity_weight: float,
    dead: Int[Tensor, " dead"],
    dense: bool = False,
    collectives: Collectives = SINGLE_PROCESS,
) -> LossTerms:
    """Returns this process's loss terms in normalised units. The caller sums terms and gradients over processes.

    `variance` is V = E|y - mean|^2. `sparsity_weight` is λ at this step. `dead` contains the indices of the dead
    features. If `dense` is true, all features are computed with dense products. Tests use dense products as a
    reference.
    """
    # activation
    selected = None if dense else select_entries(p, run, x, collectives)
    z, decoded = activate(p, run, x, selected, dense, collectives)

    # reconstruction
    y_hat = collectives.sum_over_features(decoded.float()) + collectives.grad_on_first_rank(p.b_dec)
    if p.W_skip is not None:
        y_hat = y_hat + x @ collectives.grad_on_first_rank(p.W_skip).T
    tokens = collectives.global_tokens(len(x))
    squared_error, residual = SquaredError.apply(y, y_hat)  # type: ignore[misc]
    if run.loss == "paper":
        # Dunefsky et al. 2024, as in their code: mean over tokens and dimensions of (y_hat - y)^2 / |y_t|
        norm_y = torch.linalg.vector_norm(y, dim=1).clamp_min(EPSILON)
        reconstruction = (squared_error / norm_y).sum() / tokens / y.shape[1]
    else:
        reconstruction = squared_error.sum() / tokens / variance

    # sparsity penalty
    sparsity = sparsity_weight * sparsity_penalty(p, run, z, variance) / tokens

    # AuxK (Gao et al. 2024): dead features reconstruct the residual error
    auxiliary = torch.zeros((), device=x.device)
    has_auxk = run.act in TOPK_ACTS and run.aux != 0
    n_dead = collectives.sum_feature_counts(len(dead)) if has_auxk else 0
    if n_dead > 0:
        z_dead = activate_top_k(p, run, min(max(1, x.shape[1] // 2), n_dead), x, dead, collectives)
        residual_hat = collectives.sum_over_features(z_dead.decode(p.W_dec.index_select(0, dead)))
        auxiliary = auxk_loss(run, residual, residual_hat, squared_error, tokens, collectives)
    if run.pre_activation > 0:
        auxiliary = pre_activation_loss(p, run, x, dead, variance, collectives) / tokens

    return LossTerms(
        loss=reconstruction + sparsity + auxiliary,
        reconstruction=reconstruction.detach(),
        sparsity=sparsity.detach(),
        auxiliary=auxiliary.detach(),
        fvu=squared_error.detach().sum() / tokens / variance,
        l0=(z.values.detach() > 0).sum() / tokens,
        fired=z.fired(len(p.W_enc)),
        min_active=min_active(z, p.decoder_norm) if run.act == "batchtopk" else torch.tensor(torch.inf),
    )


def auxk_loss(
    run: Run,
    residual: Float[Tensor, "token d_out"],
    residual_hat: Float[Tensor, "token d_out"],
    squared_error: Float[Tensor, " token"],
    tokens: int,
    collectives: Collectives = SINGLE_PROCESS,
) -> Float[Tensor, ""]:
    """Returns `run.aux` times |residual - residual_hat|^2 over the variance of the residual y - y_hat.

    `squared_error` is |residual|^2 of each token, and `tokens` the number of tokens in the global batch.
    """
    mean = collectives.sum_over_tokens(residual.sum(0)) / tokens
    squared_residual = collectives.sum_over_tokens(squared_error.detach().sum()) / tokens
    residual_variance = squared_residual - mean.square().sum()
    squared, _ = SquaredError.apply(residual, residual_hat)  # type: ignore[misc]
    return run.aux * squared.sum() / tokens / residual_variance.clamp_min(EPSILON)


def pre_activation_loss(
    p: Parameters,
    run: Run,
    x: Float[Tensor, "token d_in"],
    dead: Int[Tensor, " dead"],
    variance: float,
    collectives: Collectives = SINGLE_PROCESS,
) -> Float[Tensor, ""]:
    """Returns `run.pre_activation` times the sum over tokens and dead features of ReLU(threshold_i - pre_i) |W_dec[i]|,
    over √V (Anthropic, January 2025 update, where the sum is over all features). The threshold of relu is 0.

    The encoder, the threshold and the decoder get gradients.
    """
    weight, bias, norm = (
        tensor.index_select(0, dead) for tensor in (p.W_enc, p.encoder_bias, p.decoder_norm)
    )
    if p.threshold is not None:
        bias = bias - p.threshold.index_select(0, dead)
    # The sum of -(w x + b) over inactive tokens needs only their number and the sum of their x. So no [token, dead]
    # tensor is kept for the gradient.
    inactive, x_sum = _inactive_sums(x, weight.detach(), bias.detach())
    lacking = -(bias * inactive + (weight * x_sum).sum(1))
    return run.pre_activation * collectives.sum_over_features((norm * lacking).sum()) / variance**0.5


@torch.no_grad()
def _inactive_sums(
    x: Float[Tensor, "token d_in"], weight: Float[Tensor, "feature d_in"], bias: Float[Tensor, " feature"]
) -> tuple[Float[Tensor, " feature"], Float[Tensor, "feature d_in"]]:
    """Returns for each feature the number of tokens with weight x + bias < 0, and the sum of their x."""
    count, x_sum = torch.zeros_like(bias), torch.zeros_like(weight)
    for part in x.split(max(1, BLOCK_ENTRIES // max(1, len(weight)))):
        inactive = (torch.nn.functional.linear(part, weight, bias) < 0).to(x.dtype)
        count += inactive.sum(0)
        x_sum.addmm_(inactive.T, part)
    return count, x_sum


@dataclass(frozen=True)
class BatchActivations:
    """Activations of a batch. They are dense, or cover only the entries of a sparsity pattern."""

    pre: Float[Tensor, "*entries"]
    """Pre-activations, [token, feature] or [entry]."""
    values: Float[Tensor, "*entries"]
    """Activations z, in the same shape as `pre`."""
    pattern: Entries | None
    """The entries that the activations cover. None if the activations are dense."""

    def per_feature(self, vector: Float[Tensor, " feature"]) -> Float[Tensor, "*entries"]:
        """Returns vector[feature] for each element of `values`."""
        if self.pattern is None:
            return vector.expand_as(self.values)
        return vector.index_select(0, self.pattern.feature)

    def decode(self, W_dec: Float[Tensor, "feature d_out"]) -> Float[Tensor, "token d_out"]:
        """Returns Z @ W_dec. Z is the [token, feature] matrix of the activations."""
        if self.pattern is None:
            return self.values @ W_dec
        return Decode.apply(self.values, W_dec, self.pattern)  # type: ignore[return-value]

    def fired(self, width: int) -> Bool[Tensor, " feature"]:
        """Whether each feature is active on any token."""
        if self.pattern is None:
            return (self.values > 0).any(0)
        # sums, because masking out inactive entries would make the CPU wait for the GPU
        sums = torch.zeros(width, device=self.values.device)
        return sums.index_add_(0, self.pattern.feature, self.values.detach()) > 0


def activate(
    p: Parameters,
    run: Run,
    x: Float[Tensor, "token d_in"],
    selected: SelectedEntries | None,
    float32: bool = False,
    collectives: Collectives = SINGLE_PROCESS,
    floor: Float[Tensor, ""] | None = None,
) -> tuple[BatchActivations, Float[Tensor, "token d_written"]]:
    """Returns the activations, and what they write: Z @ W_dec.

    Only the `selected` entries are computed, or all features if it is None. If `float32` is true, dense products ignore
    the run's precision. `floor` is that of `activate_dense`.
    """
    if selected is not None:
        z = activate_selected(p, run, selected)
        return z, z.decode(p.W_dec)
    # computed outside autocast, which would round the bias
    bias = p.encoder_bias
    with torch.autocast(x.device.type, torch.bfloat16, enabled=uses_bfloat16(run) and not float32):
        z = activate_dense(p, run, x, bias, collectives, floor)
        return z, z.decode(p.W_dec)


def select_entries(
    p: Parameters, run: Run, x: Float[Tensor, "token d_in"], collectives: Collectives = SINGLE_PROCESS
) -> SelectedEntries | None:
    """Returns the entries that can be active. Returns None if dense products should be used.

    On a CPU, None means that dense products are faster. On a GPU, None means that the kernels do not support the run.
    """
    if not fixed_k.uses_kernels(run, x):
        return None if x.is_cuda else select(p, run, x, collectives)
    selected = fixed_k.select_fixed_k(p, run, x)
    if collectives.is_tensor_parallel:
        scores = selected.pre.relu() * p.decoder_norm.detach()[selected.pattern.feature]
        kept = _in_global_top_k(scores, run.k, collectives)
        selected = replace(selected, pre=torch.where(kept, selected.pre, 0.0))
    return selected


def activate_selected(p: Parameters, run: Run, selected: SelectedEntries) -> BatchActivations:
    """Returns the activations of the selected entries."""
    pre: Tensor = Encode.apply(p.W_enc, p.encoder_bias, selected)  # type: ignore[assignment]
    return BatchActivations(pre, _activation(p, run, pre, selected.pattern), selected.pattern)


def activate_dense(
    p: Parameters,
    run: Run,
    x: Float[Tensor, "token d_in"],
    bias: Float[Tensor, " feature"],
    collectives: Collectives = SINGLE_PROCESS,
    floor: Float[Tensor, ""] | None = None,
) -> BatchActivations:
    """Returns the activations of all features. `bias` is `p.encoder_bias`.

    `floor` is the least score that batchtopk keeps. By default, it keeps the largest scores of this layer.
    """
    pre = torch.nn.functional.linear(x, p.W_enc, bias).float()
    z = _activation(p, run, pre, None)
    if run.act in TOPK_ACTS:
        scores = pre.detach() * p.decoder_norm.detach()
        if run.act == "batchtopk":
            if floor is None:
                n = run.k * collectives.global_tokens(len(x))
                floor = kth_largest(scores.flatten(), n, collectives)
            kept = scores >= floor
        elif collectives.is_tensor_parallel:
            kept = scores >= collectives.kth_largest_per_token(scores, run.k)[:, None]
        else:
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(
                1, scores.topk(run.k, dim=1).indices, True
            )
        z = z * kept
    return BatchActivations(pre, z, None)


def activate_top_k(
    p: Parameters,
    run: Run,
    k: int,
    x: Float[Tensor, "token d_in"],
    features: Int[Tensor, " some"],
    collectives: Collectives = SINGLE_PROCESS,
) -> BatchActivations:
    """Returns the activations of `features`. Column i of the result belongs to features[i].

    For each token, only k features are active. These features have the largest pre-activation times |W_dec[i]| among
    the `features` of all processes. Features with a negative pre-activation get no gradient, as in Gao et al. 2024.
    """
    weight, bias = p.W_enc.index_select(0, features), p.encoder_bias.index_select(0, features)
    norm = p.decoder_norm.detach().index_select(0, features)
    if collectives.is_tensor_parallel:
        pre = torch.nn.functional.linear(x, weight, bias)
        scores = pre.detach() * norm
        kept = scores >= collectives.kth_largest_per_token(scores, k)[:, None]
        return BatchActivations(pre, pre.relu() * kept, None)
    if k == len(features):
        pre = torch.nn.functional.linear(x, weight, bias)
        return BatchActivations(pre, pre.relu(), None)
    if x.is_cuda:
        pre = torch.nn.functional.linear(x, weight, bias)
        chosen = (pre.detach() * norm).topk(k, dim=1, sorted=False).indices
        z = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen).relu())
        return BatchActivations(pre, z, None)
    selected = select_top_k(run, k, x, weight, bias, norm)
    pre: Tensor = Encode.apply(weight, bias, selected)  # type: ignore[assignment]
    return BatchActivations(pre, pre.relu(), selected.pattern)


def _in_global_top_k(
    scores: Float[Tensor, " entry"], k: int, collectives: Collectives
) -> Bool[Tensor, " entry"]:
    """Whether each score is among its token's k largest scores over all processes. `scores` has k entries per token."""
    by_token = scores.detach().view(-1, k)
    return (by_token >= collectives.kth_largest_per_token(by_token, k)[:, None]).flatten()


def _activation(p: Parameters, run: Run, pre: Tensor, pattern: Entries | None) -> Tensor:
    """Returns JumpReLU of `pre` if the parameters have a threshold. Otherwise returns ReLU of `pre`."""
    if p.threshold is None:
        return pre.relu()
    threshold = (
        p.threshold.expand_as(pre) if pattern is None else p.threshold.index_select(0, pattern.feature)
    )
    return JumpReLU.apply(pre, threshold, run.bandwidth)  # type: ignore[return-value]


def sparsity_penalty(p: Parameters, run: Run, z: BatchActivations, variance: float) -> Tensor:
    """Returns the sparsity penalty without the factor λ, summed over tokens.

    The penalty is L1 for relu (tanh if a cross-layer transcoder asks for it), L0 or tanh for jumprelu, and 0 for topk
    and batchtopk. In L1, activations are multiplied by |W_dec[i]|, except with `loss: paper`.
    """
    if run.act in TOPK_ACTS:
        return torch.zeros((), device=z.values.device)
    if run.loss == "paper":
        return z.values.sum()
    if run.act == "relu" and not (run.is_cross_layer and run.penalty == "tanh"):
        return (z.values * z.per_feature(p.decoder_norm)).sum() / variance**0.5
    if run.penalty == "tanh":
        return torch.tanh(TANH_SCALE * z.values * z.per_feature(p.decoder_norm)).sum()
    assert p.threshold is not None
    return StepFunction.apply(z.pre, z.per_feature(p.threshold), run.bandwidth).sum()  # type: ignore[union-attr]


@torch.no_grad()
def min_active(z: BatchActivations, norm: Float[Tensor, " feature"]) -> Float[Tensor, ""]:
    """Returns the smallest positive z |W_dec[i]|, or infinity. `norm` is |W_dec[i]|."""
    scores = z.values * z.per_feature(norm)
    return torch.where(scores > 0, scores, torch.inf).min()


class SquaredError(torch.autograd.Function):
    """Returns |y - y_hat|^2 of each token, and the residual y - y_hat.

    Only y_hat gets a gradient, and only from the squared error. y is data.
    """

    # the gradient takes one pass over [token, d_out], where that of the same formula in torch takes three

    @staticmethod
    def forward(ctx, y: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        residual = y - y_hat
        ctx.save_for_backward(residual)
        ctx.mark_non_differentiable(residual)
        return residual.square().sum(1), residual

    @staticmethod
    def backward(ctx, gradient: Tensor, _):  # noqa: D102
        (residual,) = ctx.saved_tensors
        return None, residual * (-2 * gradient)[:, None]


def rectangle(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Returns the rectangle kernel, a pseudo-derivative of the step function (Rajamanoharan et al. 2024, eq. 11)."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth


class JumpReLU(torch.autograd.Function):
    """Returns pre * (pre > threshold). The gradient of the threshold uses `rectangle`."""

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
    """Returns 1 where pre > threshold, and 0 elsewhere. Only the threshold gets a gradient (`rectangle`)."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # noqa: D102
        pre, threshold = ctx.saved_tensors
        return None, -rectangle(pre, threshold, ctx.bandwidth) * gradient, None
