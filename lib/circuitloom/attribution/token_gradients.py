"""Gradient-times-input attribution of a feature to the tokens of a prompt."""

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
    """Returns gradient times input for each token embedding.

    For prompt i, vector[i] . x[position[i]] is differentiated. x is the value at `site` in the original model. Nothing
    is frozen.
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
    """Returns a mask of the fewest tokens whose |effect| sums to at least `share` of the total, for each target.

    If all effects of a target are 0, no token is marked.
    """
    size = effects.abs()
    ordered, order = size.sort(dim=1, descending=True, stable=True)
    # a token is kept if the tokens with larger effects do not reach the share by themselves
    before = ordered.cumsum(1) - ordered
    kept = (before < share * ordered.sum(1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(kept).scatter_(1, order, kept)
