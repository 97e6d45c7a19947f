"""Scores models on held-out tokens.

`baseline_rows` scores the original model and the ablated model, for the table `baseline`. `score_runs` scores the
spliced model. `score_rows.py` makes the rows of the other tables.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..config.activations import MLP_OUTPUTS, Outliers
from ..config.evaluation import Evaluation
from ..core.layout import ALL_LAYERS
from ..core.progress import progress
from ..dictionaries.cross_layer import CrossLayerTranscoder
from ..dictionaries.dictionary import Dictionary
from ..language_model.batches import Batch
from ..language_model.hooks import Site, capture, edited, recorded_outputs, resumed
from ..language_model.lm_head import LMHead, find_lm_head
from ..language_model.model import LanguageModel
from .cross_layer import OneOutput, OriginalReconstruction, cross_layer_replacements
from .held_out import HeldOut, passes
from .metrics import (
    FiringSums,
    PredictionSums,
    ReconstructionSums,
    accumulate,
    compare_predictions,
    prediction_targets,
)
from .replacement import (
    Bounds,
    DictionaryReplacement,
    NormBounds,
    Reconstruction,
    Replacement,
    constant_replacement,
    replacing_activations,
)

K = TypeVar("K", bound=Hashable)
ScoredRun = Mapping[int, Dictionary] | CrossLayerTranscoder | OneOutput
"""Dictionaries by layer, whose reconstructions are in place together, or a cross-layer transcoder, or one of its
outputs."""

HIDDEN_BYTES = 2**30
"""Largest number of bytes of the hidden states whose logits are compared at once."""
CHECKED = 16
"""Number of positions on which `can_resume` compares logits."""


@torch.inference_mode()
def site_means(
    model: LanguageModel, sites: Sequence[Site], held_out: HeldOut, batch: Batch, bounds: Bounds | None = None
) -> dict[Site, Float64[Tensor, " d"]]:
    """Returns the original model's mean activation at each site. Only scored positions within `bounds` are averaged.

    Raises ValueError if an activation is not finite.
    """
    bounds = bounds or {}
    sums: dict[Site, Tensor] = {}
    counts: dict[Site, Tensor] = {}
    title = f"evaluation: means of {', '.join(sorted({site.name for site in sites}))}"
    inputs = [Site(bound.reads, site.layer) for site, bound in bounds.items() if site.name in MLP_OUTPUTS]
    with progress(title, held_out.token.numel(), "tokens") as bar:
        for part in passes(held_out, model, batch):
            captured = capture(model, part.token, [*inputs, *sites])
            for site in sites:
                scored, y = part.scored, captured[site]
                if site in bounds:
                    x = captured[Site(bounds[site].reads, site.layer)] if site.name in MLP_OUTPUTS else y
                    scored = scored & bounds[site].within(x, y)
                accumulate(sums, site, y[scored].sum(0, dtype=torch.float64))
                accumulate(counts, site, scored.sum())
            bar.update(part.token.numel())
    for site, total in sums.items():
        model.check_finite(total, f"layer {site.layer}: {site.name} on held-out text")
    return {site: total / counts[site] for site, total in sums.items()}


@torch.inference_mode()
def norm_bounds(
    model: LanguageModel,
    sites: Sequence[Site],
    held_out: HeldOut,
    batch: Batch,
    outliers: Outliers,
    reads: Mapping[str, str] | None = None,
) -> dict[Site, NormBounds]:
    """Returns the bounds of each site, from the median norms on held-out text. Empty unless outliers are dropped.

    `reads` maps the name of a site to `NormBounds.reads`, by default mlp_in.
    """
    if outliers.action != "drop":
        return {}
    reads = {site.name: (reads or {}).get(site.name, "mlp_in") for site in sites}
    inputs = {site: Site(reads[site.name], site.layer) for site in sites if site.name in MLP_OUTPUTS}
    norms: dict[Site, list[Tensor]] = {site: [] for site in (*inputs.values(), *sites)}
    with progress("evaluation: norms", held_out.token.numel(), "tokens") as bar:
        for part in passes(held_out, model, batch):
            for site, value in capture(model, part.token, list(norms)).items():
                norm = torch.linalg.vector_norm(value[part.scored], dim=1, dtype=torch.float32)
                norms[site].append(norm.cpu())
            bar.update(part.token.numel())
    bound = {site: outliers.above * _median(each) for site, each in norms.items()}
    return {
        site: NormBounds(bound[inputs[site]] if site in inputs else math.inf, bound[site], reads[site.name])
        for site in sites
    }


@torch.inference_mode()
def baseline_rows(
    model: LanguageModel,
    sites: Sequence[str],
    layers: Sequence[int],
    held_out: HeldOut,
    config: Evaluation,
    outliers: Outliers | None = None,
    reads: Mapping[str, Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Returns one BASELINE row per site, layer and input. The row scores the model in which this site is ablated.

    If `config.together` is set, mlp_out and mlp_added also have a row with layer -1. This row scores the model in which
    the site is ablated in all layers at once. `reads` maps each site to the inputs of the transcoders that reconstruct
    it, by default mlp_in alone. If `outliers` drops tokens, these are not ablated, and depend on the input. Raises
    ValueError if an activation or a loss is not finite.
    """
    outliers = outliers or Outliers()
    inputs = {site: list((reads or {}).get(site, ["mlp_in"])) for site in sites}
    if outliers.action != "drop":
        # the same tokens are ablated for all inputs
        rows = _ablated_rows(
            model, {site: each[0] for site, each in inputs.items()}, layers, held_out, config, outliers
        )
        return [row | {"reads": each} for row in rows for each in inputs[row["site"]]]
    rows = []
    for turn in range(max(map(len, inputs.values()), default=0)):
        own = {site: each[turn] for site, each in inputs.items() if turn < len(each)}
        rows += _ablated_rows(model, own, layers, held_out, config, outliers)
    return rows


