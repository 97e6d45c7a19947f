"""Running a language model with a reconstruction, or an ablation, in place of what a site holds. What every
dictionary is measured against: the untouched model, and the model with a site ablated. Dictionaries in place of
what they reconstruct, on held-out tokens: rows of metric and histogram tables."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..config.evaluation import Evaluation
from ..core.progress import progress
from ..core.tables import read_table
from ..dictionaries.dictionary import Dictionary
from ..language_model.hooks import Site, capture, edited
from ..language_model.model import LanguageModel
from .held_out import HeldOut
from .metrics import (
    FiringSums,
    PredictionSums,
    ReconstructionSums,
    accumulate,
    ce_recovered,
    density_histogram,
    firing_sums,
    log_probabilities,
    prediction_sums,
    prediction_targets,
    reconstruction_sums,
)
from .names import ALL_LAYERS

StandIn = Callable[[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]], Float[Tensor, "token d_out"]]
"""(MLP input, value of the site), both of the scored tokens and float32, to what stands in for the value.

At a site other than `mlp_out` the first argument is the value itself.
"""


@contextmanager
def splicing(model: LanguageModel, stand_ins: Mapping[Site, StandIn], batch: HeldOut) -> Iterator[None]:
    """Within the context, `batch` run through `model` has each site's stand-in in place of its value.

    The original stays where `batch.kept` says so. With several layers, each stand-in sees the inputs of the
    model whose earlier layers are already replaced. `batch` lies on the model's device.
    """
    with edited(model, {site: _at_scored(stand_in, batch) for site, stand_in in stand_ins.items()}):
        yield


def _at_scored(stand_in: StandIn, batch: HeldOut) -> Callable[[Tensor, Tensor], Tensor]:
    def splice(x: Tensor, y: Tensor) -> Tensor:
        spliced = y.clone()
        spliced[batch.scored] = stand_in(x[batch.scored].float(), y[batch.scored].float()).to(y.dtype)
        return torch.where(batch.kept[..., None], y, spliced)

    return splice


def constant(value: Float[Tensor, " d_out"]) -> StandIn:
    """The same value for every token: zero or the mean, in ablations."""
    return lambda _x, y: value.to(y).expand_as(y)


class Substitute:
    """A dictionary as a stand-in, which sums up how well it reconstructs what it stands in for.

    Raises ValueError where the dictionary reads one site and writes another, and they are not the MLP's two.
    """

    reconstruction: ReconstructionSums
    """Sums over the tokens so far."""
    firing: FiringSums
    """Counts over the tokens so far."""

    def __init__(self, dictionary: Dictionary) -> None:
        """Nothing is summed up yet."""
        if not (dictionary.is_sae or dictionary.is_transcoder):
            raise ValueError(
                f"a dictionary from {dictionary.site_in} to {dictionary.site_out} stands in for nothing; train another"
            )
        self.dictionary = dictionary
        nothing = dictionary.b_dec.new_zeros(0, dictionary.d_out)
        self.reconstruction = reconstruction_sums(nothing, nothing)
        self.firing = firing_sums(nothing.new_zeros(0, dtype=torch.int64), dictionary.width, 0)

    def __call__(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """The reconstruction of y, from x (transcoder) or from y itself (SAE)."""
        y_hat, firing = reconstruct(self.dictionary, self.dictionary.encoder_input(x, y))
        self.reconstruction += reconstruction_sums(y, y_hat)
        self.firing += firing
        return y_hat


def reconstruct(
    dictionary: Dictionary, x: Float[Tensor, "token d_in"]
) -> tuple[Float[Tensor, "token d_out"], FiringSums]:
    """Reconstruction of a batch, and how often each feature fired in it; only active features are decoded."""
    token, feature, value = dictionary.encode_sparse(x)
    y_hat = dictionary.decode_sparse(token, feature, value, x)
    return y_hat, firing_sums(feature, dictionary.width, len(x))


@torch.inference_mode()
def site_means(
    model: LanguageModel, sites: Sequence[Site], held_out: HeldOut, batch: int
) -> dict[Site, Float64[Tensor, " d"]]:
    """Mean of each site over the scored positions, in the untouched model."""
    sums: dict[Site, Tensor] = {}
    label = f"evaluation: means of {', '.join(sorted({site.name for site in sites}))}"
    with progress(label, held_out.token.numel(), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            for site, value in capture(model, part.token, sites).items():
                accumulate(sums, site, value[part.scored].sum(0, dtype=torch.float64))
            bar.update(part.token.numel())
    return {site: total / held_out.n_tokens for site, total in sums.items()}


@torch.inference_mode()
def baseline_rows(
    model: LanguageModel, site: str, layers: Sequence[int], held_out: HeldOut, config: Evaluation
) -> list[dict[str, Any]]:
    """The baseline table's rows for `site` of each of `layers`, and for the MLPs of all of them at once."""
    sites = [Site(site, layer) for layer in layers]
    ablated = {layer: [place] for layer, place in zip(layers, sites, strict=True)}
    if config.together and site == "mlp_out" and len(layers) > 1:
        ablated[ALL_LAYERS] = sites
    means = site_means(model, sites, held_out, config.batch)
    values = {"zero": {place: torch.zeros_like(mean) for place, mean in means.items()}, "mean": means}
    stand_ins = {
        (layer, kind): {place: constant(value[place]) for place in places}
        for layer, places in ablated.items()
        for kind, value in values.items()
    }
    untouched, sums = _ablate(model, stand_ins, held_out, config.batch, f"evaluation: {site} ablated")
    return [
        {"site": site, "layer": layer, "ce_original": untouched.ce, "n_tokens": held_out.n_tokens}
        | {f"ce_{kind}": sums[layer, kind].ce for kind in values}
        | {f"kl_{kind}": sums[layer, kind].kl for kind in values}
        for layer in ablated
    ]


