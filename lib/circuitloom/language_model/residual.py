"""What parts of a model read from the residual stream, and write to it: norms, the unembedding, neurons."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .model import LanguageModel


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm: gain * P x / sigma(x) + bias, where P takes off the mean if `centred`."""

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool

    def pull_back(self, v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """What a vector that reads after the norm is before it, the denominator left out: P(gain * v)."""
        v = v * self.gain
        return v - v.mean(-1, keepdim=True) if self.centred else v


@torch.inference_mode()
def read_norm(module: nn.Module, d: int) -> Norm:
    """The norm that `module` computes on d dimensions, from what it does: gains are named and offset variously.

    Raises ValueError where it is neither a LayerNorm nor an RMSNorm.
    """
    like = next(module.parameters(), torch.empty(0))
    signs = torch.where(torch.rand(d, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    # large, so that the epsilon in the denominator does not count
    x = (1000 * signs).to(like.device, torch.float64)

    def norm(value: Tensor) -> Tensor:
        return module(value.to(like.dtype)[None])[0].double()

    bias = norm(torch.zeros_like(x))
    centred = torch.allclose(norm(x + 2000), norm(x), rtol=1e-2, atol=1e-4)
    p = x - x.mean() if centred else x
    gain = (norm(x) - bias) * p.square().mean().sqrt() / p
    # any other input must come out as the formula has it
    other = x + 500 * x.roll(1).cumsum(0).sin()
    p = other - other.mean() if centred else other
    if not torch.allclose(gain * p / p.square().mean().sqrt() + bias, norm(other), rtol=2e-2, atol=1e-3):
        raise ValueError(
            f"{type(module).__name__} is neither a LayerNorm nor an RMSNorm; choose another model"
        )
    return Norm(gain.float(), bias.float(), centred)


def unembedding_rows(model: LanguageModel) -> Float[Tensor, "vocabulary d"]:
    """What each logit reads in the residual stream, float32, the final norm's denominator left out.

    P(gain * W_U), with its mean over tokens taken off: a change of all logits at once changes no probability.
    """
    unembedding = model.module.get_submodule(model.anatomy.unembedding).weight
    assert isinstance(unembedding, Tensor)
    norm = read_norm(model.module.get_submodule(model.anatomy.norm_final), unembedding.shape[1])
    rows = norm.pull_back(unembedding.detach().float())
    return rows - rows.mean(0)


@torch.inference_mode()
def neuron_rows(model: LanguageModel, layer: int) -> Float[Tensor, "neuron d"]:
    """What each MLP neuron of `layer` writes for an activation of 1, float32, whichever way its matrix is stored."""
    projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
    weight = next(projection.parameters())
    # a Linear holds [out, in], GPT-2's Conv1D [in, out]
    n = weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0]
    identity = torch.eye(n, dtype=weight.dtype, device=weight.device)
    return (projection(identity) - projection(torch.zeros_like(identity[:1]))).float()
