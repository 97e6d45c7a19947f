"""Metrics as pure functions: float64 sums over parts of the held-out set that add up and are divided once."""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.nn import functional as F

S = TypeVar("S", bound="MetricSums")
A = TypeVar("A", "ReconstructionSums", "PredictionSums", Tensor)
K = TypeVar("K")

CHUNK_ELEMENTS = 2**22
"""Log-probabilities computed at once: what stays in a cache, and bounds the memory of a large vocabulary."""

HISTOGRAM_LOWEST, HISTOGRAM_WIDTH = -7.0, 0.25
"""Lower end and width of the bins of log10 density; the same for every dictionary, so that they compare."""


@dataclass(frozen=True)
class MetricSums:
    """Sums over some tokens; adding two of them gives the sums over both sets of tokens."""

    def __add__(self: S, other: S) -> S:
        """Field by field."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return type(self)(*(mine + yours for mine, yours in pairs))


def accumulate(totals: dict[K, A], key: K, part: A) -> None:
    """Add `part` to the total of `key`, which starts as the first part."""
    totals[key] = totals[key] + part if key in totals else part


@dataclass(frozen=True)
class ReconstructionSums(MetricSums):
    """What the agreement of y and y_hat is computed from."""

    n: int
    """Tokens."""
    y: Float64[Tensor, " out"]
    y_squared: Float64[Tensor, ""]
    y_hat_squared: Float64[Tensor, ""]
    error_squared: Float64[Tensor, ""]
    product: Float64[Tensor, ""]
    """Sum of y . y_hat."""
    cosines: Float64[Tensor, ""]
    norm_ratios: Float64[Tensor, ""]

    @property
    def mse(self) -> float:
        """Squared error a token, summed over dimensions."""
        return float(self.error_squared) / self.n

    @property
    def fvu(self) -> float:
        """Squared error over squared distance from the set's mean, per dimension; the mean itself gives 1."""
        return float(self.error_squared / (self.y_squared - self.y.square().sum() / self.n))

    @property
    def cosine(self) -> float:
        """Mean cosine of y and y_hat; 0 where one of them is zero."""
        return float(self.cosines) / self.n

    @property
    def norm_ratio(self) -> float:
        """Mean of |y_hat| / |y|."""
        return float(self.norm_ratios) / self.n

    @property
    def relative_bias(self) -> float:
        """E|y_hat|^2 / E[y . y_hat], 1 where shrinkage is absent (Rajamanoharan 2024, arXiv 2404.16014)."""
        return float(self.y_hat_squared / self.product)


def reconstruction_sums(
    y: Float[Tensor, "token out"], y_hat: Float[Tensor, "token out"]
) -> ReconstructionSums:
    """The sums over one batch of tokens."""
    norm, norm_hat = torch.linalg.vector_norm(y, dim=1), torch.linalg.vector_norm(y_hat, dim=1)
    product = (y * y_hat).sum(1)
    tiny = torch.finfo(y.dtype).tiny
    return ReconstructionSums(
        n=len(y),
        y=y.sum(0, dtype=torch.float64),
        y_squared=y.square().sum(dtype=torch.float64),
        y_hat_squared=y_hat.square().sum(dtype=torch.float64),
        error_squared=(y - y_hat).square().sum(dtype=torch.float64),
        product=product.sum(dtype=torch.float64),
        cosines=(product / (norm * norm_hat).clamp_min(tiny)).sum(dtype=torch.float64),
        norm_ratios=(norm_hat / norm.clamp_min(tiny)).sum(dtype=torch.float64),
    )


@dataclass(frozen=True)
class FiringSums(MetricSums):
    """How often each feature fires."""

    n: int
    """Tokens."""
    fires: Int64[Tensor, " feature"]
    """Tokens on which each feature is not zero."""

    @property
    def l0(self) -> float:
        """Features active a token, mean."""
        return float(self.fires.sum()) / self.n

    @property
    def density(self) -> Float64[Tensor, " feature"]:
        """Share of tokens on which each feature fires."""
        return self.fires.double() / self.n

    @property
    def alive(self) -> float:
        """Share of features that fire at all."""
        return self.share_over(0.0)

    def share_over(self, density: float) -> float:
        """Share of features that fire on more than `density` of the tokens."""
        return float((self.density > density).double().mean())


