"""Which tokens of its context make a feature fire, by the gradient of the model itself; and which of all count."""

from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..language_model.model import LanguageModel, Site


def gradient_effects(
    model: LanguageModel,
    token: Int[Tensor, "prompt position"],
    site: Site,
    vector: Float[Tensor, "prompt d"],
    position: Int[Tensor, " prompt"],
) -> Float[Tensor, "prompt position"]:
    """Gradient times input of tokens' embeddings, of what each `vector` reads at `site` and its prompt's `position`.

    Of the model itself, nothing held or replaced: for whatever direction, of whatever dictionary.
    """
    token, position = token.to(model.device), position.to(model.device)
    seen: dict[Site, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad(), _embedding(model) as leaves:
        model.visit(token, [site], seen.__setitem__)
        here = seen[site][torch.arange(len(token), device=token.device), position]
        (gradient,) = torch.autograd.grad((here * vector.to(here)).sum(), leaves)
    return (gradient * leaves[0].detach()).sum(-1)


@contextmanager
def _embedding(model: LanguageModel):
    """Within the context, what the next pass embeds tokens as is kept, to differentiate by."""
    leaves: list[Tensor] = []

    def keep(_module, _args, output):
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1]

    handle = model.module.get_submodule(model.anatomy.embedding).register_forward_hook(keep)
    try:
        yield leaves
    finally:
        handle.remove()


def strongest(effects: Float[Tensor, "target position"], share: float) -> Bool[Tensor, "target position"]:
    """Of each target the fewest tokens whose effects, by magnitude, make up `share` of all; none where all are 0."""
    size = effects.abs()
    ordered, order = size.sort(dim=1, descending=True, stable=True)
    # what the larger ones hold without it must still fall short
    before = ordered.cumsum(1) - ordered
    kept = (before < share * ordered.sum(1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(kept).scatter_(1, order, kept)
