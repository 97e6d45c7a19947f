"""Exports dictionaries to sparsify's format for SAEs and transcoders (package eai-sparsify)."""

import json
from pathlib import Path

from ...core.atomic_io import write_atomically
from ...language_model.anatomy import Anatomy
from ..dictionary import Dictionary, save_tensors

WEIGHTS_FILE, CONFIG_FILE = "sae.safetensors", "cfg.json"


def export_sparsify(dictionary: Dictionary, folder: Path | str) -> None:
    """Write one topk dictionary as a sparse coder of sparsify 1.3. `folder` should be named by `hookpoint`.

    sparsify's SAEs subtract b_dec before they encode. So W_enc b_dec is added to the encoder's bias of an SAE; a
    transcoder's tensors do not change. Raises ValueError if sparsify cannot represent the dictionary.
    """
    check_coder(dictionary)
    bias = dictionary.b_enc
    if dictionary.is_sae:
        # float64, rounded once: the sum can be much larger than b_enc
        shift = dictionary.W_enc.double() @ dictionary.b_dec.double()
        bias = (bias.double() + shift).to(bias.dtype)
    tensors = {
        "encoder.weight": dictionary.W_enc,
        "encoder.bias": bias,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    tensors |= {} if dictionary.W_skip is None else {"W_skip": dictionary.W_skip}
    config = {
        "activation": "topk",
        "d_in": dictionary.d_in,
        "num_latents": dictionary.width,
        # sparsify reads it only if num_latents is 0
        "expansion_factor": max(1, dictionary.width // dictionary.d_in),
        "k": dictionary.k,
        "multi_topk": False,
        # rows of imported dictionaries have any norm, and sparsify would rescale them in training
        "normalize_decoder": False,
        "skip_connection": dictionary.W_skip is not None,
        "transcode": not dictionary.is_sae,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS_FILE, tensors)
    write_atomically(folder / CONFIG_FILE, f"{json.dumps(config, indent=2)}\n".encode())


def check_coder(dictionary: Dictionary) -> None:
    """Raise ValueError, with the remedy, if no sparse coder of sparsify computes the same function."""
    if dictionary.act != "topk":
        raise ValueError(
            f"layer {dictionary.layer}: sparsify has topk only, and this dictionary is {dictionary.act}; export a run "
            "of act topk, or export to saelens or circuit-tracer"
        )
    if dictionary.d_in != dictionary.d_out:
        raise ValueError(
            f"layer {dictionary.layer}: sparsify needs equal dimensions, and this dictionary maps {dictionary.d_in} to "
            f"{dictionary.d_out}; export to saelens"
        )


def hookpoint(dictionary: Dictionary, anatomy: Anatomy, changes_mlp_out: bool) -> str:
    """Returns sparsify's name of the place of a dictionary: a module, whose output an SAE reads.

    A transcoder reads the module's input. The name is relative to the base model, such as `layers.3.mlp`.
    `changes_mlp_out` says whether the model applies a norm or a factor to the MLP's output. Raises ValueError if no
    module has these sites.
    """
    blocks, layer = anatomy.blocks.partition(".")[2], dictionary.layer
    site_in, site_out = dictionary.site_in, dictionary.site_out
    if site_out == "mlp_added" and not changes_mlp_out:
        site_out = "mlp_out"
    if dictionary.is_sae:
        module = {
            "mlp_in": anatomy.norm_mlp,
            "mlp_out": anatomy.mlp,
            "mlp_added": anatomy.norm_mlp_after,
            "attn_added": _attention(anatomy, changes_mlp_out),
            "resid_pre": "" if layer else None,
        }.get(site_out)
    else:
        module = anatomy.mlp if (site_in, site_out) == ("mlp_in", "mlp_out") else None
    if module is None:
        reads = f"is an SAE of {site_out}" if dictionary.is_sae else f"maps {site_in} to {site_out}"
        raise ValueError(
            f"layer {layer}: sparsify names a place by a module, and no module of {anatomy.architecture} has it (this "
            f"dictionary {reads}); export to saelens"
        )
    # the residual stream before a block is the output of the block before it
    return f"{blocks}.{layer}.{module}" if module else f"{blocks}.{layer - 1}"


def _attention(anatomy: Anatomy, changes_mlp_out: bool) -> str | None:
    """Returns the module whose output attention adds to the residual stream. None if the model multiplies it first."""
    # without a norm after the MLP, a residual multiplier changes its output, and attention's too
    multiplied = changes_mlp_out and anatomy.norm_mlp_after is None
    return anatomy.norm_attention_after or (None if multiplied else anatomy.attention)
