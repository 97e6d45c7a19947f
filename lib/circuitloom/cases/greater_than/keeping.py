"""How many features, and how many neurons, of one layer keep the behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.causal_effects import Kind, find_fill
from ...ablation.components import Basis, feature_basis, neuron_basis
from ...ablation.faithfulness import Curve, keep_top, rank
from ...ablation.metrics import PromptMetric
from ...dictionaries.dictionary import Dictionary
from ...language_model.hooks import Site, capture
from ...language_model.model import LanguageModel
from .prompts import YearPrompts

ABLATIONS: tuple[Kind, ...] = ("zero", "mean")
FEATURES, NEURONS = "features", "neurons"


@dataclass(frozen=True)
class Kept:
    """The metric with the k components alone that tell the prompts apart most."""

    units: str
    """features or neurons."""
    basis: Basis
    ablation: Kind
    curve: Curve


@torch.inference_mode()
def variances(
    model: LanguageModel, dictionary: Dictionary, prompts: YearPrompts
) -> dict[str, Float[Tensor, " component"]]:
    """Variance over the prompts, at the last token, of each feature's and each neuron's activation in a layer."""
    sites = {FEATURES: Site("mlp_in", dictionary.layer), NEURONS: Site("neurons", dictionary.layer)}
    seen = {site: value[:, -1] for site, value in capture(model, prompts.token, list(sites.values())).items()}
    z = dictionary.encode(seen[sites[FEATURES]].to(dictionary.W_enc.dtype))
    return {FEATURES: z.var(0), NEURONS: seen[sites[NEURONS]].float().var(0)}


def keep_curves(
    model: LanguageModel,
    run: str,
    dictionary: Dictionary,
    ranking: dict[str, Float[Tensor, " component"]],
    finding: Sequence[PromptMetric],
    testing: Sequence[PromptMetric],
) -> list[Kept]:
    """Curves of a layer's features and neurons on `testing`, those of the highest `ranking` kept first.

    What is not kept is zero, or its mean over `finding`, at all positions that transcoders replace; biases stay.
    Features stand in for the MLP: what the transcoder misses is gone.
    """
    layer = dictionary.layer
    bases = {
        FEATURES: feature_basis(run, {layer: dictionary}, keeps_error=False),
        NEURONS: neuron_basis(model, [layer]),
    }
    found = []
    for units, basis in bases.items():
        named = replace(basis, name=f"{basis.name}, layer {layer}")
        for kind in ABLATIONS:
            fill = find_fill(model, named, finding, kind)
            curve = keep_top(model, named, testing, rank(ranking[units]), fill)
            found.append(Kept(units, named, kind, curve))
    return found


def advantage(kept: Sequence[Kept], ablation: Kind, small: int) -> Float[Tensor, " prompt"]:
    """How much higher the metric is with k features than with k neurons: the mean over the k tried, up to `small`."""
    by_units = {each.units: each.curve for each in kept if each.ablation == ablation}
    features, neurons = by_units[FEATURES], by_units[NEURONS]
    both = [k for k in features.n_kept.tolist() if 1 <= k <= small and k in neurons.n_kept.tolist()]
    means = [
        torch.stack([curve.kept[:, curve.n_kept == k][:, 0] for k in both], 1).mean(1)
        for curve in (features, neurons)
    ]
    return means[0] - means[1]
