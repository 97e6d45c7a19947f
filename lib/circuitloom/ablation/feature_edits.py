"""Feature edits: ablate, scale, clamp or add to features, keep only some, or patch them from another prompt.

Each of these edits is affine: an activation z becomes factor * z + offset, with a factor and an offset per position and
named feature (`FeatureEdit`). The other features stay, or are removed. `feature_hooks` applies edits in a pass of the
original model. `apply_edits` also applies them in the linearized model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets
from ..attribution.linearized_model import LinearizedModel
from ..attribution.targets import resolve_position
from ..config.circuits import FeatureChange, parse_feature
from ..dictionaries.cross_layer import LayerDictionary, add_by_layer
from ..language_model.hooks import Edit, Site, capture, edited
from ..language_model.model import LanguageModel
from .interventions import SourceEdit, SourceSites, edit_sources, run_free, run_frozen


@dataclass(frozen=True)
class FeatureEdit:
    """An edit of features of one layer: the activation z of a named feature becomes factor * z + offset. The others
    stay, or become 0 where `removed` is true."""

    feature: Int[Tensor, " edited"]
    """Features that the edit names, in ascending order."""
    factor: Float[Tensor, "position edited"]
    offset: Float[Tensor, "position edited"]
    removed: Bool[Tensor, " position"] | None = None
    """Positions where all other features become 0. None if they stay everywhere."""

    def __call__(
        self, z: Float[Tensor, "position feature"], at: slice = slice(None)
    ) -> Float[Tensor, "position feature"]:
        """Returns the activations of all features at the positions `at` after the edit."""
        own = self.factor[at] * z[:, self.feature] + self.offset[at]
        if self.removed is not None:
            z = z.masked_fill(self.removed[at, None], 0.0)
        return z.index_copy(1, self.feature, own)

    def change(
        self, z: Float[Tensor, "position edited"], at: slice = slice(None)
    ) -> Float[Tensor, "position edited"]:
        """Returns what the edit adds to the activations z of `feature` at the positions `at`. 0 where it changes
        nothing."""
        return self.factor[at] * z + self.offset[at] - z

    def then(self, other: "FeatureEdit") -> "FeatureEdit":
        """Returns one edit that does the same as this one, followed by `other`."""
        feature = torch.cat([self.feature, other.feature]).unique()
        first, second = self._spread(feature), other._spread(feature)
        offset = second.factor * first.offset + second.offset
        removed = [each.removed for each in (self, other) if each.removed is not None]
        return FeatureEdit(
            feature, second.factor * first.factor, offset, torch.stack(removed).any(0) if removed else None
        )

    def _spread(self, feature: Int[Tensor, " more"]) -> "FeatureEdit":
        """Returns the same edit with columns for all of `feature`."""
        place = torch.searchsorted(feature, self.feature)
        factor = self.factor.new_ones(len(self.factor), len(feature))
        if self.removed is not None:
            factor[self.removed] = 0.0
        offset = self.offset.new_zeros(len(self.offset), len(feature))
        return FeatureEdit(
            feature,
            factor.index_copy(1, place, self.factor),
            offset.index_copy(1, place, self.offset),
            self.removed,
        )


@dataclass(frozen=True)
class RunSites:
    """The dictionaries of a run, transcoders or SAEs, as `SourceSites`."""

    dictionaries: Mapping[int, LayerDictionary]

    def site_in(self, layer: int) -> str:
        """Returns the site that features of a layer read."""
        return self.dictionaries[layer].site_in

    def site_out(self, layer: int) -> str:
        """Returns the site to which features of a layer write."""
        return self.dictionaries[layer].site_out

    def outputs(self, layer: int) -> tuple[int, ...]:
        """Returns the layers that features of `layer` write to, in ascending order."""
        return self.dictionaries[layer].outputs


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
    if change.kind == "patch" and (other is None or len(other.captured) != len(model.captured)):
        raise ValueError("the prompts of a patch differ in length; choose one with the same number of tokens")
    return place_edits(
        model.dictionaries,
        change,
        torch.ones_like(model.replaced),
        lambda position: resolve_position(position, model),
        None if other is None else lambda layer: dense_activations(other, layer),
    )


def place_edits(
    dictionaries: Mapping[int, LayerDictionary],
    change: FeatureChange,
    at: Bool[Tensor, " position"],
    resolve: Callable[[int], int],
    patch: Callable[[int], Float[Tensor, "position feature"]] | None = None,
) -> dict[int, FeatureEdit]:
    """Returns the edit of each layer that `change` names, for a text with as many positions as `at`.

    `at` marks the positions where features without a position of their own are edited, and where `keep` removes the
    other features. `resolve` converts a position that a feature names to one from the start of the text, and raises
    ValueError if there is none. `patch` returns the activations of a layer for the kind `patch`. Raises ValueError if a
    feature or dictionary does not exist.
    """
    places = [parse_feature(text) for text in change.features]
    for place in places:
        _check(dictionaries, place.layer, place.feature)
    edits = {}
    for layer in sorted({place.layer for place in places}):
        own = [place for place in places if place.layer == layer]
        # columns of the named features alone: those of all features of all layers may not fit into memory
        features = sorted({place.feature for place in own})
        column = {each: i for i, each in enumerate(features)}
        mask = torch.zeros(len(at), len(features), dtype=torch.bool, device=at.device)
        for place in own:
            position = at if place.position is None else resolve(place.position)
            mask[position, column[place.feature]] = True
        feature = torch.tensor(features, device=at.device)
        factor, offset = _affine(change, None if patch is None else patch(layer)[:, feature])
        one = torch.ones((), dtype=dictionaries[layer].dtype, device=at.device)
        keep = change.kind == "keep"
        mask = at[:, None] & ~mask if keep else mask
        edits[layer] = FeatureEdit(
            feature,
            torch.where(mask, factor, one),
            torch.where(mask, offset, torch.zeros_like(one)),
            at if keep else None,
        )
    return edits


def _affine(change: FeatureChange, patched: Tensor | None) -> tuple[float, Tensor | float]:
    """Returns the factor and the offset of an edit, where it applies. `patched` has the activations for `patch`."""
    strength = change.strength or 0.0
    match change.kind:
        case "ablate" | "keep":
            return 0.0, 0.0
        case "scale":
            return strength, 0.0
        case "clamp":
            return 0.0, strength
        case "add":
            return 1.0, strength
        case "patch":
            assert patched is not None
            return 0.0, patched


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
        add_by_layer(
            changes, {output: dictionary.write_to(change, output)[None] for output in dictionary.outputs}
        )
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


def edit_hooks(model: LinearizedModel, edits: Mapping[int, FeatureEdit]) -> dict[Site, Edit]:
    """Returns hooks that edit the activations of a pass over the prompt of `model`, with all that they write."""
    return feature_hooks(model, edits, model.replaced)


def feature_hooks(
    sites: SourceSites,
    edits: Mapping[int, FeatureEdit],
    replaced: Bool[Tensor, " position"],
    start: Callable[[], int] = lambda: 0,
) -> dict[Site, Edit]:
    """Returns hooks that edit the activations of the running pass, with all that they write.

    A pass has one sequence. It may begin at any position of the text: `start` returns the number of tokens before its
    first one. `replaced` marks the positions of the text where features can be edited, which excludes the first
    position and separators.
    """

    def change(layer: int, edit: FeatureEdit) -> Callable[[Tensor], SourceEdit]:
        dictionary = sites.dictionaries[layer]
        rows = {output: dictionary.decoder_rows(edit.feature, output) for output in dictionary.outputs}

        def at_layer(x: Tensor) -> SourceEdit:
            at, own = slice(start(), start() + x.shape[1]), x[0].to(dictionary.dtype)
            if edit.removed is not None:
                z = dictionary.encode(own)
                every = (edit(z, at) - z) * replaced[at, None]
                return lambda output, y: y + dictionary.write_to(every, output).to(y.dtype)
            z = dictionary.encode_features(own, edit.feature)
            changed = edit.change(z, at) * replaced[at, None]
            return lambda output, y: y + (changed @ rows[output]).to(y.dtype)

        return at_layer

    return edit_sources(sites, {layer: change(layer, edit) for layer, edit in edits.items()})


def _check(dictionaries: Mapping[int, LayerDictionary], layer: int, feature: int) -> None:
    if layer not in dictionaries:
        known = ", ".join(map(str, dictionaries))
        raise ValueError(f"layer {layer} has no dictionary; choose from {known}")
    width = dictionaries[layer].width
    if feature >= width:
        raise ValueError(f"layer {layer} has features 0 to {width - 1}, not {feature}; choose one of them")
