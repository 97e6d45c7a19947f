"""Computes metrics of reconstruction, sparsity and next-token prediction.

Each metric is a property of an object with float64 sums over tokens. Sums of several batches are added before a metric
is computed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from ..language_model.lm_head import LMHead, NextTokenScores

S = TypeVar("S", bound="MetricSums")
A = TypeVar("A", "ReconstructionSums", "PredictionSums", Tensor)
K = TypeVar("K")

CHUNK_ELEMENTS = 2**20
"""Number of log-probabilities computed at once on a CPU. This number of values fits into the cache."""
CHUNK_ROWS = 128
"""Least number of predictions per chunk. With fewer, reading the unembedding takes longer than multiplying by it."""

HISTOGRAM_LOWEST, HISTOGRAM_WIDTH = -7.0, 0.25
"""Lowest edge and bin width of histograms of log10 density. All dictionaries have the same bins."""


@dataclass(frozen=True)
class MetricSums:
    """Sums over tokens. Adding two objects gives the sums over the tokens of both objects."""

    def __add__(self: S, other: S) -> S:
        """Returns the sum of both objects, field by field."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return type(self)(*(mine + yours for mine, yours in pairs))


def accumulate(totals: dict[K, A], key: K, part: A) -> None:
    """Add `part` to `totals[key]`. If the key does not exist, set `totals[key]` to `part`."""
    totals[key] = totals[key] + part if key in totals else part


