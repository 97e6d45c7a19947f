"""Exports cross-layer transcoders to circuit-tracer's format: W_enc_{l}.safetensors and W_dec_{l}.safetensors.

Version 0.5 reads relu and thresholds, without skip. It expects decoders from each layer to all later ones: what a
transcoder with a limited reach does not write is zeros in the files.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..cross_layer import CrossLayerDictionary
from ..dictionary import save_tensors


def check_clt(run: Mapping[int, CrossLayerDictionary], layers: int) -> None:
    """Raise ValueError, with the remedy, if circuit-tracer cannot load the cross-layer transcoder. `layers` is the
    number of layers of the model."""
    missing = sorted(set(range(layers)) - set(run))
    if missing:
        raise ValueError(
            f"circuit-tracer needs a cross-layer transcoder of all {layers} layers; layer {missing[0]} is missing: "
            "train one with activations.layers: all, or export transcoders of one layer"
        )
    for layer, dictionary in run.items():
        if dictionary.act == "topk":
            raise ValueError(
                f"layer {layer} is topk; circuit-tracer's cross-layer transcoders have relu or thresholds: train with "
                "batchtopk, which is saved with thresholds"
            )
        if dictionary.W_skip is not None:
            raise ValueError(
                f"layer {layer} has W_skip; circuit-tracer's files of cross-layer transcoders have none: train without "
                "skip"
            )
        first = run[0]
        if dictionary.act != first.act or dictionary.width != first.width:
            raise ValueError(
                f"layer {layer} has {dictionary.width} features ({dictionary.act}), layer 0 {first.width} "
                f"({first.act}); circuit-tracer needs equal layers: train all with the same keys"
            )


def clt_files(layer: int) -> list[str]:
    """Returns the names of the files of one layer."""
    return [f"W_enc_{layer}.safetensors", f"W_dec_{layer}.safetensors"]


def write_clt_layer(dictionary: CrossLayerDictionary, folder: Path, layers: int) -> None:
    """Write the files of one layer of a model of `layers` layers."""
    number = dictionary.layer
    tensors = {f"{name}_{number}": getattr(dictionary, name) for name in ("W_enc", "b_enc", "b_dec")}
    if dictionary.threshold is not None:
        tensors[f"threshold_{number}"] = dictionary.threshold
    encoder, decoder = clt_files(number)
    save_tensors(folder / encoder, tensors)
    save_tensors(folder / decoder, {f"W_dec_{number}": _all_outputs(dictionary, layers)})


def _all_outputs(dictionary: CrossLayerDictionary, layers: int) -> Tensor:
    """Returns decoders to all layers from the dictionary's own on, [feature, output, d_out]."""
    first = dictionary.layer
    if dictionary.outputs == tuple(range(first, layers)):
        return dictionary.W_dec
    padded = dictionary.W_dec.new_zeros(dictionary.width, layers - first, dictionary.d_out)
    padded[:, torch.tensor(dictionary.outputs) - first] = dictionary.W_dec
    return padded
