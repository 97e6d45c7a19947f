"""Reads an SAE or transcoder of sparsify: encoder.weight [F, d], W_dec [F, d], W_skip applied as x @ W_skip.T.

An SAE subtracts b_dec from its input, a transcoder does not.
"""

from pathlib import Path

from ...config.published_layer import PublishedLayer
from .folding import PublishedWeights
from .reading import check_tensors, read_tensors


def read_sparsify(file: Path, layer: PublishedLayer) -> PublishedWeights:
    """Returns the weights of an SAE or transcoder."""
    tensors = read_tensors(file)
    F, d = layer.width, layer.d_in
    shapes = {"encoder.weight": (F, d), "encoder.bias": (F,), "W_dec": (F, d), "b_dec": (d,)}
    shapes |= {"W_skip": (d, d)} if layer.skip else {}
    check_tensors(file, tensors, shapes)
    weights = PublishedWeights(
        tensors["encoder.weight"],
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        W_skip=tensors.get("W_skip"),
    )
    if not layer.settings["transcode"] and bool(weights.b_dec.any()):
        weights.subtract_from_input(weights.b_dec)
    return weights
