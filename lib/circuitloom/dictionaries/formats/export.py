"""Dictionaries as other tools read them: circuit-tracer's transcoder sets, SAELens' transcoders and SAEs."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ...core.atomic_io import write_atomically
from ..dictionary import Dictionary

HOOKS = {
    "mlp_in": "blocks.{layer}.mlp.hook_in",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
}
"""What TransformerLens calls our sites."""
TRANSCODERS = {
    ("relu", False): "transcoder",
    ("relu", True): "skip_transcoder",
    ("threshold", False): "jumprelu_transcoder",
    ("threshold", True): "jumprelu_skip_transcoder",
}
"""SAELens' architectures of transcoders, by activation function and whether there is a W_skip."""
SAES = {("relu", False): "standard", ("threshold", False): "jumprelu", ("topk", False): "topk"}
"""The same, of SAEs."""


def export_circuit_tracer(
    dictionaries: Mapping[int, Dictionary],
    folder: Path | str,
    model_name: str,
    input_hook: str = "mlp.hook_in",
    output_hook: str = "mlp.hook_out",
) -> None:
    """Write transcoders of all layers, by layer, as a transcoder set of circuit-tracer 0.5.

    `model_name` and the hooks go into config.yaml as they are; the hooks' defaults read what an MLP reads and write
    what it gives. Raises ValueError where circuit-tracer could not read the set as it is meant: topk, SAEs, missing
    layers, unequal widths, W_skip in some layers only, or layers of another set in `folder`.
    """
    _check_set(dictionaries)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"layer_{layer}.safetensors": dictionary for layer, dictionary in dictionaries.items()}
    others = {file.name for file in folder.glob("layer_*.safetensors")} - files.keys()
    if others:
        raise ValueError(f"{folder}: holds {min(others)} of another set; choose an empty folder")
    for name, dictionary in files.items():
        tensors = {key: getattr(dictionary, key) for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
        threshold, skip = dictionary.threshold, dictionary.W_skip
        tensors |= {} if threshold is None else {"activation_function.threshold": threshold}
        tensors |= {} if skip is None else {"W_skip": skip}
        _write(folder / name, tensors)
    config = {
        "model_name": model_name,
        "model_kind": "transcoder_set",
        "feature_input_hook": input_hook,
        "feature_output_hook": output_hook,
    }
    # a string of JSON is one of YAML
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()]
    write_atomically(folder / "config.yaml", "".join(lines).encode())


def export_saelens(
    dictionary: Dictionary,
    folder: Path | str,
    model_name: str,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
) -> None:
    """Write one dictionary as a transcoder or SAE of SAELens 6.

    Hooks are named as TransformerLens names our sites, where no other names are given. SAELens' `decode` leaves
    W_skip out; its `forward` does not. Raises ValueError where SAELens has nothing that computes the same: topk
    transcoders, SAEs with W_skip, thresholds below 0.
    """
    architecture = _architecture(dictionary)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {"hook_name": hook_name or HOOKS[dictionary.site_in].format(layer=dictionary.layer)}
    sizes = {"d_in": dictionary.d_in, "d_sae": dictionary.width}
    if not dictionary.is_sae:
        names["hook_name_out"] = hook_name_out or HOOKS[dictionary.site_out].format(layer=dictionary.layer)
        sizes["d_out"] = dictionary.d_out
    if dictionary.k is not None:
        sizes["k"] = dictionary.k
    config = {
        "architecture": architecture,
        **sizes,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # without a version SAELens takes the file for one of before 6, and drops the metadata
        "metadata": {"model_name": model_name, **names, "sae_lens_version": "6.0.0"},
    }
    tensors = {"W_enc": dictionary.W_enc.T}
    for key in ("b_enc", "W_dec", "b_dec", "threshold", "W_skip"):
        if getattr(dictionary, key) is not None:
            tensors[key] = getattr(dictionary, key)
    _write(folder / "sae_weights.safetensors", tensors)
    write_atomically(folder / "cfg.json", f"{json.dumps(config, indent=2)}\n".encode())


def _check_set(dictionaries: Mapping[int, Dictionary]) -> None:
    missing = sorted(set(range(max(dictionaries, default=0) + 1)) - set(dictionaries))
    if missing:
        raise ValueError(
            f"circuit-tracer wants every layer from 0; layer {missing[0]} is missing: train it too"
        )
    first = dictionaries[0]
    for layer, dictionary in sorted(dictionaries.items()):
        if not dictionary.is_transcoder:
            raise ValueError(
                f"layer {layer}: circuit-tracer goes through transcoders; this dictionary maps {dictionary.site_in} "
                f"to {dictionary.site_out}; name a run of transcoders"
            )
        if dictionary.act == "topk":
            raise ValueError(
                f"layer {layer}: circuit-tracer's loader knows relu and thresholds, not topk; export a run of act "
                "batchtopk, jumprelu or relu"
            )
        if dictionary.width != first.width:
            raise ValueError(
                f"layer {layer} has {dictionary.width} features, layer 0 {first.width}; circuit-tracer wants equal "
                "widths: train all layers with one"
            )
        if (dictionary.W_skip is None) != (first.W_skip is None):
            raise ValueError(
                f"layer {layer} and layer 0: one has W_skip, the other not; circuit-tracer wants it in all layers or "
                "none: train all alike"
            )


def _architecture(dictionary: Dictionary) -> str:
    kind, known = ("SAE", SAES) if dictionary.is_sae else ("transcoder", TRANSCODERS)
    act, skip = dictionary.act, dictionary.W_skip is not None
    if (act, skip) not in known:
        remedy = "train without skip" if known is SAES else "export a run of act batchtopk, jumprelu or relu"
        raise ValueError(f"SAELens has no {kind} of act {act}{' with W_skip' if skip else ''}; {remedy}")
    if dictionary.threshold is not None and bool((dictionary.threshold < 0).any()):
        raise ValueError(
            "a threshold is below 0, and SAELens takes negative activations for 0; train with another "
            "initial_threshold"
        )
    return known[act, skip]


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    # through bytes: a full disk is then an OSError like any other
    write_atomically(file, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))
