"""Measures the weights of norms, attention and neurons from module outputs for test inputs. Also reads the unembedding.

Parameter names are not used, because they differ between architectures.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .hooks import Site, capture, edited
from .model import LanguageModel


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm: gain * P x / sigma(x) + bias.

    If `centred` is true, P x is x minus its mean over d. Otherwise P x is x.
    """

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool

    def vjp(self, v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Returns P(gain * v), the vector-Jacobian product of the norm without its denominator sigma(x)."""
        return self.project(v * self.gain)

    def project(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Returns P x."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def denominator(
        self, x: Float[Tensor, "*batch d"], output: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch"]:
        """Returns sigma(x), including the norm's epsilon. `output` is the norm's output for x. Returns 1 if P x = 0."""
        before, after = self.gain * self.project(x), output - self.bias
        size = before.square().sum(-1)
        return torch.where(size > 0, size / (before * after).sum(-1), 1.0)


@dataclass(frozen=True)
class Attention:
    """Value and output weights of the heads of one layer.

    At position t, head h adds sum_s A_h[t, s] (x_s W_V[h] + b_V[h]) W_O[h], where x is the attention's input and A_h
    the pattern. With grouped-query attention, all heads of a group have equal value weights.
    """

    W_V: Float[Tensor, "head d d_head"]
    b_V: Float[Tensor, "head d_head"]
    W_O: Float[Tensor, "head d_head d"]
    b_O: Float[Tensor, " d"]


@dataclass(frozen=True)
class Unembedding:
    """Weights of centred logits: logits minus their mean over the vocabulary. Centring does not change
    probabilities."""

    weight: Float[Tensor, "vocabulary d"]
    """Matrix that multiplies the output of the final norm."""
    bias: Float[Tensor, " vocabulary"]
    norm: Norm
    """The final norm."""

    @property
    def rows(self) -> Float[Tensor, "vocabulary d"]:
        """Gradient of each logit with respect to the residual stream, without the norm's denominator."""
        return self.norm.vjp(self.weight)


@torch.inference_mode()
def read_norm(module: nn.Module, like: Float[Tensor, " d"]) -> Norm:
    """Measure the gain and bias of a norm, because architectures name and offset gains differently.

    `like` is a vector with the norm's width, dtype and device. The result is float64 if `like` is float64, and
    otherwise float32. Raises ValueError if the module is neither a LayerNorm nor an RMSNorm.
    """
    d = len(like)
    signs = torch.where(torch.rand(d, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    # x is large, so that the epsilon of the denominator is negligible
    x = (1000 * signs).to(like.device, torch.float64)

    def norm(value: Tensor) -> Tensor:
        return module(value.to(like.dtype)[None])[0].double()

    bias = norm(torch.zeros_like(x))
    centred = torch.allclose(norm(x + 2000), norm(x), rtol=1e-2, atol=1e-4)
    p = x - x.mean() if centred else x
    gain = (norm(x) - bias) * p.square().mean().sqrt() / p
    # check the formula on another input
    other = x + 500 * x.roll(1).cumsum(0).sin()
    p = other - other.mean() if centred else other
    if not torch.allclose(gain * p / p.square().mean().sqrt() + bias, norm(other), rtol=2e-2, atol=1e-3):
        raise ValueError(
            f"{type(module).__name__} is neither a LayerNorm nor an RMSNorm; choose another model"
        )
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return Norm(gain.to(dtype), bias.to(dtype), centred)


def read_norm_after_mlp(model: LanguageModel, layer: int) -> Norm | None:
    """Returns the norm between mlp_out and mlp_added of a layer. Returns None if the two are equal.

    A residual multiplier is returned as a norm whose denominator is 1.
    """
    weight, module = model.module.get_submodule(model.anatomy.unembedding).weight, model.norm_after_mlp(layer)
    assert isinstance(weight, Tensor)
    return scaling(model, weight[0]) if module is None else read_norm(module, weight[0])


def scaling(model: LanguageModel, like: Float[Tensor, " d"]) -> Norm | None:
    """Returns the residual multiplier as a norm whose denominator is 1. Returns None if the multiplier is 1. `like` is
    defined as in `read_norm`."""
    factor = model.residual_multiplier
    like = like.to(torch.promote_types(like.dtype, torch.float32))
    return None if factor == 1 else Norm(torch.full_like(like, factor), torch.zeros_like(like), False)


def norm_vjp(norm: Norm | None, v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Returns P(gain * v), the vector-Jacobian product through `norm` without the denominator."""
    return v if norm is None else norm.vjp(v)


def norm_jvp(norm: Norm | None, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Returns gain * P x, the Jacobian-vector product through `norm` without the denominator."""
    return x if norm is None else norm.gain * norm.project(x)


@torch.inference_mode()
def read_attention(model: LanguageModel) -> list[Attention]:
    """Measure the value and output weights of every layer on unit inputs.

    In a sequence of one token, the input of W_O is the value vectors of this token. Raises ValueError if values are not
    an affine function of the attention's input.
    """
    rows = unit_inputs(model)
    sites = [Site("heads", layer) for layer in range(model.layers)]
    with edited(model, {Site("attention_in", site.layer): lambda _x, _y: rows[:, None] for site in sites}):
        values = capture(model, torch.zeros(len(rows), 1, dtype=torch.int64), sites)
    return [_attention(model, site.layer, values[site][:, 0]) for site in sites]


def unit_inputs(model: LanguageModel) -> Float[Tensor, "d_and_two d"]:
    """Returns all unit vectors, a zero vector, and a vector that tests linearity."""
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
            f"{model.anatomy.architecture}: attention values are not an affine function of its input; "
            "choose another model"
        )
    projection = model.attention(layer).get_submodule(model.anatomy.attention_projection)
    output, b_O = _weight_and_bias(projection, weight.shape[1])
    return Attention(
        W_V=weight.unflatten(1, (heads, -1)).movedim(1, 0).contiguous(),
        b_V=bias.unflatten(0, (heads, -1)),
        W_O=output.unflatten(0, (heads, -1)),
        b_O=b_O,
    )


def read_unembedding(model: LanguageModel) -> Unembedding:
    """Returns the unembedding and the final norm, in float32 (float64 if the model is float64)."""
    module = model.module.get_submodule(model.anatomy.unembedding)
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    norm = read_norm(model.module.get_submodule(model.anatomy.norm_final), weight[0])
    weight = model.scale_logits(weight.detach().to(norm.gain.dtype).T).T
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight.dtype)
    bias = model.scale_logits(bias)
    return Unembedding(weight - weight.mean(0), bias - bias.mean(), norm)


@torch.inference_mode()
def neuron_output_weights(model: LanguageModel, layer: int) -> Float[Tensor, "neuron d"]:
    """Returns W_out of a layer's MLP, in float32."""
    projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
    return _weight_and_bias(projection, input_width(projection))[0].float()


def input_width(projection: nn.Module) -> int:
    """Returns the input width of a Linear, weight [out, in], or of GPT-2's Conv1D, weight [in, out]."""
    weight = next(projection.parameters())
    return weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0]


def _weight_and_bias(projection: nn.Module, n: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, " d"]]:
    """Returns the weight, [in, out], and the bias of `projection`, measured on n unit inputs and a zero input."""
    weight = next(projection.parameters())
    identity = torch.eye(n, dtype=weight.dtype, device=weight.device)
    bias = projection(torch.zeros_like(identity[:1]))
    return projection(identity) - bias, bias[0]
