"""Measure how targets respond to interventions on the linearized model (frozen) and the original model (free)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets, source_columns
from ..attribution.linearized_model import LinearizedModel
from ..dictionaries.cross_layer import LayerDictionary
from ..language_model.hooks import Edit, ReadingEdit, Site, capture, edited
from ..language_model.model import LanguageModel

CHUNK_ELEMENTS = 2**24
"""Largest number of elements of an array [layer, intervention, position, d] of residual streams."""

Changes = Mapping[int, Float[Tensor, "intervention position d"]]
"""Maps a layer to the change of the MLP's output at `LinearizedModel.site_out`."""


def run_frozen(
    model: LinearizedModel,
    changes: Changes,
    start: Float[Tensor, "intervention position d"],
    targets: Sequence[AttributionTargets],
) -> list[Float[Tensor, "intervention _"]]:
    """Run the linearized model. Returns one tensor of values per item of `targets`.

    `start` is the input of the first block. `changes` are added to MLP outputs. Attention patterns, norm denominators,
    errors and unchanged features keep their values. Skip connections W_skip respond to `changes`.
    """
    values: dict[int, Tensor] = {}
    passes = model.residual_streams(start, lambda layer: model.mlp_output(layer) + changes.get(layer, 0.0))
    for layer, stream in enumerate(passes):
        for i, target in enumerate(targets):
            if target.layer == layer:
                values[i] = (stream[:, target.position] * target.vector).sum(-1) + target.constant
    return [values[i] for i in range(len(targets))]


@torch.inference_mode()
def ablate_frozen(
    model: LinearizedModel, node: Int[Tensor, " node"], targets: Sequence[AttributionTargets]
) -> Float[Tensor, "node target"]:
    """Returns the drop of each target when one source is removed from the linearized model, with all that it writes.

    `node` holds columns of `source_columns(model)`, except the constant. In the result, the targets of all items of
    `targets` are concatenated.
    """
    start = _start(model)
    before = torch.cat(run_frozen(model, {}, start[None], targets), 1)
    effects = []
    for part in node.split(_chunk(model)):
        changes = {layer: start.new_zeros(len(part), *start.shape) for layer in range(model.layers)}
        inputs = start.expand(len(part), -1, -1).clone()
        for i, source in enumerate(part.tolist()):
            position, outputs = source_outputs(model, source)
            for layer, vector in outputs.items():
                changed = inputs if layer is None else changes[layer]
                changed[i, position] -= vector
        touched = {layer: change for layer, change in changes.items() if change.any()}
        after = torch.cat(run_frozen(model, touched, inputs, targets), 1)
        effects.append(before - after)
    total = sum(len(target) for target in targets)
    return torch.cat(effects) if effects else model.captured.resid_final.new_zeros(0, total)


@torch.inference_mode()
def ablate_free(
    language_model: LanguageModel,
    model: LinearizedModel,
    node: Int[Tensor, " node"],
    targets: Sequence[AttributionTargets],
) -> Float[Tensor, "node target"]:
    """Returns the drop of each target when one source is removed from the original model.

    A feature is removed by subtracting what its activation in the running pass writes, from all its outputs. Other
    sources are removed by subtracting their values on the unmodified prompt. `node`, `targets` and the result are
    defined as in `ablate_frozen`.
    """
    before = torch.cat(run_free(language_model, model, 1, {}, targets), 1)
    effects = []
    for part in node.split(_chunk(model)):
        edits = ablation_edits(model, part)
        after = torch.cat(run_free(language_model, model, len(part), edits, targets), 1)
        effects.append(before - after)
    total = sum(len(target) for target in targets)
    return torch.cat(effects) if effects else model.captured.resid_final.new_zeros(0, total)


def run_free(
    language_model: LanguageModel,
    model: LinearizedModel,
    n: int,
    edits: Mapping[Site, Edit],
    targets: Sequence[AttributionTargets],
) -> list[Float[Tensor, "intervention _"]]:
    """Run the original model n times with `edits`. Returns one tensor of values per item of `targets`."""
    final = Site("final_norm")
    sites = [
        Site(model.site_in(target.layer), target.layer) if target.layer < model.layers else final
        for target in targets
    ]
    with edited(language_model, edits):
        # the pass ends before the unembedding
        values = capture(language_model, model.captured.token.expand(n, -1), sites)
    return [
        (values[site][:, target.position] * target.normed_vector).sum(-1) + target.bias
        for site, target in zip(sites, targets, strict=True)
    ]


def source_outputs(model: LinearizedModel, source: int) -> tuple[int, dict[int | None, Float[Tensor, " d"]]]:
    """Returns the position of a source, and what it adds to each layer that it writes to.

    `source` is a column of `source_columns(model)`. Features and errors write to `model.site_out(layer)`. Embeddings
    write to the start of the residual stream, whose key is None. Raises ValueError for the constant, and for position
    embeddings that the model does not have.
    """
    columns = source_columns(model)
    length = len(model.captured)
    if source < columns.active:
        layer, position = int(model.features.layer[source]), int(model.features.position[source])
        own = slice(source, source + 1)
        return position, {
            output: model.feature_outputs(layer, own, output)[0] for output in model.outputs(layer)
        }
    if source < columns.errors.stop:
        layer, position = divmod(source - columns.errors.start, length)
        return position, {layer: model.errors[layer, position]}
    if source < columns.embeddings.stop:
        position = source - columns.embeddings.start
        return position, {None: model.captured.embedding[position]}
    if source < columns.position_embeddings.stop and model.captured.position_embedding is not None:
        position = source - columns.position_embeddings.start
        return position, {None: model.captured.position_embedding[position]}
    raise ValueError(
        "constants, and position embeddings that a model does not have, cannot be ablated; choose another node"
    )