def _ablated_rows(
    model: LanguageModel,
    reads: Mapping[str, str],
    layers: Sequence[int],
    held_out: HeldOut,
    config: Evaluation,
    outliers: Outliers,
) -> list[dict[str, Any]]:
    """Returns the BASELINE rows of each site in `reads` for one input, which `reads` names."""
    sites = list(reads)
    ablated = {(site, layer): [Site(site, layer)] for site in sites for layer in layers}
    for site in MLP_OUTPUTS:
        if config.together and site in sites and len(layers) > 1:
            ablated[site, ALL_LAYERS] = [Site(site, layer) for layer in layers]
    measured = [Site(*key) for key in itertools.product(sites, layers)]
    bounds = norm_bounds(model, measured, held_out, config.batch, outliers, reads)
    means = site_means(model, measured, held_out, config.batch, bounds)
    values = {"zero": {each: torch.zeros_like(mean) for each, mean in means.items()}, "mean": means}
    replacements = {
        (*key, kind): {each: constant_replacement(value[each]) for each in members}
        for key, members in ablated.items()
        for kind, value in values.items()
    }
    title = f"evaluation: {', '.join(sites)} ablated"
    original, sums = _score(model, replacements, held_out, config.batch, title, bounds)
    rows = []
    for site, layer in ablated:
        mean, bound = means.get(Site(site, layer)), bounds.get(Site(site, layer))
        row = {"site": site, "reads": reads[site], "layer": layer}
        row |= {"ce_original": original.ce, "n_tokens": held_out.n_tokens}
        row |= {f"ce_{kind}": sums[site, layer, kind].ce for kind in values}
        row |= {f"kl_{kind}": sums[site, layer, kind].kl for kind in values}
        row |= {"mean": None if mean is None else mean.tolist()}
        row |= {"norm_bound_x": bound.x if bound and math.isfinite(bound.x) else None}
        row |= {"norm_bound_y": bound.y if bound else None}
        rows.append(row)
    return rows


