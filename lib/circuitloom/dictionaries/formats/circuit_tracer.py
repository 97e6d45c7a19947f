"""Exports transcoders to circuit-tracer's format for transcoder sets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...config.hooks import hook_in_block
from ...core.atomic_io import write_atomically
from ..cross_layer import LayerDictionary
from ..dictionary import Dictionary, save_tensors


def export_circuit_tracer(
    dictionaries: Mapping[int, Dictionary],
    folder: Path | str,
    model_name: str,
    input_hook: str | None = None,
    output_hook: str | None = None,
) -> None:
    """Write the transcoders of all layers as a transcoder set of circuit-tracer.

    `dictionaries` maps each layer to a transcoder. config.yaml contains `model_name` and the two hook names, by default
    those of the transcoders' sites. Version 0.5.0 reads relu and thresholds. Sets of topk need the version that reads
    `activation: topk` and `k` (pull request 94). Raises ValueError if circuit-tracer cannot load the set. Possible
    reasons are SAEs, missing layers, unequal widths, different sites, topk or W_skip in only some layers, and layers of
    another set in `folder`.
    """
    check_set(dictionaries)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {layer_file(layer) for layer in dictionaries}
    others = {file.name for file in folder.glob("layer_*.safetensors")} - names
    if others:
        raise ValueError(f"{folder}: contains {min(others)} of another set; choose an empty folder")
    for layer, dictionary in dictionaries.items():
        save_tensors(folder / layer_file(layer), layer_tensors(dictionary))
    write_set_config(folder, dictionaries[0], model_name, input_hook, output_hook)


def layer_file(layer: int) -> str:
    """Returns the name of the file of one layer."""
    return f"layer_{layer}.safetensors"


def layer_tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    """Returns the tensors of a layer's file."""
    tensors = {key: getattr(dictionary, key) for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
    threshold, skip = dictionary.threshold, dictionary.W_skip
    tensors |= {} if threshold is None else {"activation_function.threshold": threshold}
    return tensors | ({} if skip is None else {"W_skip": skip})


def write_set_config(
    folder: Path,
    first: LayerDictionary,
    model_name: str,
    input_hook: str | None = None,
    output_hook: str | None = None,
) -> None:
    """Write config.yaml of the set, or of the cross-layer transcoder, whose first dictionary is `first`. circuit-tracer
    finds a set by this file."""
    config: dict[str, Any] = {
        "model_name": model_name,
        "model_kind": "transcoder_set" if isinstance(first, Dictionary) else "cross_layer_transcoder",
        "feature_input_hook": input_hook or hook_in_block(first.site_in),
        "feature_output_hook": output_hook or hook_in_block(first.site_out),
    }
    if first.act == "topk":
        config |= {"activation": "topk", "k": first.k}
    # every JSON value is also a YAML value
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()]
    write_atomically(folder / "config.yaml", "".join(lines).encode())


def check_set(dictionaries: Mapping[int, Dictionary]) -> None:
    """Raise ValueError, with the layer and the remedy, if circuit-tracer cannot load the dictionaries as a set."""
    missing = sorted(set(range(max(dictionaries, default=0) + 1)) - set(dictionaries))
    if missing:
        raise ValueError(
            f"circuit-tracer needs every layer from 0; layer {missing[0]} is missing: train it too"
        )
    first = dictionaries[0]
    for layer in sorted(dictionaries):
        # one dictionary at a time: a mapping may load each when it is asked for
        dictionary = dictionaries[layer]
        if not dictionary.is_transcoder:
            raise ValueError(
                f"layer {layer}: circuit-tracer needs transcoders; this dictionary maps {dictionary.site_in} to "
                f"{dictionary.site_out}; name a run of transcoders"
            )
        for verb, site, other in (
            ("reads", dictionary.site_in, first.site_in),
            ("writes", dictionary.site_out, first.site_out),
        ):
            if site != other:
                raise ValueError(
                    f"layer {layer} {verb} {site}, layer 0 {other}; circuit-tracer has one hook for all layers: train "
                    "all layers on one site"
                )
        if dictionary.k != first.k:
            words = [f"topk with k={each.k}" if each.k else each.act for each in (dictionary, first)]
            raise ValueError(
                f"layer {layer} is {words[0]}, layer 0 {words[1]}; circuit-tracer has one k for all layers: train all "
                "layers with one"
            )
        if dictionary.width != first.width:
            raise ValueError(
                f"layer {layer} has {dictionary.width} features, layer 0 {first.width}; circuit-tracer needs equal "
                "widths: train all layers with one width"
            )
        if (dictionary.W_skip is None) != (first.W_skip is None):
            raise ValueError(
                f"only one of layers {layer} and 0 has W_skip; circuit-tracer needs it in all layers or none: train "
                "all layers with the same skip"
            )
