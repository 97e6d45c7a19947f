"""Scores dictionaries on held-out tokens, for the tables `baseline`, `metric` and `density_histogram`.

`replacing_activations` replaces activations by reconstructions (splicing) or by constants (ablation). `baseline_rows`
scores the original model and the ablated model. `score_runs` scores the spliced model.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ..config.evaluation import Evaluation
from ..core.layout import ALL_LAYERS
from ..core.progress import progress
from ..core.tables import read_table
from ..dictionaries.dictionary import Dictionary
from ..language_model.hooks import Site, capture, edited, recorded_outputs, resumed
from ..language_model.model import LanguageModel
from .held_out import HeldOut
from .metrics import (
    FiringSums,
    PredictionSums,
    PredictionTargets,
    ReconstructionSums,
    accumulate,
    ce_recovered,
    compare_predictions,
    density_histogram,
    firing_sums,
    prediction_targets,
    reconstruction_sums,
)

K = TypeVar("K", bound=Hashable)

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
    model: LanguageModel, sites: Sequence[str], layers: Sequence[int], held_out: HeldOut, config: Evaluation
) -> list[dict[str, Any]]:
    """Returns one BASELINE row per site and layer. The row scores the model in which this site is ablated.

    If `config.together` is set, mlp_out also has a row with layer -1. This row scores the model in which mlp_out is
    ablated in all layers at once.
    """
    ablated = {(site, layer): [Site(site, layer)] for site in sites for layer in layers}
    if config.together and "mlp_out" in sites and len(layers) > 1:
        ablated["mlp_out", ALL_LAYERS] = [Site("mlp_out", layer) for layer in layers]
    means = site_means(
        model, [Site(*key) for key in itertools.product(sites, layers)], held_out, config.batch
    )
    values = {"zero": {each: torch.zeros_like(mean) for each, mean in means.items()}, "mean": means}
    replacements = {
        (*key, kind): {each: constant_replacement(value[each]) for each in members}
        for key, members in ablated.items()
        for kind, value in values.items()
    }
    title = f"evaluation: {', '.join(sites)} ablated"
    original, sums = _score(model, replacements, held_out, config.batch, title)
    return [
        {"site": site, "layer": layer, "ce_original": original.ce, "n_tokens": held_out.n_tokens}
        | {f"ce_{kind}": sums[site, layer, kind].ce for kind in values}
        | {f"kl_{kind}": sums[site, layer, kind].kl for kind in values}
        for site, layer in ablated
    ]


class Shortcuts(NamedTuple):
    """Which shortcuts give a model's own logits. `find_shortcuts` tries them on a sequence."""

    resume: bool
    """Whether a pass may skip blocks (`hooks.resumed`). False if later blocks use values from inside earlier blocks."""
    unembed: bool
    """Whether `LanguageModel.unembed` computes the logits from the unembedding's input."""


def find_shortcuts(model: LanguageModel, token: Int[Tensor, "sequence position"]) -> Shortcuts:
    """Returns the shortcuts that change none of the logits of `token`."""
    outputs: dict[int, Any] = {}
    last = model.layers - 1
    with recorded_outputs(model, [last - 1] if last else [], outputs):
        logits = model.logits(token)
    [hidden] = capture(model, token, [Site("unembedding_in")]).values()
    unembed = torch.allclose(model.unembed(hidden), logits, rtol=1e-4, atol=1e-4)
    if not last:
        return Shortcuts(False, unembed)
    with resumed(model, last, outputs[last - 1]):
        return Shortcuts(torch.allclose(model.logits(token), logits, rtol=1e-4, atol=1e-4), unembed)


