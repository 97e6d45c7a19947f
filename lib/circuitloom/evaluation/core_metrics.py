"""The core metrics of SAEBench (Karvonen et al. 2025) for dictionaries of any kind, under SAEBench's names.

Metrics of reconstruction and sparsity are measured here, on the original model. Metrics of the model with the
reconstruction in place are those of the table `metric`. docs/dictionary_benchmark.md lists where definitions differ.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..core.progress import progress
from ..dictionaries.cross_layer import CrossLayerDictionary, CrossLayerTranscoder, LayerDictionary
from ..dictionaries.dictionary import Dictionary
from ..language_model.batches import Batch
from ..language_model.hooks import Site, capture
from ..language_model.model import LanguageModel
from .cross_layer import OriginalReconstruction
from .held_out import HeldOut, passes
from .metrics import FiringSums, MetricSums, ReconstructionSums, firing_sums, reconstruction_sums
from .replacement import ENCODE_ELEMENTS
from .stability import mean_largest_cosine


@dataclass(frozen=True)
class CoreSums(MetricSums):
    """Sums over tokens of one dictionary. y is the activation that is reconstructed."""

    reconstruction: ReconstructionSums
    firing: FiringSums
    l1: Float64[Tensor, ""]
    norm: Float64[Tensor, ""]
    norm_hat: Float64[Tensor, ""]


class CoreMetric(NamedTuple):
    """A metric under SAEBench's name."""

    name: str
    value: float
    unit: str


def core_sums(
    y: Float[Tensor, "token d_out"],
    y_hat: Float[Tensor, "token d_out"],
    feature: Tensor,
    value: Tensor,
    width: int,
) -> CoreSums:
    """Returns the sums over a batch. `feature` and `value` are the non-zero activations."""
    return CoreSums(
        reconstruction_sums(y, y_hat),
        firing_sums(feature, width, len(y)),
        value.sum(dtype=torch.float64),
        torch.linalg.vector_norm(y, dim=1).sum(dtype=torch.float64),
        torch.linalg.vector_norm(y_hat, dim=1).sum(dtype=torch.float64),
    )


@torch.inference_mode()
def measure_core(
    model: LanguageModel,
    runs: Mapping[str, Mapping[int, LayerDictionary]],
    held_out: HeldOut,
    batch: Batch,
) -> dict[tuple[str, int], CoreSums]:
    """Returns the sums of each (run, layer), over the scored tokens, in one pass of the original model.

    `runs` has all layers of a cross-layer transcoder. Raises ValueError if an activation is not finite.
    """
    sites = sorted(
        {
            Site(site, layer)
            for layers in runs.values()
            for layer, each in layers.items()
            for site in (each.site_in, each.site_out)
        }
    )
    across = {
        run: OriginalReconstruction(CrossLayerTranscoder(_members(layers)))
        for run, layers in runs.items()
        if any(isinstance(each, CrossLayerDictionary) for each in layers.values())
    }
    sums: dict[tuple[str, int], CoreSums] = {}
    with progress("benchmark: core metrics", held_out.token.numel(), "tokens") as bar:
        for part in passes(held_out, model, batch):
            with ExitStack() as stack:
                for each in across.values():
                    stack.enter_context(each.reading(model, part))
                captured = capture(model, part.token, sites)
            values = {site: value[part.scored].float() for site, value in captured.items()}
            for run, layers in runs.items():
                for layer, each in layers.items():
                    x, y = values[Site(each.site_in, layer)], values[Site(each.site_out, layer)]
                    if isinstance(each, Dictionary):
                        found = _batch_sums(each, x, y)
                    else:
                        feature, value = _activations(each, x)
                        found = core_sums(y, across[run].result[layer][0], feature, value, each.width)
                    sums[run, layer] = sums[run, layer] + found if (run, layer) in sums else found
            bar.update(part.token.numel())
    for (run, layer), found in sums.items():
        model.check_finite(found.reconstruction.error_squared, f"{run}, layer {layer}: the reconstruction")
    return sums


def _members(layers: Mapping[int, LayerDictionary]) -> Iterator[CrossLayerDictionary]:
    return (each for each in layers.values() if isinstance(each, CrossLayerDictionary))