@dataclass(frozen=True)
class ReconstructionSums(MetricSums):
    """Sums for the metrics of reconstruction. y is an activation, and y_hat is its reconstruction."""

    n: int
    """Number of tokens."""
    y: Float64[Tensor, " out"]
    y_squared: Float64[Tensor, ""]
    y_hat_squared: Float64[Tensor, ""]
    error_squared: Float64[Tensor, ""]
    product: Float64[Tensor, ""]
    """Sum of the dot products y . y_hat."""
    cosines: Float64[Tensor, ""]
    norm_ratios: Float64[Tensor, ""]

    @property
    def mse(self) -> float:
        """Mean squared error, E|y - y_hat|^2, summed over dimensions. At least 0."""
        return float(self.error_squared) / self.n

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained, E|y - y_hat|^2 / E|y - E y|^2. At least 0. Predicting the mean gives 1."""
        return float(self.error_squared / (self.y_squared - self.y.square().sum() / self.n))

    @property
    def cosine(self) -> float:
        """Mean cosine similarity, E[y . y_hat / (|y| |y_hat|)]. Between -1 and 1.

        If y or y_hat is a zero vector, the similarity counts as 0.
        """
        return float(self.cosines) / self.n

    @property
    def norm_ratio(self) -> float:
        """Mean norm ratio, E[|y_hat| / |y|]. At least 0. A value less than 1 means shrinkage."""
        return float(self.norm_ratios) / self.n

    @property
    def relative_bias(self) -> float:
        """Relative bias, E|y_hat|^2 / E[y . y_hat] (Rajamanoharan et al. 2024).

        1 means that there is no bias. A value less than 1 means shrinkage.
        """
        return float(self.y_hat_squared / self.product)


def reconstruction_sums(
    y: Float[Tensor, "token out"], y_hat: Float[Tensor, "token out"]
) -> ReconstructionSums:
    """Returns the sums over a batch of tokens. The sums of several batches can be added.

    >>> reconstruction_sums(y, dictionary(x)).fvu
    """
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


def fractions_unexplained(
    y: Float[Tensor, "token out"], y_hat: Float[Tensor, "token out"], mean: Float[Tensor, " out"]
) -> Float[Tensor, " token"]:
    """Returns |y - y_hat|^2 / |y - mean|^2 of each token. Predicting the mean gives 1 on every token.

    FVU is the mean of these fractions with the weights |y - mean|^2, so a token of very large norm can be all of it.
    Their median weights all tokens equally.
    """
    deviation = (y - mean.to(y)).square().sum(1)
    # a token that equals the mean is explained if the reconstruction equals it too
    return (y - y_hat).square().sum(1) / deviation.clamp_min(torch.finfo(y.dtype).tiny)


@dataclass(frozen=True)
class FiringSums(MetricSums):
    """Counts for the metrics of sparsity."""

    n: int
    """Number of tokens."""
    fires: Int64[Tensor, " feature"]
    """Number of tokens on which each feature is active (non-zero)."""

    @property
    def l0(self) -> float:
        """L0, the mean number of active features per token. Between 0 and the number of features."""
        return float(self.fires.sum()) / self.n

    @property
    def density(self) -> Float64[Tensor, " feature"]:
        """Density of each feature, the fraction of tokens on which the feature fires. Between 0 and 1."""
        return self.fires.double() / self.n

    @property
    def alive(self) -> float:
        """Fraction of features that fire on at least one token. Between 0 and 1."""
        return self.fraction_denser_than(0.0)

    def fraction_denser_than(self, density: float) -> float:
        """Returns the fraction of features whose density is greater than `density`. Between 0 and 1."""
        return float((self.density > density).double().mean())


def firing_sums(feature: Int[Tensor, " entry"], width: int, n_tokens: int) -> FiringSums:
    """Returns the counts over a batch. `feature` contains the feature index of each non-zero activation."""
    return FiringSums(n_tokens, torch.bincount(feature, minlength=width))


def density_histogram(
    density: Float[Tensor, " feature"],
) -> list[tuple[float | None, float | None, int]]:
    """Returns (low, high, number of features) for each bin of log10 density.

    The first bin has the edges None and counts the features that never fire. The second bin starts at
    `HISTOGRAM_LOWEST`, but also counts lower non-zero densities.
    """
    n_bins = round(-HISTOGRAM_LOWEST / HISTOGRAM_WIDTH)
    bins = (density[density > 0].log10() - HISTOGRAM_LOWEST) / HISTOGRAM_WIDTH
    counts = torch.bincount(bins.floor().long().clamp(0, n_bins - 1), minlength=n_bins)
    edges = [HISTOGRAM_LOWEST + HISTOGRAM_WIDTH * i for i in range(n_bins + 1)]
    dead = int((density == 0).sum())
    return [(None, None, dead), *zip(edges[:-1], edges[1:], counts.tolist(), strict=True)]


@dataclass(frozen=True)
class PredictionTargets:
    """Next-token predictions that are scored."""

    source: Int[Tensor, " prediction"]
    """Index of each predicting position in the flattened batch, [sequence * position]."""
    token: Int[Tensor, " prediction"]
    """Id of the next token."""


def prediction_targets(
    token: Int[Tensor, "sequence position"], scored: Bool[Tensor, "sequence position"]
) -> PredictionTargets:
    """Returns one prediction for each scored position that has a next token."""
    sequence, position = scored[:, :-1].nonzero(as_tuple=True)
    return PredictionTargets(sequence * token.shape[1] + position, token[sequence, position + 1])


def log_probabilities(
    logits: Float[Tensor, "sequence position vocabulary"], targets: PredictionTargets
) -> Float[Tensor, "prediction vocabulary"]:
    """Returns the float32 log-probabilities of the complete vocabulary for each prediction in `targets`."""
    return logits.flatten(0, 1)[targets.source].float().log_softmax(-1)


@dataclass(frozen=True)
class PredictionSums(MetricSums):
    """Sums for the metrics of next-token prediction."""

    n: int
    """Number of predictions."""
    nll: Float64[Tensor, ""]
    """Sum of -log p(next token), in nats."""
    divergence: Float64[Tensor, ""]
    """Sum of KL(original || model), in nats."""

    @property
    def ce(self) -> float:
        """Cross-entropy, E[-log p(next token)], in nats per prediction. At least 0."""
        return float(self.nll) / self.n

    @property
    def kl(self) -> float:
        """Mean KL(original || model), in nats per prediction. At least 0."""
        return float(self.divergence) / self.n


def prediction_sums(
    logits: Float[Tensor, "sequence position vocabulary"],
    targets: PredictionTargets,
    original: Float[Tensor, "prediction vocabulary"] | None = None,
) -> PredictionSums:
    """Returns the sums over the predictions `targets` of a batch.

    `original` contains the log-probabilities of the original model. If `original` is None, the KL is 0.

    >>> from circuitloom.evaluation.metrics import prediction_targets
    >>> targets = prediction_targets(held_out.token, held_out.scored)
    >>> prediction_sums(model.logits(held_out.token), targets).ce
    """
    sums = _no_predictions(logits.device)
    for chunk in _chunks(len(targets.source), logits.shape[-1], logits.device):
        part = PredictionTargets(targets.source[chunk], targets.token[chunk])
        reference = None if original is None else (original[chunk], original[chunk].exp())
        sums += _chunk_sums(log_probabilities(logits, part), part.token, reference)
    return sums


def compare_predictions(
    hidden: Mapping[K, Float[Tensor, "prediction d"]],
    head: LMHead,
    token: Int[Tensor, " prediction"],
    original: K,
    update: Callable[[float], object] = lambda _share: None,
) -> dict[K, PredictionSums]:
    """Returns the sums of several models over the same predictions. The KL is that from `hidden[original]`.

    `hidden` maps each model to the unembedding's input at each prediction, and `token` has the id of each next token.
    Logits are computed in blocks (`LMHead`), so that no array [prediction, vocabulary] exists. `update` is called with
    the share of the work that each block was. These shares add up to 1.
    """
    sums = dict.fromkeys(hidden, _no_predictions(token.device))
    others = [key for key in hidden if key != original]
    for rows in head.row_blocks(len(token), token.device):
        scores = {key: NextTokenScores(token[rows]) for key in hidden}
        # sums of p (log p - log q), without the normalizations of p and q
        products = {key: torch.zeros_like(scores[key].total) for key in others}
        for tokens in head.token_blocks(len(token[rows]), token.device):
            reference = head.logits(hidden[original][rows], tokens).float()
            p, factor = scores[original].add(reference.clone() if others else reference, tokens)
            for key in others:
                logits = head.logits(hidden[key][rows], tokens).float()
                products[key] = products[key] * factor + (reference - logits).mul_(p).sum(1)
                scores[key].add(logits, tokens)
            update(len(token[rows]) / len(token) * (tokens.stop - tokens.start) / head.vocabulary)
        before = scores[original]
        for key in hidden:
            divergence = torch.zeros_like(before.total)
            if key != original:
                divergence = products[key] / before.total - before.log_sum + scores[key].log_sum
            sums[key] += PredictionSums(len(token[rows]), scores[key].loss.sum(), divergence.sum())
    return sums


def _no_predictions(device: torch.device) -> PredictionSums:
    return PredictionSums(0, *torch.zeros(2, dtype=torch.float64, device=device))


def _chunks(n: int, vocabulary: int, device: torch.device) -> list[slice]:
    # a GPU needs larger chunks to be busy
    elements = CHUNK_ELEMENTS if device.type == "cpu" else 64 * CHUNK_ELEMENTS
    rows = max(CHUNK_ROWS, elements // vocabulary)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _chunk_sums(
    log_p: Float[Tensor, "prediction vocabulary"],
    token: Int[Tensor, " prediction"],
    original: tuple[Float[Tensor, "prediction vocabulary"], Float[Tensor, "prediction vocabulary"]] | None,
) -> PredictionSums:
    """Returns the sums of some predictions. `original` is (log p, p) of the original model."""
    nll = -log_p.gather(1, token[:, None]).sum(dtype=torch.float64)
    if original is None:
        return PredictionSums(len(token), nll, torch.zeros_like(nll))
    terms = (original[0] - log_p).mul_(original[1])
    return PredictionSums(len(token), nll, terms.sum(-1).sum(dtype=torch.float64))


def ce_recovered(ce: float, ce_original: float, ce_ablated: float) -> float:
    """Returns the CE recovered, (ce_ablated - ce) / (ce_ablated - ce_original).

    1 means as good as the original model. 0 means as bad as the ablated model. NaN if ce_ablated equals ce_original.
    """
    increase = ce_ablated - ce_original
    return (ce_ablated - ce) / increase if increase else float("nan")
