"""Direct effects on a prompt: how much of a target each source makes up, through any number of frozen heads."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .linearized_model import LinearizedModel

CARRIED = 2**25
"""Numbers, such as those of (position, target, d), that are carried down the layers at once."""
TOGETHER = 128
"""Targets that a CPU carries at once, at most: more leave the cache, and all go to the position of the last."""


@dataclass(frozen=True)
class AttributionTargets:
    """Scalars that read the residual stream, each at one position; what they read is linear on the frozen pass."""

    layer: int
    """They read in front of this layer's MLP; the number of layers stands for the end of the stream."""
    position: Int[Tensor, " target"]
    vector: Float[Tensor, "target d"]
    """What they read in the stream, in front of a norm."""
    constant: Float[Tensor, " target"]
    """What they are whatever they read: `bias`, and the norm's bias."""
    behind: Float[Tensor, "target d"]
    """What they read behind the norm, on any pass."""
    bias: Float[Tensor, " target"]
    """What is added to that."""

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.position)

    def chunks(self, numbers: int) -> Iterator["AttributionTargets"]:
        """Parts, in order, of which `CARRIED` numbers can be held at once where a target takes so many."""
        most = TOGETHER if self.vector.device.type == "cpu" else len(self)
        size = max(1, min(most, CARRIED // numbers))
        for low in range(0, len(self), size):
            yield self[low : low + size]

    def __getitem__(self, part: slice | Tensor) -> "AttributionTargets":
        """Some of them, in the order asked for."""
        columns = {name: value[part] for name, value in vars(self).items() if name != "layer"}
        return AttributionTargets(self.layer, **columns)


@dataclass(frozen=True)
class SourceColumns:
    """Columns of direct effects: active features, then errors by layer and position, then embeddings, positions by
    position, and one for all that is constant."""

    active: int
    layers: int
    positions: int

    @property
    def errors(self) -> slice:
        """Errors, layer after layer."""
        return slice(self.active, self.active + self.layers * self.positions)

    @property
    def embeddings(self) -> slice:
        """Embeddings of the tokens."""
        return slice(self.errors.stop, self.errors.stop + self.positions)

    @property
    def learned_positions(self) -> slice:
        """Embeddings of the positions; 0 where the model adds none."""
        return slice(self.embeddings.stop, self.embeddings.stop + self.positions)

    @property
    def constant(self) -> int:
        """Biases."""
        return self.learned_positions.stop

    def __len__(self) -> int:
        """Number of columns."""
        return self.constant + 1


def sources(model: LinearizedModel) -> SourceColumns:
    """The columns for a prompt."""
    return SourceColumns(len(model.features), model.layers, len(model.frozen))


def reading_targets(
    model: LinearizedModel,
    layer: int,
    position: Int[Tensor, " target"],
    behind: Float[Tensor, "target d"],
    bias: Float[Tensor, " target"],
) -> AttributionTargets:
    """Targets that read behind the norm of a layer's MLP, or behind the final norm: behind . norm(stream) + bias."""
    frozen = model.frozen
    if ((position < 0) | (position >= len(frozen))).any():
        raise ValueError(
            f"positions {position.tolist()}: the prompt has 0 to {len(frozen) - 1}; choose among them"
        )
    norm = frozen.layers[layer].norm_mlp if layer < model.layers else frozen.norm_final
    constant = bias + (behind * norm.bias).sum(-1)
    return AttributionTargets(layer, position, norm.pull_back(behind, position), constant, behind, bias)


def feature_targets(model: LinearizedModel, active: Int[Tensor, " target"]) -> AttributionTargets:
    """Pre-activations of active features of one layer, given by their places, as targets."""
    layers = model.features.layer[active].unique()
    assert len(layers) == 1, "targets of one sweep lie in one layer"
    dictionary = model.dictionaries[int(layers)]
    feature, position = model.features.feature[active], model.features.position[active]
    return reading_targets(model, int(layers), position, dictionary.W_enc[feature], dictionary.b_enc[feature])


def logit_targets(
    model: LinearizedModel, position: Int[Tensor, " target"], weights: Float[Tensor, "target vocabulary"]
) -> AttributionTargets:
    """Weighted sums of the demeaned next-token logits at positions, as targets."""
    unembedding = model.frozen.unembedding
    behind = weights @ unembedding.weight
    return reading_targets(model, model.layers, position, behind, weights @ unembedding.bias)


@torch.inference_mode()
def direct_effects(
    model: LinearizedModel, targets: AttributionTargets, out: Float[Tensor, "target source"] | None = None
) -> Float[Tensor, "target source"]:
    """What each source adds to each target; a row's sum is the target's pre-activation. Columns: `sources(model)`.

    A[t, s] of an attribution graph, the effect of s on t through any number of heads and skip paths but no other
    feature. Rows are written into `out` where it is given.
    """
    if out is None:
        out = targets.vector.new_zeros(len(targets), len(sources(model)))
    done = 0
    for chunk in targets.chunks(model.frozen.resid_final.numel()):
        _fill(model, chunk, out[done : done + len(chunk)])
        done += len(chunk)
    return out


@torch.inference_mode()
def total_effects(model: LinearizedModel, targets: AttributionTargets) -> Float[Tensor, "target source"]:
    """What goes through each source to each target, by way of all features between. Columns: `sources(model)`.

    A feature that fires gives its pre-activation as it is, so that it is gone through with a slope of 1. Errors,
    embeddings, positions and the constant, which nothing goes into, add up to a target's pre-activation.
    """
    out = targets.vector.new_zeros(len(targets), len(sources(model)))
    done = 0
    for chunk in targets.chunks(model.frozen.resid_final.numel()):
        _fill(model, chunk, out[done : done + len(chunk)], through=True)
        done += len(chunk)
    return out


def _fill(
    model: LinearizedModel,
    targets: AttributionTargets,
    out: Float[Tensor, "target source"],
    through: bool = False,
) -> None:
    """Write the targets' rows; `through` features, or with features as sources that nothing lies behind."""
    frozen, columns = model.frozen, sources(model)
    out[:, columns.constant] = _constant(model, targets)
    for part, layer, g in model.descend(targets.vector, targets.position, targets.layer, features=through):
        n = len(g)
        if part == "mlp":
            errors = columns.errors.start + layer * len(frozen)
            out[:, errors : errors + n] = _dot(g, model.errors[layer, :n]).T
            if layer in model.dictionaries:
                _read_features(model, layer, g, out)
                active = model.all_active(layer, n)
                if through and active.stop > active.start:
                    place = torch.arange(active.start, active.stop, device=out.device)
                    slope = out[:, active] / model.features.activation[active]
                    out[:, columns.constant] += slope @ _constant(model, feature_targets(model, place))
        elif part == "start":
            out[:, columns.embeddings][:, :n] = _dot(g, frozen.embedding[:n]).T
            if frozen.positions is not None:
                out[:, columns.learned_positions][:, :n] = _dot(g, frozen.positions[:n]).T


def _constant(model: LinearizedModel, targets: AttributionTargets) -> Float[Tensor, " target"]:
    """What biases add to targets through heads and skip paths, their own among them."""
    stream = model.constant_stream[targets.layer, targets.position]
    return targets.constant + (targets.vector * stream).sum(-1)


def _read_features(
    model: LinearizedModel,
    layer: int,
    g: Float[Tensor, "position target d"],
    out: Float[Tensor, "target source"],
) -> None:
    every = model.all_active(layer, len(g))
    rows = model.decoder_rows(layer, every)
    for position in range(len(g)):
        active = model.active(layer, position)
        if active.stop > active.start:
            out[:, active] = g[position] @ rows[active.start - every.start : active.stop - every.start].T


def _dot(
    g: Float[Tensor, "position target d"], vectors: Float[Tensor, "position d"]
) -> Float[Tensor, "position target"]:
    return (g @ vectors[:, :, None])[:, :, 0]
