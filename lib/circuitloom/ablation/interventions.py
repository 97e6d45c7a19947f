"""What happens when a source is taken away: with everything else held, and with nothing held."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets, sources
from ..attribution.linearized_model import LinearizedModel
from ..language_model.model import LanguageModel, Replacement, Site

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
    passes = model.ascend(start, lambda layer: model.written(layer) + changes.get(layer, 0.0))
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
    frozen = model.frozen
    start = _start(model)
    before = torch.cat(run_frozen(model, {}, start[None], targets), 1)
    effects = []
    for part in node.split(_chunk(model)):
        changes = {layer: start.new_zeros(len(part), *start.shape) for layer in range(model.layers)}
        entering = start.expand(len(part), -1, -1).clone()
        for i, source in enumerate(part.tolist()):
            layer, position, vector = written_by(model, source)
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
    return torch.cat(effects) if effects else model.frozen.resid_final.new_zeros(0, total)


def run_free(
    language_model: LanguageModel,
    model: LinearizedModel,
    n: int,
    replacements: Mapping[int, Replacement],
    entering: Mapping[int, Float[Tensor, "position d"]],
    targets: Sequence[AttributionTargets],
) -> list[Float[Tensor, "intervention _"]]:
    """The values of `targets` on n passes of the model itself, MLPs' outputs replaced, some starts changed.

    `entering` has, by number of the pass, what is added to what enters the first block.
    """
    seen: dict[Site, Tensor] = {}
    layers = sorted({target.layer for target in targets if target.layer < model.layers})

    def enter(stream: Tensor) -> Tensor:
        stream = stream.clone()
        for i, change in entering.items():
            stream[i] += change.to(stream.dtype)
        return stream

    tokens = model.frozen.token.expand(n, -1)
    with ExitStack() as stack:
        stack.enter_context(language_model.replacing(dict(replacements)))
        if entering:
            stack.enter_context(language_model.substituting(Site("resid_pre", 0), enter))
        sites = [Site("mlp_in", layer) for layer in layers]
        stack.enter_context(language_model.watching(sites, seen.__setitem__))
        final = stack.enter_context(_watching_final(language_model))
        language_model.logits(tokens)
    values = []
    for target in targets:
        read = final[0] if target.layer == model.layers else seen[Site("mlp_in", target.layer)]
        values.append((read[:, target.position] * target.behind).sum(-1) + target.bias)
    return values


@contextmanager
def _watching_final(language_model: LanguageModel) -> Iterator[list[Any]]:
    """What the unembedding reads, of the latest pass."""
    seen: list[Any] = []
    module = language_model.module.get_submodule(language_model.anatomy.norm_final)
    handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def written_by(model: LinearizedModel, source: int) -> tuple[int | None, int, Float[Tensor, " d"]]:
    """Layer (None: the start of the stream), position and vector of a source, a column of `sources(model)`.

    Of a feature or error, what it adds to the MLP's output. Raises ValueError for the constant.
    """
    columns = sources(model)
    length = len(model.frozen)
    if source < columns.active:
        layer, position = int(model.features.layer[source]), int(model.features.position[source])
        return layer, position, model.decoder_rows(layer, slice(source, source + 1))[0]
    if source < columns.errors.stop:
        layer, position = divmod(source - columns.errors.start, length)
        return layer, position, model.errors[layer, position]
    if source < columns.embeddings.stop:
        position = source - columns.embeddings.start
        return None, position, model.frozen.embedding[position]
    if source < columns.learned_positions.stop and model.frozen.positions is not None:
        position = source - columns.learned_positions.start
        return None, position, model.frozen.positions[position]
    raise ValueError("constants, and positions that a model does not learn, cannot be taken away")


def _start(model: LinearizedModel) -> Float[Tensor, "position d"]:
    positions = model.frozen.positions
    return model.frozen.embedding if positions is None else model.frozen.embedding + positions


def _chunk(model: LinearizedModel) -> int:
    """Interventions at once."""
    return max(1, AT_ONCE // (model.frozen.resid_final.numel() * (model.layers + 1)))


def _free_changes(
    model: LinearizedModel, part: Int[Tensor, " node"]
) -> tuple[dict[int, Tensor], dict[int, Replacement]]:
    """What is added to the start of some passes; and how MLPs' outputs change, each pass for its source alone."""
    active = sources(model).active
    entering: dict[int, Tensor] = {}
    features: dict[int, list[tuple[int, int, int]]] = {}
    errors: dict[int, list[tuple[int, int]]] = {}
    for i, source in enumerate(part.tolist()):
        layer, position, vector = written_by(model, source)
        if layer is None:
            entering[i] = torch.zeros_like(model.frozen.embedding)
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
) -> Replacement:
    """Takes one feature (pass, position, number) or error (pass, position) from the MLP's output of each pass."""

    def replace(x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        if features:
            dictionary = model.dictionaries[layer]
            i, position, feature = torch.tensor(features, device=y.device).T
            z = dictionary.encode(x[i, position])[torch.arange(len(i)), feature]
            y[i, position] -= z[:, None] * dictionary.W_dec[feature]
        for i, position in errors:
            y[i, position] -= model.errors[layer, position]
        return y

    return replace
