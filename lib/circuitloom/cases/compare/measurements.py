"""Measurements of a comparison: scores of a prompt's graph in one run, and effects of ablations."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...ablation.feature_edits import apply_edits, make_edits
from ...ablation.interventions import ablate_free
from ...attribution.direct_effects import AttributionTargets, feature_targets
from ...attribution.linearized_model import LinearizedModel
from ...attribution.tracer import feature_name
from ...config.circuits import FeatureChange
from ...language_model.model import LanguageModel
from .full_graph import Flow, FullGraph

FeatureSet = Mapping[int, Set[int]]
"""Features by layer."""


@dataclass(frozen=True)
class EffectAgreement:
    """Agreement of predicted effects with the effects of free ablations, each of a single feature."""

    edge_correlation: float | None
    """Over edges between ablated features and from them to the roots: correlation of direct effects with drops."""
    correlation: float | None
    """Over the drops of the roots: correlation of the predicted drops, over all paths, with the measured ones."""
    error: float | None
    """Sum of |predicted - measured| over the sum of |measured| drops of the roots. None if all are 0."""
    slope: float | None
    """Least-squares slope through the origin of measured over predicted drops of the roots. None if all are 0."""


@dataclass(frozen=True)
class StepOutcome:
    """How a graph shows a known step of the computation, and what ablating the step's features does."""

    n_features: int
    """Number of active features of the step."""
    flow: Flow
    root: float
    """Value of the roots in the original model, summed with their weights."""
    predicted: float
    """Drop of `root` that the graph predicts."""
    measured: float
    """Drop of `root` in the model, where nothing is frozen."""


@dataclass(frozen=True)
class PatchOutcome:
    """What happens to the roots of a text if the features of a step get their activations of another text."""

    n_features: int
    """Number of features that are active in either text, each counted once per position."""
    difference: float
    """Value of the roots minus their value in the other text: the drop if all that the step tells is replaced."""
    predicted: float
    """Drop that the graphs predict: what the features add to the roots here minus what they add there."""
    measured: float
    """Drop in the model, where nothing is frozen."""


@torch.inference_mode()
def measure_effects(language_model: LanguageModel, graph: FullGraph, most: int) -> EffectAgreement:
    """Ablate each of the `most` most influential features alone."""
    model, ablated = graph.model, graph.strongest(most)
    layer = model.features.layer[ablated]
    groups = [ablated[layer == each] for each in layer.unique()]
    targets: list[AttributionTargets] = [feature_targets(model, group) for group in groups]
    drops = ablate_free(language_model, model, ablated, [*targets, graph.roots.targets])
    on_roots, on_features = drops[:, len(ablated) :], drops[:, : len(ablated)]
    active = graph.columns.active
    direct = torch.cat([graph.effects[torch.cat(groups)], graph.effects[active:]])[:, ablated].T
    # features of the same layer do not act on one another
    edge = torch.cat([layer[:, None] < layer, torch.ones_like(on_roots, dtype=torch.bool)], 1)
    predicted = graph.predict_each(ablated)
    return agreement(
        direct[edge], torch.cat([on_features, on_roots], 1)[edge], predicted.flatten(), on_roots.flatten()
    )


def agreement(
    direct: Float[Tensor, " edge"],
    drop: Float[Tensor, " edge"],
    predicted: Float[Tensor, " effect"],
    measured: Float[Tensor, " effect"],
) -> EffectAgreement:
    """Compare direct effects with drops over edges, and predicted with measured drops of the roots."""
    size, square = float(measured.abs().sum()), float(predicted.square().sum())
    return EffectAgreement(
        correlation(direct, drop),
        correlation(predicted, measured),
        float((predicted - measured).abs().sum()) / size if size else None,
        float((predicted * measured).sum()) / square if square else None,
    )


def correlation(predicted: Float[Tensor, " effect"], measured: Float[Tensor, " effect"]) -> float | None:
    """Returns the correlation, or None if it is undefined."""
    if len(predicted) < 2 or not predicted.std() or not measured.std():
        return None
    return float(torch.corrcoef(torch.stack([predicted, measured]).double())[0, 1])


@torch.inference_mode()
def measure_step(
    language_model: LanguageModel, graph: FullGraph, features: FeatureSet, position: int | None = None
) -> StepOutcome:
    """Returns the influence through those of `features` that are active, and the effect of ablating these.

    Without `position`, they count at all positions.
    """
    model, weight = graph.model, graph.roots.weight
    mask = active_mask(model, features)
    if position is not None:
        mask &= model.features.position == position
    names = [feature_name(model, int(i)) for i in mask.nonzero()[:, 0]]
    # without active features, nothing is edited
    edits = make_edits(model, FeatureChange(kind="ablate", features=names)) if names else {}
    outcome = apply_edits(language_model, model, edits, [graph.roots.targets])
    return StepOutcome(
        len(names),
        graph.flow(mask),
        float(outcome.before @ weight),
        float(graph.predict_set(mask) @ weight),
        float((outcome.before - outcome.free) @ weight),
    )


@torch.inference_mode()
def measure_patch(
    language_model: LanguageModel, graph: FullGraph, other: FullGraph, features: FeatureSet
) -> PatchOutcome:
    """Patch `features` at all positions from the text of `other`, a graph of the same roots in another text.

    Raises ValueError if the two texts differ in their number of tokens.
    """
    model, weight = graph.model, graph.roots.weight
    here, there = active_mask(model, features), active_mask(other.model, features)
    names = [f"{layer}/{feature}" for layer, own in features.items() for feature in sorted(own)]
    change = FeatureChange(kind="patch", features=names, source="the other text") if names else None
    edits = {} if change is None else make_edits(model, change, other.model)
    outcome = apply_edits(language_model, model, edits, [graph.roots.targets])
    original = apply_edits(language_model, other.model, {}, [other.roots.targets]).before
    return PatchOutcome(
        len(_places(model, here) | _places(other.model, there)),
        float((outcome.before - original) @ weight),
        float((graph.predict_set(here) - other.predict_set(there)) @ weight),
        float((outcome.before - outcome.free) @ weight),
    )


def _places(model: LinearizedModel, mask: Bool[Tensor, " active"]) -> set[tuple[int, ...]]:
    features = model.features
    columns = (features.layer[mask], features.position[mask], features.feature[mask])
    return set(zip(*(column.tolist() for column in columns), strict=True))


def active_mask(model: LinearizedModel, features: FeatureSet) -> Bool[Tensor, " active"]:
    """Returns a mask of those of `model.features` that are in `features`, at all positions."""
    mask = torch.zeros_like(model.features.layer, dtype=torch.bool)
    for layer, numbers in features.items():
        own = torch.isin(model.features.feature, _as_tensor(sorted(numbers), mask.device))
        mask |= own & (model.features.layer == layer)
    return mask


def _as_tensor(numbers: Sequence[int], device: torch.device) -> Int[Tensor, " number"]:
    return torch.tensor(numbers, dtype=torch.int64, device=device)
