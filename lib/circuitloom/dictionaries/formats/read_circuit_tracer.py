"""Reads a transcoder of a set of circuit-tracer: W_enc [F, d], W_dec [F, d], W_skip applied as x @ W_skip.T.

Its thresholds are applied without ReLU, as those of `Dictionary` are, so all tensors keep their bits.
"""

from pathlib import Path

from ...config.published_layer import PublishedLayer
from .folding import PublishedWeights
from .reading import check_tensors, read_tensors

THRESHOLD = "activation_function.threshold"


def read_circuit_tracer(file: Path, layer: PublishedLayer) -> PublishedWeights:
    """Returns the weights of a transcoder."""
    tensors = read_tensors(file)
    F, d_in, d_out = layer.width, layer.d_in, layer.d_out
    shapes = {"W_enc": (F, d_in), "b_enc": (F,), "W_dec": (F, d_out), "b_dec": (d_out,)}
    shapes |= {"W_skip": (d_out, d_in)} if layer.skip else {}
    shapes |= {THRESHOLD: (F,)} if layer.act == "jumprelu" else {}
    check_tensors(file, tensors, shapes)
    return PublishedWeights(
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        tensors.get(THRESHOLD),
        tensors.get("W_skip"),
    )