def _ablate(
    model: LanguageModel,
    stand_ins: Mapping[tuple[int, str], Mapping[Site, StandIn]],
    held_out: HeldOut,
    batch: int,
    label: str,
) -> tuple[PredictionSums, dict[tuple[int, str], PredictionSums]]:
    """Sums over all predictions, of the untouched model and with each of `stand_ins` in place."""
    untouched: dict[None, PredictionSums] = {}
    sums: dict[tuple[int, str], PredictionSums] = {}
    with progress(label, held_out.token.numel(), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            which = prediction_targets(part.token, part.scored)
            logits = model.logits(part.token)
            original = log_probabilities(logits, which)
            accumulate(untouched, None, prediction_sums(logits, which))
            for key, places in stand_ins.items():
                with splicing(model, places, part):
                    accumulate(sums, key, prediction_sums(model.logits(part.token), which, original))
            bar.update(part.token.numel())
    return untouched[None], sums


@dataclass(frozen=True)
class RunScore:
    """The sums over the held-out tokens of one run: of its dictionaries by layer, and of the predictions."""

    reconstruction: dict[int, ReconstructionSums]
    firing: dict[int, FiringSums]
    prediction: PredictionSums


@torch.inference_mode()
def score(
    model: LanguageModel, runs: Mapping[str, Mapping[int, Dictionary]], held_out: HeldOut, batch: int
) -> dict[str, RunScore]:
    """Score each run with its dictionaries (by layer) in place, all of a run's layers at once.

    The untouched model runs once a batch of `batch` sequences, for all runs; each run once more.
    """
    substitutes = {run: {layer: Substitute(d) for layer, d in layers.items()} for run, layers in runs.items()}
    predictions: dict[str, PredictionSums] = {}
    with progress(f"evaluation: {', '.join(runs)}", held_out.token.numel() * len(runs), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            which = prediction_targets(part.token, part.scored)
            original = log_probabilities(model.logits(part.token), which)
            for run, layers in substitutes.items():
                sites = {Site(each.dictionary.site_out, layer): each for layer, each in layers.items()}
                with splicing(model, sites, part):
                    accumulate(predictions, run, prediction_sums(model.logits(part.token), which, original))
                bar.update(part.token.numel())
    return {run: _score(layers, predictions[run]) for run, layers in substitutes.items()}


def _score(substitutes: Mapping[int, Substitute], prediction: PredictionSums) -> RunScore:
    return RunScore(
        {layer: each.reconstruction for layer, each in substitutes.items()},
        {layer: each.firing for layer, each in substitutes.items()},
        prediction,
    )


def metric_row(run: str, layer: int, scored: RunScore, baseline: Mapping[str, Any]) -> dict[str, Any]:
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
        "ce_recovered_zero": ce_recovered(ce, baseline["ce_original"], baseline["ce_zero"]),
        "ce_recovered_mean": ce_recovered(ce, baseline["ce_original"], baseline["ce_mean"]),
        "delta_ce": ce - baseline["ce_original"],
        "kl": scored.prediction.kl,
        "alive": fmean(sums.alive for sums in firing),
        "density_over_1_percent": fmean(sums.share_over(0.01) for sums in firing),
        "density_over_10_percent": fmean(sums.share_over(0.1) for sums in firing),
        "n_tokens": next(iter(reconstruction)).n,
    }


def histogram_rows(run: str, layer: int, scored: RunScore) -> Iterator[dict[str, Any]]:
    """The rows of the histogram of one layer's densities."""
    for number, (low, high, n_features) in enumerate(density_histogram(scored.firing[layer].density)):
        yield {"run": run, "layer": layer, "bin": number, "low": low, "high": high, "n_features": n_features}


def read_baselines(paths: Iterable[Path | str]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The rows of baseline tables, by site and layer (-1: all layers)."""
    rows = (row for path in paths for row in read_table(path).to_pylist())
    return {(row["site"], row["layer"]): row for row in rows}
