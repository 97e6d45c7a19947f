"""Feature edits: ablate, scale or clamp features, keep only some features, or patch features from another prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets
from ..attribution.linearized_model import LinearizedModel
from ..attribution.targets import resolve_position
from ..config.circuits import FeatureChange, parse_feature
from ..dictionaries.cross_layer import add_by_layer
from ..language_model.hooks import Edit, Site, capture, edited
from ..language_model.model import LanguageModel
from .interventions import SourceEdit, edit_sources, run_free, run_frozen

FeatureEdit = Callable[[Float[Tensor, "position feature"]], Float[Tensor, "position feature"]]
"""Maps the activations of a layer to edited activations."""


@dataclass(frozen=True)
class EditOutcome:
    """Values of targets before and after a feature edit."""

    before: Float[Tensor, " target"]
    frozen: Float[Tensor, " target"]
    """Values after the edit in the linearized model.

    Attention patterns, norm denominators, errors and unedited features keep their values."""
    free: Float[Tensor, " target"]
    """Values after the edit in the original model, where nothing is frozen."""


def make_edits(
    model: LinearizedModel, change: FeatureChange, other: LinearizedModel | None = None
) -> dict[int, FeatureEdit]:
    """Returns the edit of each layer that `change` names.

    A patch copies activations from the prompt of `other`. Raises ValueError if a feature, position or dictionary does
    not exist. Also raises ValueError if a patch has no `other`, or if the two prompts differ in length.
    """
    places = [parse_feature(text) for text in change.features]
    for place in places:
        _check(model, place.layer, place.feature)
    if change.kind == "patch" and (other is None or len(other.captured) != len(model.captured)):
        raise ValueError("the prompts of a patch differ in length; choose one with the same number of tokens")
    edits = {}
    for layer in sorted({place.layer for place in places}):
        # masks of the named features alone: those of all features of all layers may not fit into memory
        named = sorted({place.feature for place in places if place.layer == layer})
        column = {each: i for i, each in enumerate(named)}
        mask = torch.zeros(len(model.captured), len(named), dtype=torch.bool)
        for place in places:
            if place.layer == layer:
                position = slice(None) if place.position is None else resolve_position(place.position, model)
                mask[position, column[place.feature]] = True
        feature = torch.tensor(named, device=model.replaced.device)
        patch = None if other is None else dense_activations(other, layer)[:, feature]
        edits[layer] = _edit(change, feature, mask.to(feature.device), patch)
    return edits


def _edit(change: FeatureChange, feature: Tensor, mask: Tensor, patch: Tensor | None) -> FeatureEdit:
    """Returns the edit of the columns `feature` where `mask` is true. `mask` and `patch` have these columns."""
    strength = change.strength or 0.0

    def edit(z: Tensor) -> Tensor:
        own = z[:, feature]
        match change.kind:
            case "ablate":
                edited_own = own.masked_fill(mask, 0.0)
            case "scale":
                edited_own = torch.where(mask, own * strength, own)
            case "clamp":
                edited_own = torch.where(mask, torch.full_like(own, strength), own)
            case "keep":
                return torch.zeros_like(z).index_copy_(1, feature, own.masked_fill(~mask, 0.0))
            case "patch":
                assert patch is not None
                edited_own = torch.where(mask, patch, own)
        return z.index_copy(1, feature, edited_own)

    return edit


def dense_activations(model: LinearizedModel, layer: int) -> Float[Tensor, "position feature"]:
    """Returns the activations of all features of a layer on the prompt."""
    z = model.captured.resid_final.new_zeros(len(model.captured), model.dictionaries[layer].width)
    own = model.features.layer == layer
    z[model.features.position[own], model.features.feature[own]] = model.features.activation[own]
    return z


@torch.inference_mode()
def apply_edits(
    language_model: LanguageModel,
    model: LinearizedModel,
    edits: dict[int, FeatureEdit],
    targets: Sequence[AttributionTargets],
) -> EditOutcome:
    """Apply edits in the linearized model (frozen) and in the original model (free), and measure the targets.

    In the free pass, edits apply to the activations of this pass. The dictionary errors of this pass are kept.
    """
    changes: dict[int, Tensor] = {}
    for layer, edit in edits.items():
        z, dictionary = dense_activations(model, layer), model.dictionaries[layer]
        change = (edit(z) - z) * model.replaced[:, None]
        written = {output: dictionary.write_to(change, output)[None] for output in dictionary.outputs}
        add_by_layer(changes, written)
    start = model.captured.layers[0].resid_pre[None]
    return EditOutcome(
        before=torch.cat(run_frozen(model, {}, start, targets), 1)[0],
        frozen=torch.cat(run_frozen(model, changes, start, targets), 1)[0],
        free=torch.cat(run_free(language_model, model, 1, edit_hooks(model, edits), targets), 1)[0],
    )


@torch.inference_mode()
def edited_probabilities(
    language_model: LanguageModel, model: LinearizedModel, edits: dict[int, FeatureEdit], position: int
) -> Float[Tensor, " vocabulary"]:
    """Returns the next-token probabilities of the original model under the edits, at `position`. Nothing is frozen."""
    with edited(language_model, edit_hooks(model, edits)):
        [hidden] = capture(language_model, model.captured.token[None], [Site("unembedding_in")]).values()
    return model.captured.lm_head.probabilities(hidden[0, position]).float()


def edit_hooks(model: LinearizedModel, edits: dict[int, FeatureEdit]) -> dict[Site, Edit]:
    """Returns hooks that edit the activations of the running pass, with all that they write."""

    def change(layer: int, edit: FeatureEdit) -> Callable[[Tensor], SourceEdit]:
        dictionary = model.dictionaries[layer]

        def at_layer(x: Tensor) -> SourceEdit:
            z = dictionary.encode(x[0].to(dictionary.dtype))
            changed = torch.where(model.replaced[:, None], edit(z), z) - z
            return lambda output, y: y + dictionary.write_to(changed, output)

        return at_layer

    return edit_sources(model, {layer: change(layer, edit) for layer, edit in edits.items()})


def _check(model: LinearizedModel, layer: int, feature: int) -> None:
    if layer not in model.dictionaries:
        known = ", ".join(map(str, model.dictionaries))
        raise ValueError(f"layer {layer} has no dictionary; choose from {known}")
    width = model.dictionaries[layer].width
    if feature >= width:
        raise ValueError(f"layer {layer} has features 0 to {width - 1}, not {feature}; choose one of them")
