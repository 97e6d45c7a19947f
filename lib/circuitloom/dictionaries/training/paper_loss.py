"""Converts between raw activations and the coordinates of Dunefsky et al. 2024.

Training with `loss: paper` uses these coordinates, so that the paper's values of λ apply. The published transcoders
also use these coordinates. A transcoder's input is the norm's output without gain and bias. A trained bias is
subtracted from this input. A transcoder's output is the MLP's output minus its mean over d. SAEs use raw activations.
Saved dictionaries always use raw activations.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...config.dictionaries import Run
from ...language_model.model import LanguageModel
from ..dictionary import Dictionary
from .parameters import Parameters, Scales


class PaperCoordinates:
    """Converts raw x and y to the paper's coordinates. Also converts trained parameters to a raw dictionary."""

    def __init__(self, norm: nn.Module | None, centred: bool) -> None:
        """`norm` is the norm before the MLP, or None for an SAE. If `centred` is true, outputs are centred over d.

        Raises ValueError if the norm's gain is 0 in some dimension.
        """
        self.centred = centred
        gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        self.gain: Float[Tensor, ...] = torch.ones(1) if gain is None else gain.detach().float().cpu()
        self.bias: Float[Tensor, ...] = torch.zeros(1) if bias is None else bias.detach().float().cpu()
        if bool((self.gain == 0).any()):
            raise ValueError(
                "the paper's coordinates divide by the norm's gain, which is 0 in some dimension; "
                "train with loss: standard"
            )

    def normalise_input(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Returns (x - bias) / gain. `x` is the norm's output, with the norm's gain and bias."""
        return (x - self.bias.to(x.device)) / self.gain.to(x.device)

    def centre_output(self, y: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """Returns y minus its mean over d if `self.centred` is true. Otherwise returns y."""
        return y - y.mean(-1, keepdim=True) if self.centred else y

    def initial_parameters(
        self,
        run: Run,
        x_mean: Float[Tensor, " d_in"],
        scales: Scales,
        device: torch.device | str,
        features: slice = slice(None),
    ) -> Parameters:
        """Returns the initial parameters of the run's features in the slice `features`.

        W_enc is Kaiming-uniform. W_dec is uniform, with rows scaled to unit norm. b_in is the mean input, and b_dec is
        the mean output. For an SAE, b_in is the same tensor as b_dec. b_enc and W_skip are 0.
        """
        generator = torch.Generator().manual_seed(run.seed)
        d_in, d_out = len(x_mean), len(scales.y_mean)
        # the authors' code takes the second dimension of both matrices, [d, F] and [F, d], as fan-in
        bound = (6 / run.width) ** 0.5
        W_enc = torch.empty(run.width, d_in).uniform_(-bound, bound, generator=generator)[features].clone()
        W_dec = torch.empty(run.width, d_out).uniform_(-1, 1, generator=generator)[features]
        parameters = Parameters(
            W_enc=W_enc,
            b_enc=torch.zeros(len(W_enc)),
            W_dec=W_dec / torch.linalg.vector_norm(W_dec, dim=1, keepdim=True),
            # copied, because the mean belongs to the stored moments
            b_dec=self.centre_output(scales.y_mean).clone(),
            W_skip=torch.zeros(d_out, d_in) if run.skip else None,
            b_in=self.normalise_input(x_mean),
        )
        for name, value in parameters.named():
            setattr(parameters, name, value.to(device).requires_grad_(True))
        if run.kind == "sae":
            # the paper's SAE subtracts its output bias from the input, so b_in and b_dec are one tensor
            parameters.b_in = parameters.b_dec
        return parameters

    @torch.no_grad()
    def to_dictionary(
        self, p: Parameters, run: Run, layer: int, y_mean: Float[Tensor, " d_out"]
    ) -> Dictionary:
        """Returns the dictionary on raw x and y.

        The encoder's weight is W' = W_enc / gain. The encoder's bias is b_enc - W_enc b_in - W' bias. If outputs are
        centred, the mean of `y_mean` over d is added to b_dec. This number approximates the mean that centring
        subtracts from each output.
        """
        gain, bias = self.gain.to(p.W_enc.device), self.bias.to(p.W_enc.device)
        W_enc = p.W_enc / gain
        skip = None if p.W_skip is None else p.W_skip / gain
        b_dec = p.b_dec + (y_mean.mean().to(p.b_dec.device) if self.centred else 0)
        return Dictionary(
            W_enc=W_enc,
            b_enc=p.encoder_bias - (W_enc * bias).sum(1),
            W_dec=p.W_dec.detach().clone(),
            b_dec=b_dec if skip is None else b_dec - (skip * bias).sum(1),
            act="relu",
            W_skip=skip,
            site_in=run.site_in,
            site_out=run.site_out,
            layer=layer,
        )


def transcoder_coordinates(model: LanguageModel, layer: int) -> PaperCoordinates:
    """Returns the paper's coordinates for transcoders of `layer`.

    Raises ValueError if the model has no norm before its MLP, or if the norm's gain is 0 in some dimension.
    """
    if model.anatomy.norm_mlp is None:
        raise ValueError(
            f"{model.anatomy.architecture} has no norm before its MLP; train with loss: standard"
        )
    return PaperCoordinates(model.block(layer).get_submodule(model.anatomy.norm_mlp), centred=True)


@torch.no_grad()
def remove_parallel_gradient(p: Parameters) -> None:
    """Make the gradient of each row of W_dec orthogonal to the row."""
    gradient = p.W_dec.grad
    assert gradient is not None
    gradient -= (gradient * p.W_dec).sum(1, keepdim=True) * p.W_dec


@torch.no_grad()
def restore_unit_norm(p: Parameters) -> None:
    """Scale decoder rows to unit norm."""
    p.W_dec /= torch.linalg.vector_norm(p.W_dec, dim=1, keepdim=True)
