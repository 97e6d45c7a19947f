"""Exports transcoders to circuit-tracer's format for transcoder sets."""

import json
from collections.abc import Mapping
from pathlib import Path

from ...core.atomic_io import write_atomically
from ..dictionary import Dictionary, save_tensors

OUTPUT_HOOKS = {"mlp_out": "mlp.hook_out", "mlp_added": "hook_mlp_out"}
"""Hook of each site that a transcoder can write. Both circuit-tracer and TransformerLens call it so."""


def export_circuit_tracer(
    dictionaries: Mapping[int, Dictionary],
    folder: Path | str,
    model_name: str,
    input_hook: str = "mlp.hook_in",
    output_hook: str | None = None,
) -> None:
    """Write the transcoders of all layers as a transcoder set of circuit-tracer 0.5.

    `dictionaries` maps each layer to a transcoder. config.yaml contains `model_name` and the two hook names. The output
    hook is by default `mlp.hook_out` for transcoders that write mlp_out, and `hook_mlp_out` for mlp_added. Raises
    ValueError if circuit-tracer cannot load the set. Possible reasons are topk, SAEs, missing layers, unequal widths,
    different sites, W_skip in only some layers, and layers of another set in `folder`.
    """
    _check_set(dictionaries)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"layer_{layer}.safetensors": dictionary for layer, dictionary in dictionaries.items()}
    others = {file.name for file in folder.glob("layer_*.safetensors")} - files.keys()
    if others:
        raise ValueError(f"{folder}: contains {min(others)} of another set; choose an empty folder")
    for name, dictionary in files.items():
        tensors = {key: getattr(dictionary, key) for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
        threshold, skip = dictionary.threshold, dictionary.W_skip
        tensors |= {} if threshold is None else {"activation_function.threshold": threshold}
        tensors |= {} if skip is None else {"W_skip": skip}
        save_tensors(folder / name, tensors)
    config = {
        "model_name": model_name,
        "model_kind": "transcoder_set",
        "feature_input_hook": input_hook,
        "feature_output_hook": output_hook or OUTPUT_HOOKS[dictionaries[0].site_out],
    }
    # every JSON string is also a YAML string
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()]
    write_atomically(folder / "config.yaml", "".join(lines).encode())


def _check_set(dictionaries: Mapping[int, Dictionary]) -> None:
    missing = sorted(set(range(max(dictionaries, default=0) + 1)) - set(dictionaries))
    if missing:
        raise ValueError(
            f"circuit-tracer needs every layer from 0; layer {missing[0]} is missing: train it too"
        )
    first = dictionaries[0]
    for layer, dictionary in sorted(dictionaries.items()):
        if not dictionary.is_transcoder:
            raise ValueError(
                f"layer {layer}: circuit-tracer needs transcoders; this dictionary maps {dictionary.site_in} to "
                f"{dictionary.site_out}; name a run of transcoders"
            )
        if dictionary.act == "topk":
            raise ValueError(
                f"layer {layer}: circuit-tracer loads relu and thresholds, not topk; export a run of act batchtopk, "
                "jumprelu or relu"
            )
        if dictionary.site_out != first.site_out:
            raise ValueError(
                f"layer {layer} writes {dictionary.site_out}, layer 0 {first.site_out}; circuit-tracer has one output "
                "hook for all layers: train all layers on one site"
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