def can_resume(model: LanguageModel, token: Int[Tensor, "sequence position"]) -> bool:
    """Returns whether a pass over `token` may skip blocks (`hooks.resumed`) without a change of the logits.

    False if later blocks use values from inside earlier blocks.
    """
    outputs: dict[int, Any] = {}
    last = model.layers - 1
    if not last:
        return False
    # logits of a few positions, because those of all positions may not fit into memory
    with edited(model, {Site("unembedding_in"): lambda _x, y: y[:, -CHECKED:]}):
        with recorded_outputs(model, [last - 1], outputs):
            logits = model.logits(token)
        with resumed(model, last, outputs[last - 1]):
            return torch.allclose(model.logits(token), logits, rtol=1e-4, atol=1e-4)


def _score(
    model: LanguageModel,
    replacements: Mapping[K, Mapping[Site, Replacement]],
    held_out: HeldOut,
    batch: Batch,
    title: str,
    bounds: Bounds | None = None,
    originals: Sequence[OriginalReconstruction] = (),
) -> tuple[PredictionSums, dict[K, PredictionSums]]:
    """Returns the prediction sums of the original model, and of the model with each of `replacements` in place.

    For each batch of `batch` sequences, the original model runs once. A model with replacements starts at the first
    replaced layer. Only predictions that are scored are unembedded. Tokens beyond `bounds` keep their activations.
    `originals` read the pass of the original model. Raises ValueError if a loss is not finite.
    """
    held_out = held_out.to(model.device)
    head = find_lm_head(model)
    resume = can_resume(model, held_out.token[:1])
    starts = {
        key: min(site.layer for site in by_site) if resume else 0 for key, by_site in replacements.items()
    }
    sums: dict[K | None, PredictionSums] = {}
    with progress(title, held_out.token.numel() * (len(replacements) + 1), "tokens") as bar:
        for part in passes(held_out, model, batch):
            scored = _score_batch(model, head, replacements, starts, part, bounds, bar.update, originals)
            for key, each in scored.items():
                accumulate(sums, key, each)
    for key, scored in sums.items():
        parts = key if isinstance(key, tuple) else [key]
        what = "" if key is None else f" with {', '.join(map(str, parts))} replaced"
        model.check_finite(scored.nll + scored.divergence, f"the loss on held-out text{what}")
    return sums.pop(None), sums  # type: ignore[return-value]


