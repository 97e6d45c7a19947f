"""What training minimises: reconstruction, sparsity, and the revival of dead features."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config.dictionaries import Run
from .activate import Activated, Step, activate_dense, activate_sparse, top_k_of
from .parameters import Parameters
from .reduction import ALONE, Reduction
from .selection import uses_bfloat16

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
    def reduced(self, reduction: Reduction) -> "Terms":
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
    reduction: Reduction = ALONE,
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
    return Step.apply(activated.pre, activated.per_feature(p.threshold), run.bandwidth).sum()  # type: ignore[union-attr]


def _auxiliary(
    p: Parameters, run: Run, x: Tensor, error: Tensor, dead: Tensor, reduction: Reduction
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
