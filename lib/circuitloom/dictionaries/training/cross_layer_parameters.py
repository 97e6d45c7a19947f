"""Trainable weights of a cross-layer transcoder: initialisation, and conversion to raw activations.

Each layer has `Parameters`. Its W_dec is one matrix with the decoders to all its outputs side by side, so that one
product writes to all of them and |W_dec[i]| is the norm of a feature's concatenated decoder rows.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...config.dictionaries import Run
from ..cross_layer import CrossLayerDictionary, CrossLayerTranscoder
from .parameters import (
    INITIAL_DECODER_NORM,
    Parameters,
    Scales,
    initial_parameters,
    initial_tokens,
    raw_fields,
    unit_rows,
    with_unit_rows,
)


def output_counts(run: Run, layers: Sequence[int]) -> list[int]:
    """Returns for each layer the number of layers that its features write to: itself and those that follow it in
    `layers`, which is in ascending order."""
    return [len(run.outputs(layer, layers)) for layer in layers]


def initial_cross_layer_parameters(
    run: Run,
    xs: Sequence[Float[Tensor, "token d_in"]],
    ys: Sequence[Float[Tensor, "token d_out"]],
    x_means: Sequence[Float[Tensor, " d_in"]],
    scales: Sequence[Scales],
    counts: Sequence[int],
    features: slice,
    device: torch.device,
) -> list[Parameters]:
    """Returns the initial parameters of the features in the slice `features` of each layer.

    `xs` and `ys` are samples of raw activations, of the same tokens in all layers. A feature is initialised from one
    token, as in a transcoder of one layer (`initial_parameters`). Its decoder rows have the directions y - mean of this
    token at all its outputs, in normalised units.
    """
    parameters = []
    tokens = initial_tokens(run, len(xs[0]))[features]
    for i, count in enumerate(counts):
        own = initial_parameters(run, xs[i], ys[i], x_means[i], scales[i], features, device)
        rows = []
        for y, scale in zip(ys[i : i + count], scales[i : i + count], strict=True):
            centred = (y[tokens] - scale.y_mean.to(y.device)).to(device)
            # exactly 1 for the layer itself, so that `reach: 0` starts as transcoders of one layer do
            rows.append(centred * (scales[i].y / scale.y))
        own.W_dec = (INITIAL_DECODER_NORM * unit_rows(torch.cat(rows, dim=1))).requires_grad_(True)
        parameters.append(own)
    return parameters


@torch.no_grad()
def to_transcoder(
    parameters: Sequence[Parameters],
    run: Run,
    layers: Sequence[int],
    scales: Sequence[Scales],
    thresholds: Sequence[float],
) -> CrossLayerTranscoder:
    """Returns the trained transcoder, converted to raw activations.

    `thresholds` are a batchtopk run's thresholds on z |W_dec[i]| in each layer, in normalised units. z is in units of
    the output of the feature's own layer.
    """
    converted = []
    for i, (p, layer) in enumerate(zip(parameters, layers, strict=True)):
        unit = with_unit_rows(p)
        d_out = len(p.b_dec)
        outputs = range(i, i + unit.W_dec.shape[1] // d_out)
        # exactly 1 for the layer itself
        relative = torch.tensor([scales[o].y / scales[i].y for o in outputs], device=p.W_dec.device)
        W_dec = unit.W_dec.unflatten(1, (len(outputs), d_out)) * relative[:, None]
        fields = raw_fields(unit, run, layer, scales[i], thresholds[i])
        converted.append(
            CrossLayerDictionary(
                W_dec=W_dec,
                outputs=tuple(layers[o] for o in outputs),
                scales=tuple(scales[o].y for o in outputs),
                **fields,
            )
        )
    return CrossLayerTranscoder(converted)