def _score_batch(
    model: LanguageModel,
    head: LMHead,
    replacements: Mapping[K, Mapping[Site, Replacement]],
    starts: Mapping[K, int],
    batch: HeldOut,
    bounds: Bounds | None,
    update: Callable[[float], object],
    originals: Sequence[OriginalReconstruction],
) -> dict[K | None, PredictionSums]:
    """Returns the prediction sums of a batch, with each of `replacements` in place, and of the original model (None).

    A pass with replacements starts at the block `starts`. The pass of the original model is read by `originals`.
    `update` is called with tokens: half of a pass's tokens after the pass, the other half while its logits are
    computed, which takes longer where the vocabulary is large.
    """
    targets = prediction_targets(batch.token, batch.scored)
    half = batch.token.numel() / 2

    def run() -> Float[Tensor, "prediction d"]:
        [values] = capture(model, batch.token, [Site("unembedding_in")]).values()
        update(half)
        return values.flatten(0, 1)[targets.source]

    outputs: dict[int, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(
            recorded_outputs(model, {start - 1 for start in starts.values() if start}, outputs)
        )
        for each in originals:
            stack.enter_context(each.reading(model, batch))
        original = run()
    # the original model's logits are computed again for each group, and its sums are the same
    size = max(1, HIDDEN_BYTES // max(1, original.nbytes))
    keys, sums = list(replacements), {}
    for first in range(0, max(1, len(keys)), size):
        hidden: dict[K | None, Tensor] = {None: original}
        for key in keys[first : first + size]:
            with (
                resumed(model, starts[key], outputs.get(starts[key] - 1)),
                replacing_activations(model, replacements[key], batch, bounds),
            ):
                hidden[key] = run()
        compared = half * (len(hidden) - (first > 0))
        sums |= compare_predictions(
            hidden, head, targets.token, None, lambda share, tokens=compared: update(share * tokens)
        )
    return sums


@dataclass(frozen=True)
class RunScore:
    """Sums of one run over the held-out tokens.

    `reconstruction` and `firing` map layers to sums, and `fvu_median` maps layers to the median over tokens of the
    fraction unexplained (`fractions_unexplained`). `prediction` scores the model with all layers spliced at once.
    """

    reconstruction: dict[int, ReconstructionSums]
    firing: dict[int, FiringSums]
    fvu_median: dict[int, float]
    prediction: PredictionSums


@torch.inference_mode()
def score_runs(
    model: LanguageModel,
    runs: Mapping[K, ScoredRun],
    held_out: HeldOut,
    batch: Batch,
    means: Mapping[Site, Float64[Tensor, " d"]] | None = None,
    bounds: Bounds | None = None,
) -> dict[K, RunScore]:
    """Score each run. The reconstructions of all dictionaries of a run are in place at the same time.

    `runs` maps each run to its dictionaries, keyed by layer, or to a cross-layer transcoder. Any key may identify a
    run. For each batch of `batch` sequences, the original model runs once, and the edited model once per run. `means`
    are the original model's mean activations; without them, they are measured (`site_means`) in another pass. Tokens
    beyond `bounds` are left out. Raises ValueError if an activation or a loss is not finite, or if `bounds` are given
    for a cross-layer transcoder.

    >>> score = score_runs(model, {"mine": {1: dictionary}}, held_out, batch=32)["mine"]
    >>> score.prediction.ce, score.prediction.kl, score.reconstruction[1].fvu, score.firing[1].l0
    """
    if bounds and any(_is_cross_layer(run) for run in runs.values()):
        raise ValueError(
            "a cross-layer transcoder needs all layers of a token, but outliers are left out layer by layer; set "
            "activations.outliers.action to keep or cap"
        )
    sites = {site for run in runs.values() for site in _replaced_sites(run)}
    if means is None:
        means = site_means(model, sorted(sites), held_out, batch, bounds)
    means = {site: mean.to(model.device) for site, mean in means.items() if site in sites}
    transcoders = {id(run.transcoder): run.transcoder for run in runs.values() if isinstance(run, OneOutput)}
    originals = [OriginalReconstruction(each) for each in transcoders.values()]
    replacements: dict[K, dict[Site, Reconstruction]] = {}
    for key, run in runs.items():
        if isinstance(run, CrossLayerTranscoder | OneOutput):
            replacements[key] = cross_layer_replacements(run, originals, means)
        else:
            by_site = {Site(each.site_out, layer): each for layer, each in run.items()}
            replacements[key] = {
                site: DictionaryReplacement(each, means[site]) for site, each in by_site.items()
            }
    title = f"evaluation: {len(runs)} runs"
    _, predictions = _score(model, replacements, held_out, batch, title, bounds, originals)
    return {
        run: RunScore(
            {site.layer: each.reconstruction for site, each in by_site.items()},
            {site.layer: each.firing for site, each in by_site.items()},
            {site.layer: _median(each.unexplained) for site, each in by_site.items()},
            predictions[run],
        )
        for run, by_site in replacements.items()
    }


def _is_cross_layer(run: ScoredRun) -> bool:
    return isinstance(run, CrossLayerTranscoder | OneOutput)


def _replaced_sites(run: ScoredRun) -> list[Site]:
    if isinstance(run, OneOutput):
        return [Site(run.transcoder.first.site_out, run.layer)]
    layers = run.layers if isinstance(run, CrossLayerTranscoder) else run
    return [Site(each.site_out, layer) for layer, each in layers.items()]


def _median(parts: Sequence[Tensor]) -> float:
    """Returns the median of all values of `parts`, which are vectors."""
    # torch.median returns the lower of the two middle values
    return float(np.median(torch.cat(list(parts)).cpu().numpy()))