def _score(
    model: LanguageModel,
    replacements: Mapping[K, Mapping[Site, Replacement]],
    held_out: HeldOut,
    batch: int,
    title: str,
) -> tuple[PredictionSums, dict[K, PredictionSums]]:
    """Returns the prediction sums of the original model, and of the model with each of `replacements` in place.

    For each batch of `batch` sequences, the original model runs once. A model with replacements starts at the first
    replaced layer. Only predictions that are scored are unembedded.
    """
    held_out = held_out.to(model.device)
    shortcuts = find_shortcuts(model, held_out.token[:1])
    starts = {
        key: min(site.layer for site in by_site) if shortcuts.resume else 0
        for key, by_site in replacements.items()
    }
    unembed = model.unembed if shortcuts.unembed else nn.Identity()
    # hidden states of all models fit into memory, their logits may not
    groups = [list(replacements)] if shortcuts.unembed else [[key] for key in replacements]
    sums: dict[K | None, PredictionSums] = {}
    with progress(title, held_out.token.numel() * (len(replacements) + 1), "tokens") as bar:
        for part in held_out.batches(batch):
            targets = prediction_targets(part.token, part.scored)

            def run(targets: PredictionTargets = targets, part: HeldOut = part) -> Tensor:
                """Returns the unembedding's input at the scored predictions, or their logits without a shortcut."""
                if shortcuts.unembed:
                    [values] = capture(model, part.token, [Site("unembedding_in")]).values()
                else:
                    values = model.logits(part.token)
                bar.update(part.token.numel())
                return values.flatten(0, 1)[targets.source]

            outputs: dict[int, Any] = {}
            with recorded_outputs(model, {start - 1 for start in starts.values() if start}, outputs):
                original = run()
            for group in groups:
                rows: dict[K | None, Tensor] = {None: original}
                for key in group:
                    start = starts[key]
                    with (
                        resumed(model, start, outputs.get(start - 1)),
                        replacing_activations(model, replacements[key], part),
                    ):
                        rows[key] = run()
                for key, scored in compare_predictions(rows, unembed, targets.token, None).items():
                    if key is not None or group is groups[0]:
                        accumulate(sums, key, scored)
    return sums.pop(None), sums  # type: ignore[return-value]


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
    model: LanguageModel, runs: Mapping[K, Mapping[int, Dictionary]], held_out: HeldOut, batch: int
) -> dict[K, RunScore]:
    """Score each run. The reconstructions of all dictionaries of a run are in place at the same time.

    `runs` maps each run to its dictionaries, keyed by layer. Any key may stand for a run. For each batch of `batch`
    sequences, the original model runs once, and the edited model once per run.

    >>> score = score_runs(model, {"mine": {1: dictionary}}, held_out, batch=32)["mine"]
    >>> score.prediction.ce, score.prediction.kl, score.reconstruction[1].fvu, score.firing[1].l0
    """
    replacements = {
        run: {
            Site(dictionary.site_out, layer): DictionaryReplacement(dictionary)
            for layer, dictionary in layers.items()
        }
        for run, layers in runs.items()
    }
    _, predictions = _score(model, replacements, held_out, batch, f"evaluation: {len(runs)} runs")
    return {
        run: RunScore(
            {site.layer: each.reconstruction for site, each in by_site.items()},
            {site.layer: each.firing for site, each in by_site.items()},
            predictions[run],
        )
        for run, by_site in replacements.items()
    }


class ScoreRows(NamedTuple):
    """Rows of one run at one layer, or at all layers together."""

    metric: dict[str, Any]
    """METRIC row."""
    histogram: list[dict[str, Any]]
    """DENSITY_HISTOGRAM rows. Empty for layer -1."""


def score_rows(
    model: LanguageModel,
    dictionaries: Mapping[tuple[str, int], Dictionary],
    keys: Sequence[tuple[str, int]],
    baselines: Mapping[tuple[str, int], Mapping[str, Any]],
    held_out: HeldOut,
    batch: int,
) -> dict[tuple[str, int], ScoreRows]:
    """Returns the rows of each (run, layer) in `keys`. Layer -1 means that all layers are replaced at once.

    `dictionaries` has the dictionaries of these runs. `baselines` is from `read_baselines`.
    """
    replaced = {
        (run, layer): {
            each: dictionary
            for (owner, each), dictionary in dictionaries.items()
            if owner == run and layer in (each, ALL_LAYERS)
        }
        for run, layer in keys
    }
    rows = {}
    for (run, layer), score in score_runs(model, replaced, held_out, batch).items():
        site = next(iter(replaced[run, layer].values())).site_out
        histogram = [] if layer == ALL_LAYERS else list(histogram_rows(run, layer, score))
        rows[run, layer] = ScoreRows(metric_row(run, layer, score, baselines[site, layer]), histogram)
    return rows


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
