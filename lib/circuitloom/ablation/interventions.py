"""What happens when a source is taken away: with everything else held, and with nothing held."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets, source_columns
from ..attribution.linearized_model import LinearizedModel
from ..language_model.hooks import Edit, Site, edited, observed
from ..language_model.model import LanguageModel

AT_ONCE = 2**24
"""Numbers (intervention, position, d) of one stream held at once."""

Changes = Mapping[int, Float[Tensor, "intervention position d"]]
"""Layer to what is added to the output of its MLP, in front of a norm behind it."""


def run_frozen(
    model: LinearizedModel,
    changes: Changes,
    start: Float[Tensor, "intervention position d"],
    targets: Sequence[AttributionTargets],
) -> list[Float[Tensor, "intervention _"]]:
    """The values of `targets` on the replacement model, run forward from what enters its first block.

    Patterns, denominators, errors and all features are held as they are on the prompt, but for `changes`; W_skip is
    live. `start` is what enters.
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
    """Each target before, minus after one source is taken away, everything else held; targets one after another.

    `node` are columns of `sources(model)`, the constant's not among them.
    """
    frozen = model.captured
    start = _start(model)
    before = torch.cat(run_frozen(model, {}, start[None], targets), 1)
    effects = []
    for part in node.split(_chunk(model)):
        changes = {layer: start.new_zeros(len(part), *start.shape) for layer in range(model.layers)}
        entering = start.expand(len(part), -1, -1).clone()
        for i, source in enumerate(part.tolist()):
            layer, position, vector = source_output(model, source)
            place = entering if layer is None else changes[layer]
            place[i, position] -= vector
        touched = {layer: change for layer, change in changes.items() if change.any()}
        after = torch.cat(run_frozen(model, touched, entering, targets), 1)
        effects.append(before - after)
    total = sum(len(target) for target in targets)
    return torch.cat(effects) if effects else frozen.resid_final.new_zeros(0, total)


@torch.inference_mode()
def ablate_free(
    language_model: LanguageModel,
    model: LinearizedModel,
    node: Int[Tensor, " node"],
    targets: Sequence[AttributionTargets],
) -> Float[Tensor, "node target"]:
    """As `ablate_frozen`, through the model itself with nothing held: its own MLPs answer to the change.

    A feature is taken from what the MLP then gives, as strong as it then is; an error, embedding or position as it is
    on the prompt.
    """
    before = torch.cat(run_free(language_model, model, 1, {}, {}, targets), 1)
    effects = []
    for part in node.split(_chunk(model)):
        changes, replacements = _free_changes(model, part)
        after = torch.cat(run_free(language_model, model, len(part), replacements, changes, targets), 1)
        effects.append(before - after)
    total = sum(len(target) for target in targets)
    return torch.cat(effects) if effects else model.captured.resid_final.new_zeros(0, total)


def run_free(
    language_model: LanguageModel,
    model: LinearizedModel,
    n: int,
    replacements: Mapping[int, Edit],
    entering: Mapping[int, Float[Tensor, "position d"]],
    targets: Sequence[AttributionTargets],
) -> list[Float[Tensor, "intervention _"]]:
    """The values of `targets` on n passes of the model itself, MLPs' outputs replaced, some starts changed.

    `entering` has, by number of the pass, what is added to what enters the first block.
    """
    seen: dict[Site, Tensor] = {}
    layers = sorted({target.layer for target in targets if target.layer < model.layers})

    def enter(_x: Tensor, stream: Tensor) -> Tensor:
        stream = stream.clone()
        for i, change in entering.items():
            stream[i] += change.to(stream.dtype)
        return stream

    tokens = model.captured.token.expand(n, -1)
    with ExitStack() as stack:
        edits = {Site("mlp_out", layer): edit for layer, edit in replacements.items()}
        if entering:
            edits[Site("resid_pre", 0)] = enter
        stack.enter_context(edited(language_model, edits))
        sites = [Site("mlp_in", layer) for layer in layers] + [Site("final_norm")]
        stack.enter_context(observed(language_model, sites, seen.__setitem__))
        language_model.logits(tokens)
    values = []
    for target in targets:
        site = Site("final_norm") if target.layer == model.layers else Site("mlp_in", target.layer)
        read = seen[site]
        values.append((read[:, target.position] * target.normed_vector).sum(-1) + target.bias)
    return values


def source_output(model: LinearizedModel, source: int) -> tuple[int | None, int, Float[Tensor, " d"]]:
    """Layer (None: the start of the stream), position and vector of a source, a column of `sources(model)`.

    Of a feature or error, what it adds to the MLP's output. Raises ValueError for the constant.
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
    raise ValueError("constants, and positions that a model does not learn, cannot be taken away")


def _start(model: LinearizedModel) -> Float[Tensor, "position d"]:
    positions = model.captured.position_embedding
    return model.captured.embedding if positions is None else model.captured.embedding + positions


def _chunk(model: LinearizedModel) -> int:
    """Interventions at once."""
    return max(1, AT_ONCE // (model.captured.resid_final.numel() * (model.layers + 1)))


def _free_changes(
    model: LinearizedModel, part: Int[Tensor, " node"]
) -> tuple[dict[int, Tensor], dict[int, Edit]]:
    """What is added to the start of some passes; and how MLPs' outputs change, each pass for its source alone."""
    active = source_columns(model).active
    entering: dict[int, Tensor] = {}
    features: dict[int, list[tuple[int, int, int]]] = {}
    errors: dict[int, list[tuple[int, int]]] = {}
    for i, source in enumerate(part.tolist()):
        layer, position, vector = source_output(model, source)
        if layer is None:
            entering[i] = torch.zeros_like(model.captured.embedding)
            entering[i][position] = -vector
        elif source < active:
            features.setdefault(layer, []).append((i, position, int(model.features.feature[source])))
        else:
            errors.setdefault(layer, []).append((i, position))
    replacements = {
        layer: _ablation(model, layer, features.get(layer, []), errors.get(layer, []))
        for layer in features.keys() | errors.keys()
    }
    return entering, replacements


def _ablation(
    model: LinearizedModel, layer: int, features: list[tuple[int, int, int]], errors: list[tuple[int, int]]
) -> Edit:
    """Takes one feature (pass, position, number) or error (pass, position) from the MLP's output of each pass."""

    def replace(x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        if features:
            dictionary = model.dictionaries[layer]
            i, position, feature = torch.tensor(features, device=y.device).T
            z = dictionary.encode(x[i, position])[torch.arange(len(i)), feature]
            y[i, position] = dictionary.subtract_feature(y[i, position], feature, z)
        for i, position in errors:
            y[i, position] -= model.errors[layer, position]
        return y

    return replace
