"""Dictionaries in place of what they reconstruct, on held-out tokens: rows of metric and histogram tables."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel, Site
from ..progress import progress
from ..tables import read_table
from .held_out import HeldOut
from .metrics import (
    FiringSums,
    PredictionSums,
    ReconstructionSums,
    accumulate,
    density_histogram,
    log_probabilities,
    prediction_sums,
    recovered,
    targets,
)
from .splicing import Substitute, splicing


@dataclass(frozen=True)
class Score:
    """The sums over the held-out tokens of one run: of its dictionaries by layer, and of the predictions."""

    reconstruction: dict[int, ReconstructionSums]
    firing: dict[int, FiringSums]
    prediction: PredictionSums


@torch.inference_mode()
def score(
    model: LanguageModel, runs: Mapping[str, Mapping[int, Dictionary]], held_out: HeldOut, batch: int
) -> dict[str, Score]:
    """Score each run with its dictionaries (by layer) in place, all of a run's layers at once.

    The untouched model runs once a batch of `batch` sequences, for all runs; each run once more.
    """
    substitutes = {run: {layer: Substitute(d) for layer, d in layers.items()} for run, layers in runs.items()}
    predictions: dict[str, PredictionSums] = {}
    with progress(f"evaluation: {', '.join(runs)}", held_out.token.numel() * len(runs), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            which = targets(part.token, part.scored)
            original = log_probabilities(model.logits(part.token), which)
            for run, layers in substitutes.items():
                sites = {Site(each.dictionary.site_out, layer): each for layer, each in layers.items()}
                with splicing(model, sites, part):
                    accumulate(predictions, run, prediction_sums(model.logits(part.token), which, original))
                bar.update(part.token.numel())
    return {run: _score(layers, predictions[run]) for run, layers in substitutes.items()}


def _score(substitutes: Mapping[int, Substitute], prediction: PredictionSums) -> Score:
    return Score(
        {layer: each.reconstruction for layer, each in substitutes.items()},
        {layer: each.firing for layer, each in substitutes.items()},
        prediction,
    )


def metric_row(run: str, layer: int, scored: Score, baseline: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the metric table; `baseline` is the row of the same site and layer.

    With several layers replaced (layer -1) figures of the reconstruction are means over layers, each taken
    on the inputs of the model whose other layers are replaced too.
    """
    reconstruction, firing = scored.reconstruction.values(), scored.firing.values()
    agreement = ("fvu", "mse", "cosine", "norm_ratio", "relative_bias")
    ce = scored.prediction.ce
    return {
        "run": run,
        "layer": layer,
        "l0": fmean(sums.l0 for sums in firing),
        **{name: fmean(getattr(sums, name) for sums in reconstruction) for name in agreement},
        "ce": ce,
        **{name: baseline[name] for name in ("ce_original", "ce_zero", "ce_mean", "kl_zero", "kl_mean")},
        "ce_recovered_zero": recovered(ce, baseline["ce_original"], baseline["ce_zero"]),
        "ce_recovered_mean": recovered(ce, baseline["ce_original"], baseline["ce_mean"]),
        "delta_ce": ce - baseline["ce_original"],
        "kl": scored.prediction.kl,
        "alive": fmean(sums.alive for sums in firing),
        "density_over_1_percent": fmean(sums.share_over(0.01) for sums in firing),
        "density_over_10_percent": fmean(sums.share_over(0.1) for sums in firing),
        "n_tokens": next(iter(reconstruction)).n,
    }


def histogram_rows(run: str, layer: int, scored: Score) -> Iterator[dict[str, Any]]:
    """The rows of the histogram of one layer's densities."""
    for number, (low, high, n_features) in enumerate(density_histogram(scored.firing[layer].density)):
        yield {"run": run, "layer": layer, "bin": number, "low": low, "high": high, "n_features": n_features}


def read_baselines(paths: Iterable[Path | str]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The rows of baseline tables, by site and layer (-1: all layers)."""
    rows = (row for path in paths for row in read_table(path).to_pylist())
    return {(row["site"], row["layer"]): row for row in rows}