def _start(model: LinearizedModel) -> Float[Tensor, "position d"]:
    positions = model.captured.position_embedding
    return model.captured.embedding if positions is None else model.captured.embedding + positions


def _chunk(model: LinearizedModel) -> int:
    """Returns the number of interventions that run at once, at least 1."""
    return max(1, CHUNK_ELEMENTS // (model.captured.resid_final.numel() * (model.layers + 1)))


SourceEdit = Callable[[int, Float[Tensor, "*batch d"]], Float[Tensor, "*batch d"]]
"""Function (output, y) that returns the MLP's output y of layer `output` after an edit of sources of an earlier layer,
or of this one."""


@runtime_checkable
class SourceSites(Protocol):
    """Sites that the sources of each layer read and write. `LinearizedModel` has them for a prompt, and
    `feature_edits.RunSites` for any run."""

    @property
    def dictionaries(self) -> Mapping[int, LayerDictionary]:
        """The dictionaries by layer."""
        ...

    def site_in(self, layer: int) -> str:
        """Returns the site that features of a layer read."""
        ...

    def site_out(self, layer: int) -> str:
        """Returns the site to which features and errors of a layer write."""
        ...

    def outputs(self, layer: int) -> tuple[int, ...]:
        """Returns the layers that features of `layer` write to, in ascending order."""
        ...


def edit_sources(
    model: SourceSites, sources: Mapping[int, Callable[[Float[Tensor, "*batch d_in"]], SourceEdit]]
) -> dict[Site, Edit]:
    """Returns hooks that edit features and errors of several layers in a pass of the original model.

    In a pass, sources[l](x) is called once, at layer l. x is the value of `model.site_in(l)` in this pass, after all
    earlier edits. The result edits the outputs of all layers that sources of layer l write to, when the pass reaches
    them.
    """
    current: dict[int, SourceEdit] = {}

    def edit_output(output: int) -> Edit:
        def edit(x: Tensor, y: Tensor) -> Tensor:
            if output in sources:
                current[output] = sources[output](x)
            for layer in sorted(sources):
                if output in model.outputs(layer):
                    y = current[layer](output, y)
            return y

        return ReadingEdit(model.site_in(output), edit)

    outputs = {output for layer in sources for output in model.outputs(layer)}
    return {Site(model.site_out(output), output): edit_output(output) for output in sorted(outputs)}


def ablation_edits(model: LinearizedModel, part: Int[Tensor, " node"]) -> dict[Site, Edit]:
    """Returns hooks that remove source part[i] in forward pass i."""
    columns = source_columns(model)
    embeddings: list[tuple[int, int, Tensor]] = []
    features: dict[int, list[tuple[int, int, int]]] = {}
    errors: dict[int, list[tuple[int, int]]] = {}
    for i, source in enumerate(part.tolist()):
        if source < columns.active:
            layer, position, feature = (
                int(getattr(model.features, name)[source]) for name in ("layer", "position", "feature")
            )
            features.setdefault(layer, []).append((i, position, feature))
        elif source < columns.errors.stop:
            layer, position = divmod(source - columns.errors.start, len(model.captured))
            errors.setdefault(layer, []).append((i, position))
        else:
            position, outputs = source_outputs(model, source)
            embeddings.append((i, position, outputs[None]))

    def ablate_embeddings(_x: Tensor, stream: Tensor) -> Tensor:
        stream = stream.clone()
        for i, position, vector in embeddings:
            stream[i, position] -= vector.to(stream.dtype)
        return stream

    edits = edit_sources(
        model,
        {
            layer: _mlp_ablation(model, layer, features.get(layer, []), errors.get(layer, []))
            for layer in features.keys() | errors.keys()
        },
    )
    if embeddings:
        edits[Site("resid_pre", 0)] = ablate_embeddings
    return edits


def _mlp_ablation(
    model: LinearizedModel, layer: int, features: list[tuple[int, int, int]], errors: list[tuple[int, int]]
) -> Callable[[Tensor], SourceEdit]:
    """Returns an entry of the argument of `edit_sources` that subtracts features and errors of a layer.

    `features` holds (pass, position, feature). `errors` holds (pass, position).
    """

    def ablate(x: Tensor) -> SourceEdit:
        i, position, feature = torch.tensor(features, dtype=torch.int64, device=x.device).view(-1, 3).T
        z = model.dictionaries[layer].encode_entries(x[i, position], feature) if features else None

        def subtract(output: int, y: Tensor) -> Tensor:
            y = y.clone()
            if z is not None:
                written = model.dictionaries[layer].written(feature, z, output)
                y[i, position] = y[i, position] - written.to(y.dtype)
            for own, at in errors if output == layer else ():
                y[own, at] -= model.errors[layer, at]
            return y

        return subtract

    return ablate
