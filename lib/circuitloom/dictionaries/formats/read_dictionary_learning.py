"""Reads an SAE of dictionary_learning: a state dict (ae.pt), whose names depend on the class.

All classes but AutoEncoderNew and JumpReluAutoEncoder subtract the output's bias from the input. Activations of Gated
and JumpReLU SAEs are those of version 0.1.0. Older versions multiply them by the norms of the decoder's rows, and
divide by these norms again before the decoder. `AutoEncoder.from_pretrained` of version 0.1.0 does the same, unless
`normalize_decoder` is False.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...config.published_layer import PublishedLayer
from .folding import PublishedWeights, gated_thresholds, vector
from .reading import check_tensors, read_tensors

_DIRECT = ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
"""Classes with W_enc [d, F] and W_dec [F, d]. The others have linear layers: encoder.weight [F, d], decoder.weight
[d, F]."""
_BIAS = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
"""Names of the output's bias that are not b_dec."""
_NOT_SUBTRACTED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def read_dictionary_learning(file: Path, layer: PublishedLayer) -> PublishedWeights:
    """Returns the weights of an SAE."""
    tensors = read_tensors(file)
    name, F, d = layer.architecture, layer.width, layer.d_in
    direct, gated = name in _DIRECT, name == "GatedAutoEncoder"
    bias = _BIAS.get(name, "b_dec")
    shapes = {bias: (d,)}
    if direct:
        shapes |= {"W_enc": (d, F), "b_enc": (F,), "W_dec": (F, d)}
    else:
        shapes |= {"encoder.weight": (F, d), "decoder.weight": (d, F)}
        shapes |= dict.fromkeys(("r_mag", "gate_bias", "mag_bias") if gated else ("encoder.bias",), (F,))
    check_tensors(file, tensors, shapes)
    weights = PublishedWeights(
        tensors["W_enc"].T if direct else tensors["encoder.weight"],
        torch.zeros(F) if gated else tensors["b_enc" if direct else "encoder.bias"],
        tensors["W_dec"] if direct else tensors["decoder.weight"].T,
        tensors[bias],
        _threshold(file, tensors, layer),
    )
    if gated:
        scale, weights.threshold = gated_thresholds(
            tensors["r_mag"], tensors["gate_bias"], tensors["mag_bias"]
        )
        weights.W_enc = weights.W_enc.double() * scale[:, None]
        weights.b_enc = tensors["mag_bias"]
    if name not in _NOT_SUBTRACTED and bool(weights.b_dec.any()):
        weights.subtract_from_input(weights.b_dec)
    weights.clamp_thresholds()
    return weights


def _threshold(file: Path, tensors: dict[str, Tensor], layer: PublishedLayer) -> Tensor | None:
    """Returns the thresholds of JumpReLU and batchtopk SAEs. AutoEncoderTopK has one too, which its encoder ignores."""
    if layer.architecture == "JumpReluAutoEncoder":
        check_tensors(file, tensors, {"threshold": (layer.width,)})
        return tensors["threshold"]
    if layer.act == "batchtopk":
        check_tensors(file, tensors, {"threshold": ()})
        return vector(tensors, "threshold", layer.width)
    return None
