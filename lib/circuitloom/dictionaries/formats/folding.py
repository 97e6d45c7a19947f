"""Rewrites the weights of a published dictionary so that the function stays and the form is that of `Dictionary`.

Each step is exact in real numbers and computed in float64. Tensors that no step changes keep their bits. The result is
rounded to float32 once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...language_model.model import LanguageModel
from ...language_model.residual import Norm, read_norm
from ..dictionary import DictionaryWeights


@dataclass
class PublishedWeights(DictionaryWeights):
    """Weights of a published dictionary. Every number format is allowed."""

    def subtract_from_input(self, b: Float[Tensor, " d_in"]) -> None:
        """Move a vector that the encoder subtracts from its input into b_enc."""
        self.b_enc = self.b_enc.double() - self.W_enc.double() @ b.double()

    def read_centred(self) -> None:
        """Use weights that read the input minus its mean over d on the input itself."""
        self.W_enc = self.W_enc.double() - self.W_enc.double().mean(1, keepdim=True)

    def scale_features(self, factor: Float[Tensor, " feature"]) -> None:
        """Multiply each activation z by a positive factor, and divide its decoder row by it."""
        factor = factor.double()
        self.W_enc = self.W_enc.double() * factor[:, None]
        self.b_enc = self.b_enc.double() * factor
        self.W_dec = self.W_dec.double() / factor[:, None]
        if self.threshold is not None:
            self.threshold = self.threshold.double() * factor

    def scale_rows(self, factor: Float[Tensor, " feature"]) -> None:
        """Multiply each decoder row by a factor. Activations stay."""
        self.W_dec = self.W_dec.double() * factor.double()[:, None]

    def scale_activations(self, factor: float) -> None:
        """Use weights that were made for inputs and outputs multiplied by `factor` on the original ones."""
        self.W_enc = self.W_enc.double() * factor
        self.W_dec = self.W_dec.double() / factor
        self.b_dec = self.b_dec.double() / factor

    def read_after_gain(self, norm: Norm) -> None:
        """Use weights that read the norm's output before gain and bias, (x - bias) / gain, on its output x.

        Raises ValueError, without a remedy, if the gain is 0 in some dimension.
        """
        gain, bias = norm.gain.double().cpu(), norm.bias.double().cpu()
        if bool((gain == 0).any()):
            raise ValueError(
                "the norm's gain is 0 in some dimension, so its output does not determine its input"
            )
        self.W_enc = self.W_enc.double() / gain
        if bool(bias.any()):
            self.b_enc = self.b_enc.double() - self.W_enc @ bias
        if self.W_skip is not None:
            self.W_skip = self.W_skip.double() / gain
            self.b_dec = self.b_dec.double() - self.W_skip @ bias

    def write_after_gain(self, norm: Norm) -> None:
        """Use weights that reconstruct the norm's output before gain and bias for its output."""
        gain, bias = norm.gain.double().cpu(), norm.bias.double().cpu()
        self.W_dec = self.W_dec.double() * gain
        self.b_dec = self.b_dec.double() * gain + bias

    def clamp_thresholds(self) -> None:
        """Set thresholds below 0 to 0, for formats that apply ReLU as well: z is then never negative."""
        if self.threshold is not None:
            self.threshold = self.threshold.clamp(min=0)

    def rounded(self) -> dict[str, Tensor]:
        """Returns the tensors in float32, contiguous."""
        return {name: value.to(torch.float32).contiguous() for name, value in self.named()}


def gated_thresholds(
    r_mag: Float[Tensor, " feature"], b_gate: Float[Tensor, " feature"], b_mag: Float[Tensor, " feature"]
) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Returns the factor of W_enc and the thresholds with which a gated SAE's encoder is one of act threshold.

    With u = W_enc x, a gated SAE computes relu(e^r u + b_mag) where u + b_gate > 0. With p = e^r u + b_mag, this is p
    where p > max(0, b_mag - e^r b_gate), and 0 elsewhere.
    """
    scale = r_mag.double().exp()
    return scale, (b_mag.double() - scale * b_gate.double()).clamp(min=0)


def vector(tensors: Mapping[str, Tensor], name: str, size: int) -> Tensor:
    """Returns a tensor of one value, or of `size` values, as `size` values."""
    return tensors[name].reshape(-1).expand(size)


def decoder_norms(W_dec: Float[Tensor, "feature d_out"]) -> Float[Tensor, " feature"]:
    """Returns the norms of decoder rows in float64, with 1 for rows of zeros, which write nothing at any scale."""
    norms = torch.linalg.vector_norm(W_dec.double(), dim=1)
    return torch.where(norms > 0, norms, 1.0)


def norm_before_mlp(model: LanguageModel, layer: int) -> Norm:
    """Returns the norm between resid_mid and the MLP, with the gain that the model's own weights state.

    Raises ValueError if the model has no such norm.
    """
    module = model.norm(layer, model.anatomy.norm_mlp)
    if module is None:
        raise ValueError(
            f"{model.anatomy.architecture} has no norm before its MLP, so its dictionaries cannot read that norm's "
            "output; name the files of this model"
        )
    weight = getattr(module, "weight", None)
    if weight is None:
        d = model.unembedding.get_parameter("weight").shape[1]
        return Norm(torch.ones(d), torch.zeros(d), centred=False)
    measured = read_norm(module, weight.detach())
    # Gemma's gain is 1 + weight; a measured gain has the rounding of the model's number format
    stated = weight.detach().double()
    for gain in (stated, 1 + stated):
        if torch.allclose(gain, measured.gain.double(), rtol=2e-2, atol=1e-3):
            bias = getattr(module, "bias", None)
            exact = torch.zeros_like(gain) if bias is None else bias.detach().double()
            return Norm(gain, exact, measured.centred)
    return measured
