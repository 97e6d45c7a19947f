"""What parts of a model read from the residual stream, and write to it: norms, attention, the unembedding, neurons."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .hooks import Site, capture, edited, observed_modules
from .model import LanguageModel


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm: gain * P x / sigma(x) + bias, where P takes off the mean if `centred`."""

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool

    def vjp(self, v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """What a vector that reads after the norm is before it, the denominator left out: P(gain * v)."""
        return self.project(v * self.gain)

    def project(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """P x: the mean over d taken off, where the norm does so."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def denominator(
        self, x: Float[Tensor, "*batch d"], output: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch"]:
        """sigma(x), its epsilon included, from what the norm made of x."""
        ahead, behind = self.gain * self.project(x), output - self.bias
        size = ahead.square().sum(-1)
        # nothing comes through from nothing, whatever it is divided by
        return torch.where(size > 0, size / (ahead * behind).sum(-1), 1.0)


@dataclass(frozen=True)
class Attention:
    """What the heads of one layer do with what they attend to: head h adds A_h[t, s] (x_s W_V[h] + b_V[h]) W_O[h].

    x_s is what attention reads at s; grouped heads each have their group's values.
    """

    W_V: Float[Tensor, "head d d_head"]
    b_V: Float[Tensor, "head d_head"]
    W_O: Float[Tensor, "head d_head d"]
    b_O: Float[Tensor, " d"]


@dataclass(frozen=True)
class Unembedding:
    """The logits, their mean over tokens taken off: a change of all logits at once changes no probability."""

    weight: Float[Tensor, "vocabulary d"]
    """Reads after the final norm."""
    bias: Float[Tensor, " vocabulary"]
    norm: Norm
    """The final norm."""

    @property
    def rows(self) -> Float[Tensor, "vocabulary d"]:
        """What each logit reads in the residual stream, the norm's denominator left out: P(gain * W_U)."""
        return self.norm.vjp(self.weight)


@torch.inference_mode()
def read_norm(module: nn.Module, like: Float[Tensor, " d"]) -> Norm:
    """The norm that `module` computes, from what it does: gains are named and offset variously.

    It works on vectors that are `like` the given one, and is in float64 if that is, else in float32. Raises
    ValueError where it is neither a LayerNorm nor an RMSNorm.
    """
    d = len(like)
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
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return Norm(gain.to(dtype), bias.to(dtype), centred)


@torch.inference_mode()
def read_attention(model: LanguageModel) -> list[Attention]:
    """Values and outputs of the heads of every layer, from what attention does: no name of a matrix is needed.

    A sequence of one token attends to that token alone, so that what reaches the output matrix is its values, however
    the model lays out queries, keys and values. Raises ValueError where they are not an affine function of what
    attention reads.
    """
    rows = _unit_inputs(model)
    sites = [Site("heads", layer) for layer in range(model.layers)]
    with edited(model, {Site("attention_in", site.layer): lambda _x, _y: rows[:, None] for site in sites}):
        values = capture(model, torch.zeros(len(rows), 1, dtype=torch.int64), sites)
    return [_attention(model, site.layer, values[site][:, 0]) for site in sites]


def _unit_inputs(model: LanguageModel) -> Float[Tensor, "d_and_two d"]:
    """Unit vectors, zero, and one vector to test with."""
    weight = model.module.get_submodule(model.anatomy.unembedding).weight
    assert isinstance(weight, Tensor)
    d = weight.shape[1]
    test = torch.linspace(-1, 1, d, device=model.device, dtype=weight.dtype)
    return torch.cat(
        [torch.eye(d, device=model.device, dtype=weight.dtype), torch.zeros_like(test)[None], test[None]]
    )


def _attention(model: LanguageModel, layer: int, value: Float[Tensor, "d_and_two d_value"]) -> Attention:
    heads = model.anatomy.heads
    bias, test = value[-2], value[-1]
    weight = value[:-2] - bias
    inputs = torch.linspace(-1, 1, len(weight), device=value.device, dtype=value.dtype)
    if not torch.allclose(inputs @ weight + bias, test, rtol=1e-2, atol=1e-3 * float(value.abs().max())):
        raise ValueError(
            f"{model.anatomy.architecture}: values of attention are no affine function of its input; "
            "choose another model"
        )
    projection = model.attention(layer).get_submodule(model.anatomy.attention_projection)
    output, b_O = _rows(projection, weight.shape[1])
    return Attention(
        W_V=weight.unflatten(1, (heads, -1)).movedim(1, 0).contiguous(),
        b_V=bias.unflatten(0, (heads, -1)),
        W_O=output.unflatten(0, (heads, -1)),
        b_O=b_O,
    )


def read_unembedding(model: LanguageModel) -> Unembedding:
    """The unembedding and the norm in front of it; float64 if the model is, else float32."""
    module = model.module.get_submodule(model.anatomy.unembedding)
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    norm = read_norm(model.module.get_submodule(model.anatomy.norm_final), weight[0])
    scale = _logit_scale(model)
    weight = scale * weight.detach().to(norm.gain.dtype)
    bias = weight.new_zeros(len(weight)) if bias is None else scale * bias.detach().to(weight.dtype)
    return Unembedding(weight - weight.mean(0), bias - bias.mean(), norm)


@torch.inference_mode()
def _logit_scale(model: LanguageModel) -> float:
    """By what the model multiplies what its unembedding gives (Cohere); 1 where it does something else, as caps do."""
    outputs: dict[str, Tensor] = {}

    def keep(key: str, _args, _kwargs, output: Tensor) -> None:
        outputs[key] = output

    with observed_modules({"unembedding": model.module.get_submodule(model.anatomy.unembedding)}, keep):
        logits = model.logits(torch.zeros(1, 1, dtype=torch.int64)).double()
    given = outputs["unembedding"].double()
    scale = float((logits * given).sum() / given.square().sum())
    return (
        scale
        if torch.allclose(scale * given, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
        else 1.0
    )


@torch.inference_mode()
def neuron_output_weights(model: LanguageModel, layer: int) -> Float[Tensor, "neuron d"]:
    """What each MLP neuron of `layer` writes for an activation of 1, float32, whichever way its matrix is stored."""
    projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
    weight = next(projection.parameters())
    # a Linear holds [out, in], GPT-2's Conv1D [in, out]
    n = weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0]
    return _rows(projection, n)[0].float()


def _rows(projection: nn.Module, n: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, " d"]]:
    """What a matrix of n inputs makes of each unit input, without its bias; and its bias."""
    weight = next(projection.parameters())
    identity = torch.eye(n, dtype=weight.dtype, device=weight.device)
    bias = projection(torch.zeros_like(identity[:1]))
    return projection(identity) - bias, bias[0]
