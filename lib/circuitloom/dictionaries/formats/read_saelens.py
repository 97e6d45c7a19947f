"""Reads an SAE or transcoder of SAELens: W_enc [d_in, F], W_dec [F, d_out], W_skip applied as x @ W_skip.T.

Folded are: the subtraction of b_dec and of the mean over d from the input, activations rescaled by decoder norms,
constant factors of inputs and of activations, and gates.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...config.published_layer import NORM_FACTOR, PublishedLayer
from .folding import PublishedWeights, decoder_norms, gated_thresholds, vector
from .reading import check_tensors, read_tensors


def read_saelens(file: Path, layer: PublishedLayer) -> PublishedWeights:
    """Returns the weights of an SAE or transcoder."""
    tensors = read_tensors(file)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").double().exp()
    F, d_in, d_out = layer.width, layer.d_in, layer.d_out
    gated = layer.architecture == "gated"
    shapes = {"W_enc": (d_in, F), "W_dec": (F, d_out), "b_dec": (d_out,)}
    shapes |= dict.fromkeys(("b_gate", "r_mag", "b_mag") if gated else ("b_enc",), (F,))
    shapes |= {"W_skip": (d_out, d_in)} if layer.skip else {}
    # batchtopk has one threshold before it is saved for inference
    single = layer.act == "batchtopk" and "topk_threshold" in tensors
    shapes |= {"threshold": (F,)} if layer.act in ("jumprelu", "batchtopk") and not (gated or single) else {}
    check_tensors(file, tensors, shapes)
    settings = layer.settings
    if single:
        tensors["threshold"] = vector(tensors, "topk_threshold", F)
    weights = PublishedWeights(
        tensors["W_enc"].T,
        torch.zeros(F) if gated else tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        tensors.get("threshold"),
        tensors.get("W_skip"),
    )
    if gated:
        scale, weights.threshold = gated_thresholds(tensors["r_mag"], tensors["b_gate"], tensors["b_mag"])
        weights.W_enc = weights.W_enc.double() * scale[:, None]
        weights.b_enc = tensors["b_mag"]
    if settings["apply_b_dec_to_input"] and bool(weights.b_dec.any()):
        weights.subtract_from_input(weights.b_dec)
    if settings["centred"] and layer.site_in != "mlp_in":
        weights.read_centred()
    if settings["rescale_acts_by_decoder_norm"]:
        # the threshold of batchtopk is for rescaled activations
        threshold, weights.threshold = weights.threshold, None
        weights.scale_features(decoder_norms(weights.W_dec))
        weights.threshold = threshold
    if (factor := settings[NORM_FACTOR]) != 1:
        weights.scale_activations(factor)
    if (finetuned := _finetuning_factor(file, tensors, layer)) is not None:
        weights.scale_rows(finetuned)
    weights.clamp_thresholds()
    return weights


def _finetuning_factor(file: Path, tensors: dict[str, Tensor], layer: PublishedLayer) -> Tensor | None:
    """Returns the factors by which old versions multiply activations before the decoder, or None if they are 1."""
    if "scaling_factor" not in tensors:
        return None
    check_tensors(file, tensors, {"scaling_factor": (layer.width,)})
    factors = tensors["scaling_factor"]
    if bool((factors == 1).all()):
        return None
    if not layer.settings["finetuning_scaling_factor"]:
        raise ValueError(
            f"{file}: has a scaling_factor, but its settings do not state finetuning_scaling_factor; copy or download "
            "it again"
        )
    return factors
