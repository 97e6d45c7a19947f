"""The coordinates of Dunefsky et al. 2024: of `loss: paper`, so that their λ transfer, and of what they published.

Their transcoders read the bare normalised x (before the norm's gain and bias) less a trained bias, and write the
output centred over d (an SAE reads and writes its site as it is). Both are brought back into raw coordinates when
the dictionary is saved.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...config.dictionaries import Run
from ...language_model.model import LanguageModel
from ..dictionary import Dictionary
from .parameters import Parameters, Scales


class PaperCoordinates:
    """From raw x, y to theirs, and from their parameters to a dictionary on raw x, y."""

    def __init__(self, norm: nn.Module | None, centred: bool) -> None:
        """`norm` is the one in front of the MLP; an SAE has none, and its output is not centred either."""
        self.centred = centred
        gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        self.gain: Float[Tensor, ...] = torch.ones(1) if gain is None else gain.detach().float().cpu()
        self.bias: Float[Tensor, ...] = torch.zeros(1) if bias is None else bias.detach().float().cpu()
        if bool((self.gain == 0).any()):
            raise ValueError(
                "the paper's coordinates divide by the norm's gain, which is 0 in some dimension; "
                "train with loss: standard"
            )

    def read(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The bare normalised input."""
        return (x - self.bias.to(x.device)) / self.gain.to(x.device)

    def write(self, y: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """The output, centred over d for a transcoder."""
        return y - y.mean(-1, keepdim=True) if self.centred else y

    def initial(
        self,
        run: Run,
        x_mean: Float[Tensor, " d_in"],
        scales: Scales,
        device: torch.device | str,
        features: slice = slice(None),
    ) -> Parameters:
        """Kaiming-uniform rows of `features`, decoder rows of unit norm, both biases at the means of their data."""
        generator = torch.Generator().manual_seed(run.seed)
        d_in, d_out = len(x_mean), len(scales.y_mean)
        # the fan-in that the authors' code gives to both matrices, [d, F] and [F, d], is their second dimension
        bound = (6 / run.width) ** 0.5
        W_enc = torch.empty(run.width, d_in).uniform_(-bound, bound, generator=generator)[features].clone()
        W_dec = torch.empty(run.width, d_out).uniform_(-1, 1, generator=generator)[features]
        parameters = Parameters(
            W_enc=W_enc,
            b_enc=torch.zeros(len(W_enc)),
            W_dec=W_dec / torch.linalg.vector_norm(W_dec, dim=1, keepdim=True),
            # a copy: the mean itself belongs to the stored moments
            b_dec=self.write(scales.y_mean).clone(),
            W_skip=torch.zeros(d_out, d_in) if run.skip else None,
            b_in=self.read(x_mean),
        )
        for name, value in parameters.named():
            setattr(parameters, name, value.to(device).requires_grad_(True))
        if run.kind == "sae":
            # their SAE subtracts the bias that it adds
            parameters.b_in = parameters.b_dec
        return parameters

    @torch.no_grad()
    def to_dictionary(
        self, p: Parameters, run: Run, layer: int, y_mean: Float[Tensor, " d_out"]
    ) -> Dictionary:
        """W' = W_enc / gain, b' = b_enc - W_enc b_in - W' bias; the mean that centring took away joins b_dec.

        It is taken to be that of `y_mean` over its dimensions, whatever the token.
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
    """The coordinates of transcoders of `layer`.

    Raises ValueError where the model has no norm before its MLP, or one whose gain is 0 somewhere.
    """
    if model.anatomy.norm_mlp is None:
        raise ValueError(
            f"{model.anatomy.architecture} has no norm before its MLP; train with loss: standard"
        )
    return PaperCoordinates(model.block(layer).get_submodule(model.anatomy.norm_mlp), centred=True)


@torch.no_grad()
def drop_parallel_gradient(p: Parameters) -> None:
    """Take out of W_dec's gradient what would only change its rows' norms."""
    gradient = p.W_dec.grad
    assert gradient is not None
    gradient -= (gradient * p.W_dec).sum(1, keepdim=True) * p.W_dec


@torch.no_grad()
def restore_unit_norm(p: Parameters) -> None:
    """Bring decoder rows back to unit norm."""
    p.W_dec /= torch.linalg.vector_norm(p.W_dec, dim=1, keepdim=True)
