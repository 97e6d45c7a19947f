"""Published cross-layer transcoders: their files, and the description of each layer.

- circuit-tracer: W_enc_{l}.safetensors with the encoder and the biases of layer l, and W_dec_{l}.safetensors with its
  decoders to layers l, l + 1, ... (`transcoder/cross_layer_transcoder.py` of version 0.5).
- Gemma Scope 2: params_layer_{l}.safetensors, whose decoders have a row for every layer of the model.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .published_files import FoundFiles
from .published_layer import Describer, DictionaryFiles, Headers, PublishedLayer, tensor_shape

DEFAULT_HOOKS = ("hook_resid_mid", "hook_mlp_out")
"""Hooks that circuit-tracer assumes if no config.yaml names others."""
_GEMMA_HOOKS = ("mlp.hook_in", "hook_mlp_out")
_ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")
_GEMMA = re.compile(r"params_layer_(\d+)\.safetensors")


def _circuit_tracer_files(
    found: FoundFiles, key: str, folder: str | None = None
) -> Iterator[DictionaryFiles]:
    """Yields the files of each layer, in `folder` only if it is not None."""
    for name in found.names:
        inside, _, last = name.rpartition("/")
        numbered = _ENCODER.fullmatch(last)
        if not numbered or (folder is not None and inside != folder):
            continue
        decoders = f"{inside}/W_dec_{numbered[1]}.safetensors".lstrip("/")
        if not found.has(decoders):
            raise ValueError(f"{key}: {found.reference(name)} has no {decoders} next to it; download it too")
        yield DictionaryFiles(
            found.reference(name),
            None,
            f"{found.place}/{inside}",
            int(numbered[1]),
            hooks=DEFAULT_HOOKS,
            is_cross_layer=True,
            decoders=found.reference(decoders),
        )


def _gemma_scope_files(found: FoundFiles, _key: str, _folder: str | None = None) -> Iterator[DictionaryFiles]:
    for name in found.names:
        folder, _, last = name.rpartition("/")
        if numbered := _GEMMA.fullmatch(last):
            config = f"{folder}/config.json".lstrip("/")
            yield DictionaryFiles(
                found.reference(name),
                found.reference(config) if found.has(config) else None,
                f"{found.place}/{folder}",
                int(numbered[1]),
                is_cross_layer=True,
            )


CROSS_LAYER_FILES: Mapping[str, Callable[..., Iterator[DictionaryFiles]]] = {
    "circuit_tracer": _circuit_tracer_files,
    "gemma_scope": _gemma_scope_files,
}
"""Maps a format to a function (found files, config key, folder) that yields the files of each layer."""


def _circuit_tracer(files: DictionaryFiles, _settings: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """W_enc_l [F, d], and W_dec_l [F, outputs, d] in a file of its own. A tensor with thresholds means jumprelu."""
    layer, shared = files.layer, files.set_settings or {}
    if (activation := shared.get("activation", "relu")) not in ("relu", "jumprelu", "jump_relu"):
        raise ValueError(
            f"config.yaml states activation: {activation}, and cross-layer transcoders of circuit-tracer have relu or "
            "thresholds; correct config.yaml"
        )
    names = {f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec", "threshold")}
    if other := sorted(set(headers) - names):
        raise ValueError(f"has a tensor {other[0]}, whose meaning is unknown; name another set")
    assert files.decoders is not None
    read = tensor_shape(headers, f"W_enc_{layer}")
    written = tensor_shape(files.decoders.headers(), f"W_dec_{layer}", 3)
    return {
        **_sizes(f"W_enc_{layer}", read, f"W_dec_{layer}", written),
        "hooks": files.hooks or DEFAULT_HOOKS,
        "architecture": "cross_layer_transcoder",
        "act": "jumprelu" if f"threshold_{layer}" in headers else "relu",
        "model_name": shared.get("model_name"),
    }


def _gemma_scope(files: DictionaryFiles, settings: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """w_enc [d, F] and w_dec [F, layer, d]. Decoders to earlier layers are not read."""
    layer = files.layer
    if "crosscoder" in files.place or settings.get("type") == "crosscoder":
        raise ValueError(
            "it is a crosscoder, which reads several layers at once; name a cross-layer transcoder"
        )
    if settings.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise ValueError(f"its architecture is {settings['architecture']}; Gemma Scope has jump_relu")
    if "threshold" not in headers:
        raise ValueError("has no threshold, which Gemma Scope's dictionaries have; copy or download it again")
    d_in, width = tensor_shape(headers, "w_enc")
    written = tensor_shape(headers, "w_dec", 3)
    assert layer is not None
    if layer >= written[1]:
        raise ValueError(
            f"is of layer {layer}, but its decoders are those of {written[1]} layers; copy or download it again"
        )
    hooks = files.hooks or _hooks_of_layer(settings, layer)
    return {
        **_sizes("w_enc", (width, d_in), "w_dec", written),
        "outputs": written[1] - layer,
        "hooks": hooks,
        "architecture": "jump_relu",
        "act": "jumprelu",
        "l0": None,
        "skip": "affine_skip_connection" in headers,
        "model_name": settings.get("model_name") or (files.set_settings or {}).get("model_name"),
    }


DESCRIBE_CROSS_LAYER: dict[str, Describer] = {"circuit_tracer": _circuit_tracer, "gemma_scope": _gemma_scope}
"""Maps each format to the function that describes a layer of a cross-layer transcoder."""


def _hooks_of_layer(settings: Mapping[str, Any], layer: int) -> tuple[str, str]:
    """Returns the hooks that the settings of all layers state, for `layer`. By default, the norm's output before the
    MLP, and what is added to the residual stream."""

    def own(hook: str | list[str]) -> str:
        return hook[layer] if isinstance(hook, list) else re.sub(r"(?<=layers\.)[^.]+", str(layer), hook)

    read, written = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    return (own(read), own(written)) if read and written else _GEMMA_HOOKS


def _sizes(encoder: str, read: tuple[int, ...], decoder: str, written: tuple[int, ...]) -> dict[str, int]:
    """Returns the sizes of an encoder [F, d_in] and of decoders [F, output, d_out]."""
    if read[0] != written[0]:
        raise ValueError(
            f"{encoder} has {read[0]} features, but {decoder} {written[0]}; copy or download it again"
        )
    return {"width": read[0], "d_in": read[1], "d_out": written[2], "outputs": written[1]}


def check_cross_layer(layers: Mapping[int, PublishedLayer], refused: Mapping[str, str], key: str) -> None:
    """Raise ValueError if a layer of a cross-layer transcoder is missing, or if the features of a layer do not write to
    all later ones."""
    if next(iter(layers.values())).kind != "clt":
        return
    if refused:
        raise ValueError(f"{key}: {next(iter(refused.values()))}")
    first = min(layers)
    total = first + (layers[first].outputs or 0)
    if missing := sorted(set(range(total)) - set(layers)):
        raise ValueError(
            f"{key}: no file of layer {missing[0]}, and a cross-layer transcoder needs all layers from 0; download it "
            "too"
        )
    for layer, each in layers.items():
        if each.outputs != total - layer:
            raise ValueError(
                f"{key}: {each.weights} has decoders to {each.outputs} layers, but {total - layer} layers follow from "
                f"layer {layer} on; download the set again"
            )
