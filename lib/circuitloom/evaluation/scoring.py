"""Scores dictionaries on held-out tokens, for the tables `baseline`, `metric` and `density_histogram`.

`replacing_activations` replaces activations by reconstructions (splicing) or by constants (ablation). `baseline_rows`
scores the original model and the ablated model. `score_runs` scores the spliced model.
"""

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
from ..core.layout import ALL_LAYERS
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

Replacement = Callable[
    [Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]], Float[Tensor, "token d_out"]
]
"""Function (x, y) that returns a replacement of y. x and y are float32 activations at the scored tokens.

y is the activation at the replaced site. For mlp_out, x is the MLP's input. For other sites, x equals y.
"""


@contextmanager
def replacing_activations(
    model: LanguageModel, replacements: Mapping[Site, Replacement], batch: HeldOut
) -> Iterator[None]:
    """Replaces the activations of each site while `model` runs `batch` inside this context.

    Activations at positions where `batch.keeps_original` is true are not replaced. `batch` must be on the model's
    device.
    """
    with edited(model, {site: _at_scored(replacement, batch) for site, replacement in replacements.items()}):
        yield


def _at_scored(replacement: Replacement, batch: HeldOut) -> Callable[[Tensor, Tensor], Tensor]:
    def edit(x: Tensor, y: Tensor) -> Tensor:
        replaced = y.clone()
        replaced[batch.scored] = replacement(x[batch.scored].float(), y[batch.scored].float()).to(y.dtype)
        return torch.where(batch.keeps_original[..., None], y, replaced)

    return edit


def constant_replacement(value: Float[Tensor, " d_out"]) -> Replacement:
    """Returns a replacement with `value` at every token. Zero and mean ablation use this function."""
    return lambda _x, y: value.to(y).expand_as(y)


