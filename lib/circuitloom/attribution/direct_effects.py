"""Direct and total effects of sources on targets in the linearized model of one prompt (Ameisen et al. 2025).

1. A target is a feature's pre-activation or a weighted sum of logits. `make_targets` computes the gradient of each
   target with respect to the residual stream before the frozen norm.
2. `LinearizedModel.backpropagate` takes this gradient to every earlier MLP output and to the embedding. The gradient
   flows through attention and skip connections.
3. Sources are features, errors, token embeddings and position embeddings. The effect of a source is the dot product of
   the source's output vector and the gradient. A feature of a cross-layer transcoder has one output vector per layer
   that it writes to, and its effect is the sum over these layers. All biases together are one further source, the
   constant.
4. `direct_effects` returns these effects. In `total_effects`, gradients also flow through active features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .linearized_model import LinearizedModel, SiteGradient

MAX_ELEMENTS = 2**25
"""Largest number of elements of a gradient [position, target, d]. Limits the number of targets per chunk."""
MAX_TARGETS_ON_CPU = 128
"""Largest number of targets per chunk on a CPU. Larger chunks exceed the cache and need more padding."""


@dataclass(frozen=True)
class AttributionTargets:
    """Scalars to attribute. The value of target i is vector[i] . stream[position[i]] + constant[i].

    The stream is the residual stream that `layer` specifies.
    """

    layer: int
    """All targets read the residual stream before the MLP of this layer.

    If `layer` is the number of layers, all targets read the final residual stream."""
    position: Int[Tensor, " target"]
    vector: Float[Tensor, "target d"]
    """Gradient of each target with respect to the residual stream before the norm."""
    constant: Float[Tensor, " target"]
    """`bias` plus the contribution of the norm's bias."""
    normed_vector: Float[Tensor, "target d"]
    """Gradient of each target with respect to the norm's output: `LinearizedModel.site_in` of the layer, or the final
    norm's output. It does not depend on the prompt."""
    bias: Float[Tensor, " target"]
    """Bias of each target. For a feature, the encoder bias."""

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.position)

    def chunks(self, elements: int) -> Iterator["AttributionTargets"]:
        """Yields consecutive chunks of targets within MAX_ELEMENTS and, on a CPU, MAX_TARGETS_ON_CPU.

        `elements` is the number of gradient elements per target. A chunk has at least one target.
        """
        most = MAX_TARGETS_ON_CPU if self.vector.device.type == "cpu" else len(self)
        size = max(1, min(most, MAX_ELEMENTS // elements))
        for low in range(0, len(self), size):
            yield self[low : low + size]

    def __getitem__(self, part: slice | Tensor) -> "AttributionTargets":
        """Returns the targets that the slice or index tensor `part` selects."""
        columns = {name: value[part] for name, value in vars(self).items() if name != "layer"}
        return AttributionTargets(self.layer, **columns)


@dataclass(frozen=True)
class SourceColumns:
    """Columns of a matrix of effects [target, source].

    The order is: active features, errors, token embeddings, position embeddings, and one constant for all biases.
    """

    active: int
    layers: int
    positions: int

    @property
    def errors(self) -> slice:
        """Columns of the errors, sorted by layer, then by position."""
        return slice(self.active, self.active + self.layers * self.positions)

    @property
    def embeddings(self) -> slice:
        """Columns of the token embeddings, sorted by position."""
        return slice(self.errors.stop, self.errors.stop + self.positions)

    @property
    def position_embeddings(self) -> slice:
        """Columns of the position embeddings, sorted by position. Effects are 0 without position embeddings."""
        return slice(self.embeddings.stop, self.embeddings.stop + self.positions)

    @property
    def constant(self) -> int:
        """Column of the constant, the effect of all biases."""
        return self.position_embeddings.stop

    def __len__(self) -> int:
        """Number of columns."""
        return self.constant + 1


def source_columns(model: LinearizedModel) -> SourceColumns:
    """Returns the columns of a matrix of effects on this prompt."""
    return SourceColumns(len(model.features), model.layers, len(model.captured))


def make_targets(
    model: LinearizedModel,
    layer: int,
    position: Int[Tensor, " target"],
    normed_vector: Float[Tensor, "target d"],
    bias: Float[Tensor, " target"],
) -> AttributionTargets:
    """Returns targets with the values normed_vector . norm(stream[position]) + bias.

    The norm precedes `LinearizedModel.site_in` of `layer`. It is the identity for resid_mid. If `layer` is the number
    of layers, the norm is the final norm. Raises ValueError if a position lies outside the prompt.
    """
    captured = model.captured
    if ((position < 0) | (position >= len(captured))).any():
        raise ValueError(
            f"positions {position.tolist()} are not all in the prompt; choose from 0 to {len(captured) - 1}"
        )
    norm = model.norm_before(layer) if layer < model.layers else captured.norm_final
    constant = bias + (normed_vector * norm.bias).sum(-1)
    return AttributionTargets(
        layer, position, norm.vjp(normed_vector, position), constant, normed_vector, bias
    )


def feature_targets(model: LinearizedModel, active: Int[Tensor, " target"]) -> AttributionTargets:
    """Returns the pre-activations of active features as targets.

    `active` holds indices into `model.features`, all in the same layer.
    """
    layers = model.features.layer[active].unique()
    assert len(layers) == 1, "all targets must lie in one layer"
    dictionary = model.dictionaries[int(layers)]
    feature, position = model.features.feature[active], model.features.position[active]
    rows = model.encoder_rows(int(layers), active)
    return make_targets(model, int(layers), position, rows, dictionary.b_enc[feature])


def logit_targets(
    model: LinearizedModel, position: Int[Tensor, " target"], weights: Float[Tensor, "target vocabulary"]
) -> AttributionTargets:
    """Returns weighted sums of next-token logits as targets: weights[i] . logits[position[i]].

    The mean over the vocabulary is subtracted from the logits.
    """
    unembedding = model.captured.unembedding
    normed_vector = weights @ unembedding.weight
    return make_targets(model, model.layers, position, normed_vector, weights @ unembedding.bias)


@torch.inference_mode()
def direct_effects(
    model: LinearizedModel, targets: AttributionTargets, out: Float[Tensor, "target source"] | None = None
) -> Float[Tensor, "target source"]:
    """Returns the direct effect of each source on each target. Direct effects are the edges of an attribution graph.

    Direct effects go through attention and skip connections, but not through other features. Each row sums to the
    target's value. `source_columns(model)` describes the columns. If `out` is given, the result is written into `out`,
    which holds zeros.
    """
    if out is None:
        out = targets.vector.new_zeros(len(targets), len(source_columns(model)))
    done = 0
    for chunk in targets.chunks(model.captured.resid_final.numel()):
        _write_target_effects(model, chunk, out[done : done + len(chunk)])
        done += len(chunk)
    return out


@torch.inference_mode()
def total_effects(model: LinearizedModel, targets: AttributionTargets) -> Float[Tensor, "target source"]:
    """Returns the total effect of each source on each target: the sum over all paths through active features.

    Active features have slope 1. In each row, the effects of errors, embeddings, position embeddings and the constant
    sum to the target's value. `source_columns(model)` describes the columns.
    """
    out = targets.vector.new_zeros(len(targets), len(source_columns(model)))
    done = 0
    for chunk in targets.chunks(model.captured.resid_final.numel()):
        _write_target_effects(model, chunk, out[done : done + len(chunk)], features=True)
        done += len(chunk)
    return out


@torch.inference_mode()
def stream_effects(
    model: LinearizedModel,
    layer: int,
    g: Float[Tensor, "position target d"],
    constant: Float[Tensor, " target"],
    features: bool = False,
    only: Int[Tensor, " target"] | None = None,
) -> Float[Tensor, "target source"]:
    """Returns the effects of each source on targets that read the input of block `layer` at several positions.

    The value of target i is sum_p g[p, i] . stream[p] + constant[i], for positions 0 to len(g) - 1. Effects are direct
    or, if `features` is True, total, as in `direct_effects` and `total_effects`. `g` is overwritten. `only` is that of
    `LinearizedModel.backpropagate_stream`.
    """
    out = g.new_zeros(g.shape[1], len(source_columns(model)))
    biases = model.constant_block_input[layer, : len(g)]
    own = constant + torch.einsum("ptd,pd->t", g, biases)
    _write_effects(model, model.backpropagate_stream(g, layer, features, only), own, out, features)
    return out


def _write_target_effects(
    model: LinearizedModel,
    targets: AttributionTargets,
    out: Float[Tensor, "target source"],
    features: bool = False,
) -> None:
    """Write one row of effects per target into `out`: total effects if `features` is True, else direct effects."""
    gradients = model.backpropagate(targets.vector, targets.position, targets.layer, features)
    _write_effects(model, gradients, _constant_effects(model, targets), out, features)


def _write_effects(
    model: LinearizedModel,
    gradients: Iterator[SiteGradient],
    constant: Float[Tensor, " target"],
    out: Float[Tensor, "target source"],
    features: bool,
) -> None:
    """Write one row of effects per target into `out`. `constant` holds the direct effects of all biases."""
    captured, columns = model.captured, source_columns(model)
    out[:, columns.constant] = constant
    for site, layer, g in gradients:
        n = len(g)
        if site != "embedding":
            errors = columns.errors.start + layer * len(captured)
            out[:, errors : errors + n] = _dot(g, model.errors[layer, :n]).T
            for writer in model.writers[layer]:
                _add_feature_effects(model, writer, layer, g, out)
            if layer in model.dictionaries:
                # features of a layer write to this layer and later ones: their effects are complete here
                active = model.active_in_layer(layer, n)
                if features and active.stop > active.start:
                    index = torch.arange(active.start, active.stop, device=out.device)
                    slope = out[:, active] / model.features.activation[active]
                    out[:, columns.constant] += slope @ _constant_effects(
                        model, feature_targets(model, index)
                    )
        else:
            out[:, columns.embeddings][:, :n] = _dot(g, captured.embedding[:n]).T
            if captured.position_embedding is not None:
                out[:, columns.position_embeddings][:, :n] = _dot(g, captured.position_embedding[:n]).T


def _constant_effects(model: LinearizedModel, targets: AttributionTargets) -> Float[Tensor, " target"]:
    """Returns the direct effect of all biases on each target, including the target's own bias."""
    stream = model.constant_stream[targets.layer, targets.position]
    return targets.constant + (targets.vector * stream).sum(-1)


def _add_feature_effects(
    model: LinearizedModel,
    layer: int,
    output: int,
    g: Float[Tensor, "position target d"],
    out: Float[Tensor, "target source"],
) -> None:
    """Add the effects of features of `layer` through what they write to `output`, where the gradient is `g`."""
    in_layer = model.active_in_layer(layer, len(g))
    outputs = model.feature_outputs(layer, in_layer, output)
    for position in range(len(g)):
        active = model.active_at(layer, position)
        if active.stop > active.start:
            own = outputs[active.start - in_layer.start : active.stop - in_layer.start]
            out[:, active] += g[position] @ own.T


def _dot(
    g: Float[Tensor, "position target d"], vectors: Float[Tensor, "position d"]
) -> Float[Tensor, "position target"]:
    return (g @ vectors[:, :, None])[:, :, 0]
