"""Measure how targets respond to interventions on the linearized model (frozen) and on the model itself (free)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets, source_columns
from ..attribution.linearized_model import LinearizedModel
from ..language_model.hooks import Edit, Site, edited, observed
from ..language_model.model import LanguageModel

CHUNK_ELEMENTS = 2**24
"""Largest number of elements of the residual streams [layer, intervention, position, d] that are held at once."""

Changes = Mapping[int, Float[Tensor, "intervention position d"]]
"""Maps a layer to the change of the MLP's output. A norm that follows the MLP is not applied to the change."""


def run_frozen(
    model: LinearizedModel,
    changes: Changes,
    start: Float[Tensor, "intervention position d"],
    targets: Sequence[AttributionTargets],
) -> list[Float[Tensor, "intervention _"]]:
    """Run the linearized model forward. Returns the values of `targets`, one tensor per group of targets.

    `start` is the input of the first block. `changes` are added to the outputs of MLPs. In this frozen intervention,
    these keep their values: attention patterns, norm denominators, and all errors and features that `changes` does not
    itself change. The skip connections W_skip respond to changes.
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
    """Returns the drop of each target's value when one source is removed from the linearized model.

    `node` holds the column of each source in `source_columns(model)`. The constant is not allowed. The second dimension
    of the result runs over the targets of all groups, one group after the other.
    """
    start = _start(model)
    before = torch.cat(run_frozen(model, {}, start[None], targets), 1)
    effects = []
    for part in node.split(_chunk(model)):
        changes = {layer: start.new_zeros(len(part), *start.shape) for layer in range(model.layers)}
        inputs = start.expand(len(part), -1, -1).clone()
        for i, source in enumerate(part.tolist()):
            layer, position, vector = source_output(model, source)
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
    """Returns the drop of each target's value when one source is removed from the model itself.

    Nothing is frozen. A feature is removed by subtracting what the feature writes in the running pass. An error,
    embedding or position embedding is removed by subtracting its value on the unmodified prompt. `node`, `targets` and
    the result have the same meaning as in `ablate_frozen`.
    """
    before = torch.cat(run_free(language_model, model, 1, {}, targets), 1)
    effects = []
    for part in node.split(_chunk(model)):
        edits = _ablation_edits(model, part)
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
    """Run n passes of the model itself with `edits`.

    Returns the values of `targets`, one tensor per group of targets.
    """
    final = Site("final_norm")
    sites = [Site("mlp_in", target.layer) if target.layer < model.layers else final for target in targets]
    values: dict[Site, Tensor] = {}
    with edited(language_model, edits), observed(language_model, sites, values.__setitem__):
        language_model.logits(model.captured.token.expand(n, -1))
    return [
        (values[site][:, target.position] * target.normed_vector).sum(-1) + target.bias
        for site, target in zip(sites, targets, strict=True)
    ]


def source_output(model: LinearizedModel, source: int) -> tuple[int | None, int, Float[Tensor, " d"]]:
    """Returns the layer, position and output vector of a source.

    `source` is the column of the source in `source_columns(model)`. Features and errors write to the output of the MLP
    in their layer. Embeddings write to the start of the residual stream, and their layer is None. Raises ValueError if
    the source is the constant. Also raises ValueError if the source is a position embedding and the model has no
    position embeddings.
    """
    columns = source_columns(model)
    length = len(model.captured)
    if source < columns.active:
        layer, position = int(model.features.layer[source]), int(model.features.position[source])
        return layer, position, model.feature_outputs(layer, slice(source, source + 1))[0]
    if source < columns.errors.stop:
        layer, position = divmod(source - columns.errors.start, length)
        return layer, position, model.errors[layer, position]
    if source < columns.embeddings.stop:
        position = source - columns.embeddings.start
        return None, position, model.captured.embedding[position]
    if source < columns.position_embeddings.stop and model.captured.position_embedding is not None:
        position = source - columns.position_embeddings.start
        return None, position, model.captured.position_embedding[position]
    raise ValueError(
        "constants, and position embeddings that a model does not have, cannot be ablated; choose another node"
    )


def _start(model: LinearizedModel) -> Float[Tensor, "position d"]:
    positions = model.captured.position_embedding
    return model.captured.embedding if positions is None else model.captured.embedding + positions


def _chunk(model: LinearizedModel) -> int:
    """Returns the number of interventions that run at once. The number is at least 1."""
    return max(1, CHUNK_ELEMENTS // (model.captured.resid_final.numel() * (model.layers + 1)))


def _ablation_edits(model: LinearizedModel, part: Int[Tensor, " node"]) -> dict[Site, Edit]:
    """Returns hooks that remove source number i of `part` in forward pass i."""
    active = source_columns(model).active
    embeddings: list[tuple[int, int, Tensor]] = []
    features: dict[int, list[tuple[int, int, int]]] = {}
    errors: dict[int, list[tuple[int, int]]] = {}
    for i, source in enumerate(part.tolist()):
        layer, position, vector = source_output(model, source)
        if layer is None:
            embeddings.append((i, position, vector))
        elif source < active:
            features.setdefault(layer, []).append((i, position, int(model.features.feature[source])))
        else:
            errors.setdefault(layer, []).append((i, position))

    def ablate_embeddings(_x: Tensor, stream: Tensor) -> Tensor:
        stream = stream.clone()
        for i, position, vector in embeddings:
            stream[i, position] -= vector.to(stream.dtype)
        return stream

    edits: dict[Site, Edit] = {
        Site("mlp_out", layer): _mlp_ablation(model, layer, features.get(layer, []), errors.get(layer, []))
        for layer in features.keys() | errors.keys()
    }
    if embeddings:
        edits[Site("resid_pre", 0)] = ablate_embeddings
    return edits


def _mlp_ablation(
    model: LinearizedModel, layer: int, features: list[tuple[int, int, int]], errors: list[tuple[int, int]]
) -> Edit:
    """Returns a hook at mlp_out that subtracts features and errors from the MLP's output.

    Each entry of `features` is (pass, position, feature index). Each entry of `errors` is (pass, position).
    """

    def ablate(x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        if features:
            dictionary = model.dictionaries[layer]
            i, position, feature = torch.tensor(features, device=y.device).T
            z = dictionary.encode(x[i, position])[torch.arange(len(i)), feature]
            y[i, position] = dictionary.subtract_feature(y[i, position], feature, z)
        for i, position in errors:
            y[i, position] -= model.errors[layer, position]
        return y

    return ablate