class DictionaryReplacement:
    """Replaces y by a dictionary's reconstruction of y. Each call also updates `reconstruction` and `firing`.

    Raises ValueError if the dictionary is neither an SAE nor an MLP transcoder.
    """

    reconstruction: ReconstructionSums
    """Sums over all tokens so far."""
    firing: FiringSums
    """Counts over all tokens so far."""

    def __init__(self, dictionary: Dictionary) -> None:
        if not (dictionary.is_sae or dictionary.is_transcoder):
            raise ValueError(
                f"a dictionary from {dictionary.site_in} to {dictionary.site_out} replaces no site; "
                "train an SAE or a transcoder"
            )
        self.dictionary = dictionary
        empty = dictionary.b_dec.new_zeros(0, dictionary.d_out)
        self.reconstruction = reconstruction_sums(empty, empty)
        self.firing = firing_sums(empty.new_zeros(0, dtype=torch.int64), dictionary.width, 0)

    def __call__(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """Returns the reconstruction of y. A transcoder encodes x. An SAE encodes y."""
        y_hat, firing = reconstruct(self.dictionary, self.dictionary.encoder_input(x, y))
        self.reconstruction += reconstruction_sums(y, y_hat)
        self.firing += firing
        return y_hat


def reconstruct(
    dictionary: Dictionary, x: Float[Tensor, "token d_in"]
) -> tuple[Float[Tensor, "token d_out"], FiringSums]:
    """Returns the reconstruction for the input `x`, and the firing counts. Only active features are decoded."""
    token, feature, value = dictionary.encode_sparse(x)
    y_hat = dictionary.decode_sparse(token, feature, value, x)
    return y_hat, firing_sums(feature, dictionary.width, len(x))


@torch.inference_mode()
def site_means(
    model: LanguageModel, sites: Sequence[Site], held_out: HeldOut, batch: int
) -> dict[Site, Float64[Tensor, " d"]]:
    """Returns the original model's mean activation at each site. Only scored positions are averaged."""
    sums: dict[Site, Tensor] = {}
    title = f"evaluation: means of {', '.join(sorted({site.name for site in sites}))}"
    with progress(title, held_out.token.numel(), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            for site, value in capture(model, part.token, sites).items():
                accumulate(sums, site, value[part.scored].sum(0, dtype=torch.float64))
            bar.update(part.token.numel())
    return {site: total / held_out.n_tokens for site, total in sums.items()}


@torch.inference_mode()
def baseline_rows(
    model: LanguageModel, site: str, layers: Sequence[int], held_out: HeldOut, config: Evaluation
) -> list[dict[str, Any]]:
    """Returns one BASELINE row per layer. A row scores the model with `site` ablated in that layer.

    For mlp_out in several layers, `config.together` adds a row with layer -1. This row scores the model with mlp_out
    ablated in all layers.
    """
    sites = [Site(site, layer) for layer in layers]
    ablated = {layer: [site_of_layer] for layer, site_of_layer in zip(layers, sites, strict=True)}
    if config.together and site == "mlp_out" and len(layers) > 1:
        ablated[ALL_LAYERS] = sites
    means = site_means(model, sites, held_out, config.batch)
    values = {"zero": {each: torch.zeros_like(mean) for each, mean in means.items()}, "mean": means}
    replacements = {
        (layer, kind): {each: constant_replacement(value[each]) for each in sites}
        for layer, sites in ablated.items()
        for kind, value in values.items()
    }
    sums = _ablate(model, replacements, held_out, config.batch, f"evaluation: {site} ablated")
    return [
        {"site": site, "layer": layer, "ce_original": sums[None].ce, "n_tokens": held_out.n_tokens}
        | {f"ce_{kind}": sums[layer, kind].ce for kind in values}
        | {f"kl_{kind}": sums[layer, kind].kl for kind in values}
        for layer in ablated
    ]


def _ablate(
    model: LanguageModel,
    replacements: Mapping[tuple[int, str], Mapping[Site, Replacement]],
    held_out: HeldOut,
    batch: int,
    title: str,
) -> dict[tuple[int, str] | None, PredictionSums]:
    """Returns sums[key] of the model edited with replacements[key]. sums[None] belongs to the original model."""
    sums: dict[tuple[int, str] | None, PredictionSums] = {}
    with progress(title, held_out.token.numel(), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            targets = prediction_targets(part.token, part.scored)
            logits = model.logits(part.token)
            original = log_probabilities(logits, targets)
            accumulate(sums, None, prediction_sums(logits, targets))
            for key, by_site in replacements.items():
                with replacing_activations(model, by_site, part):
                    accumulate(sums, key, prediction_sums(model.logits(part.token), targets, original))
            bar.update(part.token.numel())
    return sums


@dataclass(frozen=True)
class RunScore:
    """Sums of one run over the held-out tokens.

    `reconstruction` and `firing` map layers to sums. `prediction` scores the model with all layers spliced at once.
    """

    reconstruction: dict[int, ReconstructionSums]
    firing: dict[int, FiringSums]
    prediction: PredictionSums


@torch.inference_mode()
def score_runs(
    model: LanguageModel, runs: Mapping[str, Mapping[int, Dictionary]], held_out: HeldOut, batch: int
) -> dict[str, RunScore]:
    """Returns the scores of each run. All dictionaries of a run are spliced into the model at once.

    `runs[name][layer]` is a dictionary. `batch` is the number of sequences per forward pass.

    >>> score = score_runs(model, {"mine": {1: dictionary}}, held_out, batch=32)["mine"]
    >>> score.prediction.ce, score.prediction.kl, score.reconstruction[1].fvu, score.firing[1].l0
    """
    replacements = {
        run: {layer: DictionaryReplacement(dictionary) for layer, dictionary in layers.items()}
        for run, layers in runs.items()
    }
    predictions: dict[str, PredictionSums] = {}
    with progress(f"evaluation: {', '.join(runs)}", held_out.token.numel() * len(runs), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            targets = prediction_targets(part.token, part.scored)
            original = log_probabilities(model.logits(part.token), targets)
            for run, layers in replacements.items():
                by_site = {Site(each.dictionary.site_out, layer): each for layer, each in layers.items()}
                with replacing_activations(model, by_site, part):
                    accumulate(predictions, run, prediction_sums(model.logits(part.token), targets, original))
                bar.update(part.token.numel())
    return {
        run: RunScore(
            {layer: each.reconstruction for layer, each in layers.items()},
            {layer: each.firing for layer, each in layers.items()},
            predictions[run],
        )
        for run, layers in replacements.items()
    }


def metric_row(run: str, layer: int, score: RunScore, baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a METRIC row. `baseline` is the BASELINE row of the same site and layer.

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
    }


def histogram_rows(run: str, layer: int, score: RunScore) -> Iterator[dict[str, Any]]:
    """Yield the DENSITY_HISTOGRAM rows of one layer."""
    for number, (low, high, n_features) in enumerate(density_histogram(score.firing[layer].density)):
        yield {"run": run, "layer": layer, "bin": number, "low": low, "high": high, "n_features": n_features}


def read_baselines(paths: Iterable[Path | str]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Returns rows[site, layer] of the BASELINE tables in `paths`. Layer -1 means all layers."""
    rows = (row for path in paths for row in read_table(path).to_pylist())
    return {(row["site"], row["layer"]): row for row in rows}
