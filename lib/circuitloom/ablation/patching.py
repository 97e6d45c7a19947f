"""Activation patching of attention heads, and edits that replace an MLP's output."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionaries.dictionary import Dictionary
from ..language_model.hooks import Edit, ReadingEdit, Site, edited
from ..language_model.model import LanguageModel
from .metrics import Metric, RecordedPass, last_logits


@dataclass(frozen=True)
class HeadPatching:
    """Results of `patch_heads`. Each head is patched alone."""

    layer: Int[Tensor, " head"]
    head: Int[Tensor, " head"]
    effect: Float[Tensor, "head prompt"]
    """Drop of the metric on each prompt when the output of the head is patched."""
    total: Float[Tensor, " prompt"]
    """Metric on each prompt minus metric on the other prompt of the pair."""

    def order(self) -> Int[Tensor, " head"]:
        """Returns the row indices of `effect`, sorted by descending mean over prompts."""
        return self.effect.mean(1).argsort(descending=True, stable=True)


@torch.inference_mode()
def patch_heads(
    model: LanguageModel,
    token: Int[Tensor, "prompt position"],
    other: Int[Tensor, "prompt position"],
    metric: Metric,
) -> HeadPatching:
    """Patch each head alone and measure how the metric changes (activation patching).

    Prompt pair i consists of token[i] and other[i]. At the last position of token[i], the head's output is set to the
    head's output at the last position of other[i]. `metric` receives the logits at the last position of all prompts.

    Source: Vig et al. 2020 (arXiv 2004.12265), Wang et al. 2022 (arXiv 2211.00593).
    """
    outputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Edit:
        def edit(_x: Tensor, y: Tensor) -> Tensor:
            outputs[layer] = y[:, -1]
            return y

        return edit

    sites = [Site("heads", layer) for layer in range(model.layers)]
    passes = RecordedPass(model, token)
    before = metric(passes.logits)
    with edited(model, {site: keep(site.layer) for site in sites}):
        after = metric(last_logits(model, other))
    heads = model.anatomy.heads
    rows = []
    for site in sites:
        for head in range(heads):
            with edited(model, {site: _patch_head(outputs[site.layer], head, heads)}):
                rows.append(before - metric(passes.repeat(site.layer)))
    number = torch.arange(len(rows))
    return HeadPatching(number // heads, number % heads, torch.stack(rows), before - after)


def _patch_head(output: Float[Tensor, "prompt value"], head: int, heads: int) -> Edit:
    size = output.shape[1] // heads
    own = slice(head * size, (head + 1) * size)

    def edit(_x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, -1, own] = output[:, own]
        return y

    return edit


def replace_mlp(dictionary: Dictionary, where: Bool[Tensor, " position"]) -> Edit:
    """Returns an edit that sets the MLP's output to the transcoder's output at the positions in `where`.

    The error of the transcoder is not added.
    """

    def edit(x: Tensor, y: Tensor) -> Tensor:
        replaced = dictionary(x.to(dictionary.dtype)).to(y.dtype)
        return torch.where(where.to(y.device)[:, None], replaced, y)

    return ReadingEdit(dictionary.site_in, edit)


def set_mlp(value: Float[Tensor, "*position d"] | float, where: Bool[Tensor, " position"]) -> Edit:
    """Returns an edit that sets the MLP's output to `value` at the positions in `where`."""

    def edit(_x: Tensor, y: Tensor) -> Tensor:
        constant = torch.as_tensor(value, dtype=y.dtype, device=y.device)
        return torch.where(where.to(y.device)[:, None], constant, y)

    return edit


def subtract_feature(dictionary: Dictionary, feature: int, where: Bool[Tensor, " position"]) -> Edit:
    """Returns an edit that subtracts a transcoder feature from the MLP's output at the positions in `where`."""

    def edit(x: Tensor, y: Tensor) -> Tensor:
        z = dictionary.encode(x.to(dictionary.dtype))[..., feature] * where.to(y.device)
        return dictionary.subtract_feature(y, feature, z)

    return ReadingEdit(dictionary.site_in, edit)
