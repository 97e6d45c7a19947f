"""Rows of the tables `metric` and `density_histogram`, from scores and the rows of the table `baseline`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from ..core.layout import ALL_LAYERS
from ..core.progress import announce
from ..core.tables import read_table
from ..dictionaries.cross_layer import CrossLayerDictionary, CrossLayerTranscoder, LayerDictionary
from ..dictionaries.dictionary import Dictionary
from ..language_model.batches import Batch
from ..language_model.hooks import Site
from ..language_model.model import LanguageModel
from .cross_layer import OneOutput
from .held_out import HeldOut
from .metrics import ce_recovered, density_histogram
from .replacement import NormBounds
from .scoring import RunScore, ScoredRun, score_runs


class BaselineKey(NamedTuple):
    """Key of a BASELINE row."""

    site: str
    reads: str
    layer: int
    """-1: all layers are ablated at once."""


class ScoreRows(NamedTuple):
    """Rows of one run at one layer, or at all layers together."""

    metric: dict[str, Any]
    """METRIC row."""
    histogram: list[dict[str, Any]]
    """DENSITY_HISTOGRAM rows. Empty for layer -1."""


def score_rows(
    model: LanguageModel,
    dictionaries: Mapping[tuple[str, int], LayerDictionary],
    keys: Sequence[tuple[str, int]],
    baselines: Mapping[BaselineKey, Mapping[str, Any]],
    held_out: HeldOut,
    batch: Batch,
) -> dict[tuple[str, int], ScoreRows]:
    """Returns the rows of each (run, layer) in `keys`. Layer -1 means that all layers are replaced at once.

    `dictionaries` has the dictionaries of these runs, and those of all layers of a cross-layer transcoder. In the row
    of one of its layers, only this layer's output is replaced, and all features read the original model. `baselines` is
    from `read_baselines`.
    """
    transcoders = _transcoders(dictionaries)
    replaced: dict[tuple[str, int], ScoredRun] = {}
    for run, layer in keys:
        if run in transcoders:
            transcoder = transcoders[run]
            replaced[run, layer] = transcoder if layer == ALL_LAYERS else OneOutput(transcoder, layer)
        else:
            replaced[run, layer] = {
                each: dictionary
                for (owner, each), dictionary in dictionaries.items()
                if owner == run and layer in (each, ALL_LAYERS) and isinstance(dictionary, Dictionary)
            }
    # the sites of a run are those of any of its dictionaries
    some = {run: dictionary for (run, _), dictionary in dictionaries.items()}
    own = {(run, layer): _baseline_key(some[run], layer) for run, layer in keys}
    dropped = any(row["norm_bound_y"] is not None for row in baselines.values())
    # the tokens that are left out depend on the input, so that runs of one input are scored together
    inputs = sorted({key.reads for key in own.values()}) if dropped else [None]
    scores: dict[tuple[str, int], RunScore] = {}
    for reads in inputs:
        rows = {
            Site(site, layer): row
            for (site, own_reads, layer), row in baselines.items()
            if layer != ALL_LAYERS and reads in (None, own_reads)
        }
        means = {site: torch.tensor(row["mean"], dtype=torch.float64) for site, row in rows.items()}
        bounds = {
            site: NormBounds(row["norm_bound_x"] or math.inf, row["norm_bound_y"], row["reads"])
            for site, row in rows.items()
            if row["norm_bound_y"] is not None
        }
        runs = {key: layers for key, layers in replaced.items() if reads in (None, own[key].reads)}
        scores |= score_runs(model, runs, held_out, batch, means, bounds)
    result = {}
    for (run, layer), key in own.items():
        score = scores[run, layer]
        histogram = [] if layer == ALL_LAYERS else list(histogram_rows(run, layer, score))
        result[run, layer] = ScoreRows(metric_row(run, layer, score, baselines[key]), histogram)
    if dropped:
        most = max(row.metric["n_left_out"] for row in result.values())
        text = f"at most {most} of {held_out.n_tokens} tokens of a layer were left out (activations.outliers)"
        announce("evaluation", text)
    return result


def _transcoders(dictionaries: Mapping[tuple[str, int], LayerDictionary]) -> dict[str, CrossLayerTranscoder]:
    """Returns the cross-layer transcoders among the runs."""
    layers: dict[str, list[CrossLayerDictionary]] = {}
    for (run, _), dictionary in dictionaries.items():
        if isinstance(dictionary, CrossLayerDictionary):
            layers.setdefault(run, []).append(dictionary)
    return {run: CrossLayerTranscoder(members) for run, members in layers.items()}


def _baseline_key(dictionary: LayerDictionary, layer: int) -> BaselineKey:
    """Returns the key of the row with which a dictionary is compared, at `layer`."""
    return BaselineKey(
        dictionary.site_out, dictionary.site_in if dictionary.is_transcoder else "mlp_in", layer
    )


def metric_row(run: str, layer: int, score: RunScore, baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a METRIC row. `baseline` is the BASELINE row of the same site, input and layer.

    Layer -1 means that all layers are spliced at once. The metrics of reconstruction and sparsity are then means over
    layers.
    """
    reconstruction, firing = score.reconstruction.values(), score.firing.values()
    names = ("fvu", "mse", "cosine", "norm_ratio", "relative_bias")
    ce = score.prediction.ce
    return {
        "run": run,
        "layer": layer,
        "l0": fmean(sums.l0 for sums in firing),
        **{name: fmean(getattr(sums, name) for sums in reconstruction) for name in names},
        "fvu_median": fmean(score.fvu_median.values()),
        "ce": ce,
        **{name: baseline[name] for name in ("ce_original", "ce_zero", "ce_mean", "kl_zero", "kl_mean")},
        "ce_recovered_zero": ce_recovered(ce, baseline["ce_original"], baseline["ce_zero"]),
        "ce_recovered_mean": ce_recovered(ce, baseline["ce_original"], baseline["ce_mean"]),
        "delta_ce": ce - baseline["ce_original"],
        "kl": score.prediction.kl,
        "alive": fmean(sums.alive for sums in firing),
        "density_over_1_percent": fmean(sums.fraction_denser_than(0.01) for sums in firing),
        "density_over_10_percent": fmean(sums.fraction_denser_than(0.1) for sums in firing),
        "n_tokens": next(iter(reconstruction)).n,
        "n_left_out": baseline["n_tokens"] - next(iter(reconstruction)).n,
    }


def histogram_rows(run: str, layer: int, score: RunScore) -> Iterator[dict[str, Any]]:
    """Yield the DENSITY_HISTOGRAM rows of one layer."""
    for number, (low, high, n_features) in enumerate(density_histogram(score.firing[layer].density)):
        yield {"run": run, "layer": layer, "bin": number, "low": low, "high": high, "n_features": n_features}


def read_baselines(paths: Iterable[Path | str]) -> dict[BaselineKey, Mapping[str, Any]]:
    """Returns rows[site, reads, layer] of the BASELINE tables in `paths`."""
    rows = (row for path in paths for row in read_table(path).to_pylist())
    return {BaselineKey(row["site"], row["reads"], row["layer"]): row for row in rows}
