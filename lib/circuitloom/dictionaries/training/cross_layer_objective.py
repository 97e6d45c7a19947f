"""The training objective of a cross-layer transcoder: the sum over layers of the objective of one layer, in which the
features of all earlier layers take part in a layer's reconstruction."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...config.dictionaries import Run
from ..cross_layer import add_by_layer
from .collectives import SINGLE_PROCESS, Collectives
from .objective import (
    TOPK_ACTS,
    BatchActivations,
    LossTerms,
    SquaredError,
    activate,
    activate_selected,
    activate_top_k,
    auxk_loss,
    min_active,
    pre_activation_loss,
    select_entries,
    sparsity_penalty,
)
from .parameters import Parameters
from .selection import MapLayers, kth_largest, score_dtype, select_batch_top_k
from .sparse import SelectedEntries, SparsityPattern


@dataclass(frozen=True)
class DecoderGradient:
    """The gradient Z.T @ (gradient of what Z writes) of a decoder, which is computed for some features at a time.

    As a tensor it would be as large as the decoder, and each step would write it to memory and read it again.
    """

    pattern: SparsityPattern
    z: Float[Tensor, " entry"]
    written: Float[Tensor, "token d_written"]
    """Gradient of what the features write."""

    def by_rows(self, rows: int) -> Iterator[tuple[slice, Float[Tensor, "row d_written"]]]:
        """Yields (features, their gradient) for every `rows` features."""
        return self.pattern.transposed_times_by_rows(self.z, self.written, rows)


def compute_cross_layer_loss(
    layers: Sequence[Parameters],
    run: Run,
    xs: Sequence[Float[Tensor, "token d_in"]],
    ys: Sequence[Float[Tensor, "token d_out"]],
    variances: Sequence[float],
    sparsity_weight: float,
    dead: Sequence[Int[Tensor, " _"]],
    dense: bool = False,
    collectives: Collectives = SINGLE_PROCESS,
    decoder_gradients: dict[int, DecoderGradient] | None = None,
    map_layers: MapLayers = map,
) -> list[LossTerms]:
    """Returns this process's loss terms of each layer in normalised units. Their sum is the loss.

    A layer's terms are the reconstruction and AuxK of its output, and the penalty, the pre-activation loss and the
    statistics of the features that read it. The arguments are those of `objective.compute_loss`, for each layer.

    With `decoder_gradients`, the backward pass adds to it what the decoder of layer i has as gradient from the
    reconstruction, under the key i, if its products are sparse. This part is then not in `W_dec.grad`. `map_layers` can
    select the entries of several layers at a time.
    """
    tokens, n = collectives.global_tokens(len(xs[0])), len(layers)

    # activation: one layer at a time, and what its features write to all their outputs
    z, wide = [], []
    selection = _select_by_layer(layers, run, xs, dense, collectives, map_layers)
    for p, x, (selected, floor) in zip(layers, xs, selection, strict=True):
        if selected is not None and decoder_gradients is not None:
            activations = activate_selected(p, run, selected)
            written = activations.decode(p.W_dec.detach())
            written.register_hook(_stores(decoder_gradients, len(z), activations))
        else:
            activations, written = activate(p, run, x, selected, dense, collectives, floor)
        z.append(activations)
        wide.append(written.float())

    # reconstruction
    sums = sum_outputs(wide, ys[0].shape[1])
    del wide
    errors, residuals = [], []
    for p, x, y, written in zip(layers, xs, ys, sums, strict=True):
        y_hat = collectives.sum_over_features(written) + collectives.grad_on_first_rank(p.b_dec)
        if p.W_skip is not None:
            y_hat = y_hat + x @ collectives.grad_on_first_rank(p.W_skip).T
        squared_error, residual = SquaredError.apply(y, y_hat)  # type: ignore[misc]
        errors.append(squared_error)
        residuals.append(residual)

    auxiliary = [torch.zeros((), device=x.device) for x in xs]
    if run.act in TOPK_ACTS and run.aux != 0:
        for i, residual_hat in _dead_writes(layers, run, xs, dead, collectives).items():
            auxiliary[i] = auxk_loss(run, residuals[i], residual_hat, errors[i], tokens, collectives)
    if run.pre_activation > 0:
        auxiliary = [
            pre_activation_loss(p, run, x, features, variance, collectives) / tokens
            for p, x, features, variance in zip(layers, xs, dead, variances, strict=True)
        ]

    terms = []
    for i in range(n):
        p, squared_error = layers[i], errors[i]
        reconstruction = squared_error.sum() / tokens / variances[i]
        sparsity = sparsity_weight * sparsity_penalty(p, run, z[i], variances[i]) / tokens
        batchtopk = run.act == "batchtopk"
        terms.append(
            LossTerms(
                loss=reconstruction + sparsity + auxiliary[i],
                reconstruction=reconstruction.detach(),
                sparsity=sparsity.detach(),
                auxiliary=auxiliary[i].detach(),
                fvu=squared_error.detach().sum() / tokens / variances[i],
                l0=(z[i].values.detach() > 0).sum() / tokens,
                fired=z[i].fired(len(p.W_enc)),
                min_active=min_active(z[i], p.decoder_norm) if batchtopk else torch.tensor(torch.inf),
            )
        )
    return terms


def _stores(
    gradients: dict[int, DecoderGradient], layer: int, z: BatchActivations
) -> Callable[[Tensor], None]:
    """Returns a hook of what the features of `layer` write. It keeps the gradient of the decoder."""
    assert isinstance(z.pattern, SparsityPattern)
    pattern, values = z.pattern, z.values.detach()

    def store(gradient: Tensor) -> None:
        gradients[layer] = DecoderGradient(pattern, values, gradient.contiguous())

    return store


def _select_by_layer(
    layers: Sequence[Parameters],
    run: Run,
    xs: Sequence[Tensor],
    dense: bool,
    collectives: Collectives,
    map_layers: MapLayers,
) -> Iterator[tuple[SelectedEntries | None, Tensor | None]]:
    """Yields for each layer (entries that can be active, None), or (None, floor of batchtopk or None) if dense products
    should be used."""
    if run.budget == "all" and not dense and not xs[0].is_cuda:
        pairs = list(zip(layers, xs, strict=True))
        for selected in select_batch_top_k(run, pairs, collectives, map_layers):
            yield selected, None
        return
    floor = _shared_floor(layers, run, xs, dense, collectives) if run.budget == "all" else None
    # a GPU has kernels for topk only, so with a floor it computes all features
    for selected in map_layers(
        lambda p, x: None if dense else select_entries(p, run, x, collectives), layers, xs
    ):
        yield selected, floor


@torch.no_grad()
def _shared_floor(
    layers: Sequence[Parameters], run: Run, xs: Sequence[Tensor], dense: bool, collectives: Collectives
) -> Float[Tensor, ""]:
    """Returns the k * layers * tokens largest score of all layers. Scores exist for one layer at a time."""
    wanted = run.k * len(layers) * collectives.global_tokens(len(xs[0]))
    rounded = score_dtype(run) == torch.bfloat16 and not dense
    largest = []
    for p, x in zip(layers, xs, strict=True):
        bias = p.encoder_bias
        with torch.autocast(x.device.type, torch.bfloat16, enabled=rounded):
            pre = torch.nn.functional.linear(x, p.W_enc, bias).float()
        scores = (pre * p.decoder_norm).flatten()
        largest.append(scores.topk(min(wanted, len(scores)), sorted=False).values)
    return kth_largest(torch.cat(largest), wanted, collectives)


def _dead_writes(
    layers: Sequence[Parameters],
    run: Run,
    xs: Sequence[Tensor],
    dead: Sequence[Tensor],
    collectives: Collectives,
) -> dict[int, Float[Tensor, "token d_out"]]:
    """Returns AuxK's reconstruction of the residual of each layer to which dead features write, by position.

    In each layer, the d_in / 2 dead features with the largest pre-activations of a token are active.
    """
    d_in, d_out = xs[0].shape[1], len(layers[0].b_dec)
    sums: dict[int, Tensor] = {}
    for i, (p, x, features) in enumerate(zip(layers, xs, dead, strict=True)):
        n_dead = collectives.sum_feature_counts(len(features))
        if n_dead == 0:
            continue
        z_dead = activate_top_k(p, run, min(max(1, d_in // 2), n_dead), x, features, collectives)
        parts = z_dead.decode(p.W_dec.index_select(0, features)).split(d_out, dim=1)
        add_by_layer(sums, dict(enumerate(parts, i)))
    return {output: collectives.sum_over_features(total) for output, total in sums.items()}


def sum_outputs(wide: Sequence[Float[Tensor, "token _"]], d_out: int) -> list[Float[Tensor, "token d_out"]]:
    """Returns for each layer the sum of what features write to its output.

    wide[i] is what the features of layer i write to layers i, i + 1, ..., side by side.
    """
    return list(SumOutputs.apply(d_out, *wide))  # type: ignore[arg-type]


class SumOutputs(torch.autograd.Function):
    """`sum_outputs`. Each gradient takes one pass over its tensor, where slices in torch would take one per output."""

    @staticmethod
    def forward(ctx, d_out: int, *wide: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        ctx.counts = [each.shape[1] // d_out for each in wide]
        sums: list[Tensor | None] = [None] * len(wide)
        for i, each in enumerate(wide):
            for output, part in enumerate(each.split(d_out, dim=1), i):
                total = sums[output]
                # copied, because an autograd function must not return its input
                sums[output] = (
                    part.clone(memory_format=torch.contiguous_format) if total is None else total.add_(part)
                )
        return tuple(sums)  # type: ignore[return-value]

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # noqa: D102
        wide = [
            gradients[i] if count == 1 else torch.cat(gradients[i : i + count], dim=1)
            for i, count in enumerate(ctx.counts)
        ]
        return None, *wide