def firing_sums(feature: Int[Tensor, " entry"], width: int, n_tokens: int) -> FiringSums:
    """The counts of one batch of `n_tokens`, from the feature of each non-zero activation."""
    return FiringSums(n_tokens, torch.bincount(feature, minlength=width))


def density_histogram(
    density: Float[Tensor, " feature"],
) -> list[tuple[float | None, float | None, int]]:
    """(low, high, features) of each bin of log10 density; the first, without bounds, is of silent features.

    What is rarer than the lowest bin counts in it.
    """
    n_bins = round(-HISTOGRAM_LOWEST / HISTOGRAM_WIDTH)
    place = (density[density > 0].log10() - HISTOGRAM_LOWEST) / HISTOGRAM_WIDTH
    counts = torch.bincount(place.floor().long().clamp(0, n_bins - 1), minlength=n_bins)
    edges = [HISTOGRAM_LOWEST + HISTOGRAM_WIDTH * i for i in range(n_bins + 1)]
    silent = int((density == 0).sum())
    return [(None, None, silent), *zip(edges[:-1], edges[1:], counts.tolist(), strict=True)]


@dataclass(frozen=True)
class PredictionTargets:
    """The predictions that count: from where, and of what."""

    source: Int[Tensor, " prediction"]
    """Number of the position in the flattened batch [sequence * position]."""
    token: Int[Tensor, " prediction"]
    """The token that follows."""


def targets(
    token: Int[Tensor, "sequence position"], scored: Bool[Tensor, "sequence position"]
) -> PredictionTargets:
    """Predictions from every scored position that has a next token."""
    sequence, position = scored[:, :-1].nonzero(as_tuple=True)
    return PredictionTargets(sequence * token.shape[1] + position, token[sequence, position + 1])


def log_probabilities(
    logits: Float[Tensor, "sequence position vocabulary"], which: PredictionTargets
) -> Float[Tensor, "prediction vocabulary"]:
    """Log-probabilities of the next token at the predictions that count, float32."""
    return logits.flatten(0, 1)[which.source].float().log_softmax(-1)


@dataclass(frozen=True)
class PredictionSums(MetricSums):
    """What CE and KL are computed from."""

    n: int
    """Predictions."""
    surprise: Float64[Tensor, ""]
    """Sum of -log p(next token), nats."""
    divergence: Float64[Tensor, ""]
    """Sum of KL(original || this), nats."""

    @property
    def ce(self) -> float:
        """Cross-entropy, nats a prediction."""
        return float(self.surprise) / self.n

    @property
    def kl(self) -> float:
        """KL(original || this), nats a prediction."""
        return float(self.divergence) / self.n


def prediction_sums(
    logits: Float[Tensor, "sequence position vocabulary"],
    which: PredictionTargets,
    original: Float[Tensor, "prediction vocabulary"] | None = None,
) -> PredictionSums:
    """The sums over one batch; `original`: the untouched model's log-probabilities, without which KL is 0."""
    surprise = torch.zeros((), dtype=torch.float64, device=logits.device)
    divergence = torch.zeros_like(surprise)
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    for start in range(0, len(which.source), rows):
        chunk = PredictionTargets(which.source[start : start + rows], which.token[start : start + rows])
        log_p = log_probabilities(logits, chunk)
        surprise -= log_p.gather(1, chunk.token[:, None]).sum(dtype=torch.float64)
        if original is not None:
            terms = F.kl_div(log_p, original[start : start + rows], log_target=True, reduction="none")
            divergence += terms.sum(-1).sum(dtype=torch.float64)
    return PredictionSums(len(which.source), surprise, divergence)


def recovered(ce: float, ce_original: float, ce_ablated: float) -> float:
    """(ce_ablated - ce) / (ce_ablated - ce_original): 1 is as good as untouched, 0 no better than ablated.

    NaN where the ablation changes nothing.
    """
    damage = ce_ablated - ce_original
    return (ce_ablated - ce) / damage if damage else float("nan")
