"""What every dictionary is measured against: the untouched model, and the model with a site ablated."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ..config.evaluation import Evaluation
from ..language_model.model import LanguageModel, Site
from ..progress import progress
from .held_out import HeldOut
from .metrics import PredictionSums, accumulate, log_probabilities, prediction_sums, targets
from .names import TOGETHER
from .splicing import StandIn, constant, splicing


@torch.inference_mode()
def site_means(
    model: LanguageModel, sites: Sequence[Site], held_out: HeldOut, batch: int
) -> dict[Site, Float64[Tensor, " d"]]:
    """Mean of each site over the scored positions, in the untouched model."""
    sums: dict[Site, Tensor] = {}
    label = f"evaluation: means of {', '.join(sorted({site.name for site in sites}))}"
    with progress(label, held_out.token.numel(), "tokens") as bar:
        for part in held_out.to(model.device).batches(batch):
            for site, value in model.capture(part.token, sites).items():
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
        ablated[TOGETHER] = sites
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
            which = targets(part.token, part.scored)
            logits = model.logits(part.token)
            original = log_probabilities(logits, which)
            accumulate(untouched, None, prediction_sums(logits, which))
            for key, places in stand_ins.items():
                with splicing(model, places, part):
                    accumulate(sums, key, prediction_sums(model.logits(part.token), which, original))
            bar.update(part.token.numel())
    return untouched[None], sums
