"""Gradient-times-input attribution of a feature to the tokens of its context."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..language_model.hooks import Site, capture, edited
from ..language_model.model import LanguageModel


def gradient_times_input(
    model: LanguageModel,
    token: Int[Tensor, "prompt position"],
    site: Site,
    vector: Float[Tensor, "prompt d"],
    position: Int[Tensor, " prompt"],
) -> Float[Tensor, "prompt position"]:
    """Gradient times input of each token embedding.

    The gradient is that of the dot product of `vector` and the activation at `site` and `position`. It is the gradient
    of the model itself, in which nothing is frozen or replaced. `vector` may be any direction at any site.
    """
    token, position = token.to(model.device), position.to(model.device)
    leaves: list[Tensor] = []

    def keep(_x: Tensor, y: Tensor) -> Tensor:
        leaves.append(y.detach().clone().requires_grad_())
        return leaves[-1]

    with torch.inference_mode(False), torch.enable_grad(), edited(model, {Site("embedding"): keep}):
        here = capture(model, token, [site])[site][torch.arange(len(token), device=token.device), position]
        (gradient,) = torch.autograd.grad((here * vector.to(here)).sum(), leaves)
    return (gradient * leaves[0].detach()).sum(-1)


def strongest_tokens(
    effects: Float[Tensor, "target position"], share: float
) -> Bool[Tensor, "target position"]:
    """Mask of the fewest tokens of each target whose absolute effects together reach `share` of the sum.

    It is all False for a target whose effects are all 0.
    """
    size = effects.abs()
    ordered, order = size.sort(dim=1, descending=True, stable=True)
    # a token is kept if all larger ones together do not reach the share
    before = ordered.cumsum(1) - ordered
    kept = (before < share * ordered.sum(1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(kept).scatter_(1, order, kept)
