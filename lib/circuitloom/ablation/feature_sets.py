"""Passes in which sets of features at positions of a prompt are kept or ablated, several sets per pass.

`ablation.components` ablates a component at all positions at once. Here, each position has features of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets
from ..attribution.linearized_model import ActiveFeatures, LinearizedModel
from ..dictionaries.cross_layer import LayerDictionary, add_by_layer
from ..language_model.hooks import Edit, Site
from ..language_model.model import LanguageModel
from .interventions import SourceEdit, edit_sources, run_free, run_frozen

CHUNK_ELEMENTS = 2**24
"""Largest number of elements of an array [set, position, feature] or [layer, set, position, d]."""
MeanActivations = Mapping[int, Float[Tensor, " feature"]]
"""Maps a layer to the value that each ablated feature is set to."""


@dataclass(frozen=True)
class FeaturePlaces:
    """Features at positions of a prompt, each once, sorted by layer, position and feature. They need not fire."""

    layer: Int[Tensor, " place"]
    position: Int[Tensor, " place"]
    feature: Int[Tensor, " place"]

    def __len__(self) -> int:
        """Number of places."""
        return len(self.layer)

    def __getitem__(self, chosen: Tensor) -> "FeaturePlaces":
        """Returns the places that the mask or the ascending index tensor `chosen` selects."""
        return FeaturePlaces(self.layer[chosen], self.position[chosen], self.feature[chosen])

    @classmethod
    def of(cls, features: ActiveFeatures) -> "FeaturePlaces":
        """Returns the places of active features, in the same order."""
        return cls(features.layer, features.position, features.feature)


def set_edits(
    model: LinearizedModel,
    places: FeaturePlaces,
    weight: Float[Tensor, "set place"],
    other: float = 0.0,
    keep_errors: bool = True,
    means: MeanActivations | None = None,
) -> dict[Site, Edit]:
    """Returns hooks for a pass of the original model over the prompt, once per set.

    In set n, the activation z of a feature at a place becomes weight[n, place] z: 1 keeps it, 0 ablates it. All
    features elsewhere get the weight `other`. z is the activation in the running pass. With `means`, the value is
    weight z + (1 - weight) mean: ablated features are set to their means and not to zero.

    The errors of the running pass are kept, or, if `keep_errors` is False, set to zero. Position 0, separators and
    layers without a dictionary are never changed. The weights may require gradients.
    """
    place_layer = places.layer.contiguous()
    first = {output: min(writers) for output, writers in model.writers.items() if writers}

    def change(layer: int, dictionary: LayerDictionary) -> Callable[[Tensor], SourceEdit]:
        bounds = torch.searchsorted(place_layer, place_layer.new_tensor([layer, layer + 1])).tolist()
        own = slice(*bounds)
        key = places.position[own] * dictionary.width + places.feature[own]
        mean = None if means is None else means.get(layer)

        def read(x: Tensor) -> SourceEdit:
            number, position = model.replaced.expand(len(x), -1).nonzero(as_tuple=True)
            rows = x[number, position].to(dictionary.dtype)
            token, feature, value = dictionary.encode_sparse(rows)
            factor = torch.full_like(value, other)
            if len(key):
                wanted = position[token] * dictionary.width + feature
                place = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
                listed = key[place] == wanted
                factor = torch.where(listed, weight[:, own][number[token], place].to(value.dtype), factor)
            added = (factor - 1) * value if keep_errors else factor * value
            # entries that change nothing are left out, unless their gradient is wanted
            counted = (added != 0) | weight.requires_grad
            written = _by_output(
                dictionary,
                dictionary.write_sparse(token[counted], feature[counted], added[counted], len(rows)),
            )
            if mean is not None:
                constant = _mean_outputs(
                    dictionary, mean, places[_range(own)], weight[:, own], other, (number, position)
                )
                add_by_layer(written, constant)

            def at_output(output: int, y: Tensor) -> Tensor:
                vector = written[output]
                if not keep_errors and output == layer:
                    vector = vector + dictionary.b_dec
                    if dictionary.W_skip is not None:
                        vector = vector + rows @ dictionary.W_skip.T
                replaces = not keep_errors and first[output] == layer
                before = 0.0 if replaces else y[number, position]
                return y.index_put((number, position), (before + vector).to(y.dtype))

            return at_output

        return read

    return edit_sources(model, {layer: change(layer, each) for layer, each in model.dictionaries.items()})


def _range(part: slice) -> Int[Tensor, " place"]:
    return torch.arange(part.start, part.stop)


def _by_output(
    dictionary: LayerDictionary, written: Tensor | dict[int, Tensor]
) -> dict[int, Float[Tensor, "*token d"]]:
    return written if isinstance(written, dict) else {dictionary.layer: written}


def _mean_outputs(
    dictionary: LayerDictionary,
    mean: Float[Tensor, " feature"],
    places: FeaturePlaces,
    weight: Float[Tensor, "set place"],
    other: float,
    rows: tuple[Int[Tensor, " token"], Int[Tensor, " token"]],
) -> dict[int, Float[Tensor, "token d"]]:
    """Returns what the part (1 - weight) mean of all features writes to each output, at the rows (set, position)."""
    number, position = rows
    everywhere = _by_output(dictionary, dictionary.write((1 - other) * mean))
    result = {}
    for output, vector in everywhere.items():
        own = dictionary.written(places.feature, mean[places.feature], output)
        listed = vector.new_zeros(len(weight), int(position.max()) + 1, len(vector))
        listed.index_add_(1, places.position, (other - weight)[..., None].to(own.dtype) * own)
        result[output] = vector + listed[number, position]
    return result


def free_values(
    language_model: LanguageModel,
    model: LinearizedModel,
    places: FeaturePlaces,
    weight: Float[Tensor, "set place"],
    targets: AttributionTargets,
    other: float = 0.0,
    keep_errors: bool = True,
    means: MeanActivations | None = None,
) -> Float[Tensor, "set target"]:
    """Returns the values of targets in the original model under `set_edits`, with nothing frozen."""
    values = []
    for part in weight.split(sets_per_pass(model)):
        edits = set_edits(model, places, part, other, keep_errors, means)
        values.append(run_free(language_model, model, len(part), edits, [targets])[0])
    return torch.cat(values) if values else targets.bias.new_zeros(0, len(targets))


def frozen_values(
    model: LinearizedModel,
    places: FeaturePlaces,
    weight: Float[Tensor, "set place"],
    targets: AttributionTargets,
    keep_errors: bool = True,
) -> Float[Tensor, "set target"]:
    """Returns the values of targets in the linearized model with the weights of `set_edits`.

    `places` are those of all of `model.features`. Attention patterns, norm denominators and the activations of kept
    features keep their values on the prompt.
    """
    start = model.captured.layers[0].resid_pre[None]
    rows = []
    for own in weight:
        changes: dict[int, Tensor] = {}
        for layer in model.dictionaries:
            active = model.active_in_layer(layer, len(model.captured))
            if active.stop == active.start:
                continue
            change = own[active].to(start.dtype) - 1
            for output in model.outputs(layer):
                written = torch.zeros_like(start[0]).index_add_(
                    0, places.position[active], change[:, None] * model.feature_outputs(layer, active, output)
                )
                add_by_layer(changes, {output: written[None]})
        if not keep_errors:
            for layer in model.dictionaries:
                add_by_layer(changes, {layer: -(model.errors[layer] * model.replaced[:, None])[None]})
        rows.append(run_frozen(model, changes, start, [targets])[0])
    return torch.cat(rows)


def sets_per_pass(model: LinearizedModel) -> int:
    """Returns the number of sets that run at once within `CHUNK_ELEMENTS`, at least 1."""
    widest = max((dictionary.width for dictionary in model.dictionaries.values()), default=1)
    streams = (model.layers + 1) * model.captured.resid_final.shape[1]
    return max(1, CHUNK_ELEMENTS // (len(model.captured) * max(widest, streams)))


def set_weights(
    sets: Sequence[Int[Tensor, " _"]], n: int, kept: bool = True, like: Tensor | None = None
) -> Float[Tensor, "set place"]:
    """Returns the weights of `set_edits` for sets of places: 1 where a place is in the set, and 0 elsewhere. If `kept`
    is False, 0 in the set and 1 elsewhere."""
    weight = torch.full((len(sets), n), float(not kept), device=None if like is None else like.device)
    for row, own in zip(weight, sets, strict=True):
        row[own] = float(kept)
    return weight
