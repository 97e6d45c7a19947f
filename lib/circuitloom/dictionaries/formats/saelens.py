"""Exports dictionaries to SAELens' format for SAEs and transcoders."""

import json
from pathlib import Path
from typing import Protocol, runtime_checkable

from ...config.hooks import HOOKS
from ...core.atomic_io import write_atomically
from ..dictionary import Dictionary, save_tensors

TRANSCODERS = {
    ("relu", False): "transcoder",
    ("relu", True): "skip_transcoder",
    ("threshold", False): "jumprelu_transcoder",
    ("threshold", True): "jumprelu_skip_transcoder",
}
"""Maps (activation function, has W_skip) to the SAELens architecture of a transcoder."""
SAES = {("relu", False): "standard", ("threshold", False): "jumprelu", ("topk", False): "topk"}
"""Maps (activation function, has W_skip) to the SAELens architecture of an SAE."""
WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"


@runtime_checkable
class ChangesMlpOut(Protocol):
    """A language model, or what is known of it without its weights."""

    @property
    def changes_mlp_out(self) -> bool:
        """Whether mlp_added differs from mlp_out."""
        ...


def export_saelens(
    dictionary: Dictionary,
    folder: Path | str,
    model_name: str,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    model: ChangesMlpOut | None = None,
) -> None:
    """Write one dictionary as an SAE or transcoder of SAELens 6. Default hook names are those of TransformerLens.

    For mlp_out, the default is `mlp.hook_out`, which only TransformerLens' bridge has. If `model` is given and adds
    mlp_out to the residual stream as it is, the default is `hook_mlp_out`, which HookedTransformer also has.

    In SAELens, `forward` applies W_skip but `decode` does not. Raises ValueError if no SAELens architecture computes
    the same function. Possible reasons are topk transcoders, SAEs with W_skip, and thresholds below 0.
    """
    architecture = find_architecture(dictionary)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {"hook_name": hook_name or _hook(dictionary.site_in, dictionary.layer, model)}
    sizes = {"d_in": dictionary.d_in, "d_sae": dictionary.width}
    if not dictionary.is_sae:
        names["hook_name_out"] = hook_name_out or _hook(dictionary.site_out, dictionary.layer, model)
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
        # without a version SAELens assumes a file older than version 6 and drops the metadata
        "metadata": {"model_name": model_name, **names, "sae_lens_version": "6.0.0"},
    }
    tensors = {"W_enc": dictionary.W_enc.T}
    for key in ("b_enc", "W_dec", "b_dec", "threshold", "W_skip"):
        if getattr(dictionary, key) is not None:
            tensors[key] = getattr(dictionary, key)
    save_tensors(folder / WEIGHTS_FILE, tensors)
    write_atomically(folder / CONFIG_FILE, f"{json.dumps(config, indent=2)}\n".encode())


def _hook(site: str, layer: int, model: ChangesMlpOut | None) -> str:
    same = model is not None and not model.changes_mlp_out
    return HOOKS["mlp_added" if site == "mlp_out" and same else site].format(layer=layer)


def find_architecture(dictionary: Dictionary) -> str:
    """Returns the name of the SAELens architecture that computes the same function.

    Raises ValueError, with the layer and the remedy, if there is none.
    """
    kind, known = ("SAE", SAES) if dictionary.is_sae else ("transcoder", TRANSCODERS)
    act, skip = dictionary.act, dictionary.W_skip is not None
    if (act, skip) not in known:
        remedy = "train without skip" if known is SAES else "export a run of act batchtopk, jumprelu or relu"
        raise ValueError(
            f"layer {dictionary.layer}: SAELens has no {kind} of act {act}{' with W_skip' if skip else ''}; {remedy}"
        )
    if dictionary.threshold is not None and bool((dictionary.threshold < 0).any()):
        raise ValueError(
            f"layer {dictionary.layer}: a threshold is below 0, and SAELens sets negative activations to 0; train with "
            "a larger initial_threshold"
        )
    return known[act, skip]