def _batch_sums(dictionary: Dictionary, x: Tensor, y: Tensor) -> CoreSums:
    total = None
    # pre-activations of all features exist for some tokens at a time
    size = max(1, ENCODE_ELEMENTS // dictionary.width)
    for own_x, own_y in zip(x.split(size), y.split(size), strict=True):
        token, feature, value = dictionary.encode_sparse(own_x)
        y_hat = dictionary.decode_sparse(token, feature, value, own_x)
        found = core_sums(own_y, y_hat, feature, value, dictionary.width)
        total = found if total is None else total + found
    assert total is not None
    return total


def _activations(dictionary: CrossLayerDictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (feature, value) of the non-zero activations."""
    parts = [dictionary.encode_sparse(own) for own in x.split(max(1, ENCODE_ELEMENTS // dictionary.width))]
    return torch.cat([feature for _, feature, _ in parts]), torch.cat([value for *_, value in parts])


def core_metrics(
    dictionary: LayerDictionary, sums: CoreSums, metric: Mapping[str, Any] | None
) -> list[CoreMetric]:
    """Returns the metrics of one dictionary. `metric` is its METRIC row. Without it, metrics of the model with the
    reconstruction in place are left out. A metric that is 0 / 0 is NaN."""
    n, reconstruction, firing = sums.firing.n, sums.reconstruction, sums.firing
    density = firing.density
    share, cosine, per_token = "share", "cosine", "features per token"
    found = [
        CoreMetric("l0", firing.l0, per_token),
        CoreMetric("l1", float(sums.l1) / n, "sum of activations per token"),
        CoreMetric("explained_variance", 1 - reconstruction.fvu, share),
        CoreMetric("saebench_explained_variance", saebench_explained_variance(reconstruction), share),
        CoreMetric("mse", reconstruction.mse, "squared norm per token"),
        CoreMetric("cossim", reconstruction.cosine, cosine),
        CoreMetric("l2_norm_in", float(sums.norm) / n, "norm per token"),
        CoreMetric("l2_norm_out", float(sums.norm_hat) / n, "norm per token"),
        CoreMetric("l2_ratio", reconstruction.norm_ratio, "ratio"),
        CoreMetric("relative_reconstruction_bias", reconstruction.relative_bias, "ratio"),
        CoreMetric("frac_alive", firing.alive, share),
        CoreMetric("freq_over_1_percent", firing.fraction_denser_than(0.01), share),
        CoreMetric("freq_over_10_percent", firing.fraction_denser_than(0.1), share),
        CoreMetric("normalized_freq_over_1_percent", _share_of_firing(density, 0.01), share),
        CoreMetric("normalized_freq_over_10_percent", _share_of_firing(density, 0.1), share),
        CoreMetric("average_max_encoder_cosine_sim", mean_largest_cosine(dictionary.W_enc), cosine),
    ]
    decoder = dictionary.decoder(dictionary.outputs[0])
    found.append(CoreMetric("average_max_decoder_cosine_sim", mean_largest_cosine(decoder), cosine))
    if metric is None:
        return found
    nats = "nats per token"
    return [
        *found,
        CoreMetric("ce_loss_without_sae", metric["ce_original"], nats),
        CoreMetric("ce_loss_with_sae", metric["ce"], nats),
        CoreMetric("ce_loss_with_ablation", metric["ce_zero"], nats),
        CoreMetric("ce_loss_score", metric["ce_recovered_zero"], share),
        CoreMetric("kl_div_with_sae", metric["kl"], nats),
        CoreMetric("kl_div_with_ablation", metric["kl_zero"], nats),
        CoreMetric(
            "kl_div_score", 1 - metric["kl"] / metric["kl_zero"] if metric["kl_zero"] else math.nan, share
        ),
    ]


def saebench_explained_variance(sums: ReconstructionSums) -> float:
    """Returns the explained variance as SAEBench 0.6.0 computes it, if all tokens are one batch.

    Its variance is E|y|^2 - (E|y|^2 / d)^2: the square of the mean of all squares is subtracted, instead of the squared
    norm of the mean. The value depends on the scale of y.
    """
    square = float(sums.y_squared) / sums.n
    return 1 - sums.mse / (square - (square / len(sums.y)) ** 2)


def _share_of_firing(density: Float64[Tensor, " feature"], least: float) -> float:
    """Returns the share of all firings that are of features denser than `least`. 0 if no feature fires."""
    total = float(density.sum())
    return float(density[density > least].sum()) / total if total else 0.0
