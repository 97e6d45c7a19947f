"""Reads a dictionary of Gemma Scope 1 (params.npz) or 2 (params.safetensors): W_enc [d, F], W_dec [F, d].

z = pre where pre > threshold, after ReLU. The skip connection of Gemma Scope 2 is x @ affine, not transposed.
"""

from pathlib import Path

from ...config.published_layer import PublishedLayer
from .folding import PublishedWeights
from .reading import check_tensors, read_tensors

SKIP = "affine_skip_connection"


def read_gemma_scope(file: Path, layer: PublishedLayer) -> PublishedWeights:
    """Returns the weights of an SAE or transcoder."""
    # Gemma Scope 1 writes W_enc, Gemma Scope 2 w_enc
    tensors = {name.lower(): value for name, value in read_tensors(file).items()}
    F, d_in, d_out = layer.width, layer.d_in, layer.d_out
    shapes = {"w_enc": (d_in, F), "b_enc": (F,), "w_dec": (F, d_out), "b_dec": (d_out,), "threshold": (F,)}
    shapes |= {SKIP: (d_in, d_out)} if layer.skip else {}
    check_tensors(file, tensors, shapes)
    weights = PublishedWeights(
        tensors["w_enc"].T,
        tensors["b_enc"],
        tensors["w_dec"],
        tensors["b_dec"],
        tensors["threshold"],
        tensors[SKIP].T if layer.skip else None,
    )
    weights.clamp_thresholds()
    return weights
