"""The metric on passes in which MLPs are replaced or ablated, or heads patched."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...ablation.metrics import last_logits
from ...dictionaries.dictionary import Dictionary
from ...language_model.hooks import Edit, Site, capture, edited
from ...language_model.model import LanguageModel
from .prompts import Answers, YearPrompts, greater_than

Edits = Mapping[Site, Edit]
"""What is made of the values of sites."""
UNTOUCHED = "untouched"
ALL = "all MLPs replaced"


@torch.inference_mode()
def answer_logits(
    model: LanguageModel, token: Int[Tensor, "prompt position"], answers: Answers, edits: Edits
) -> Float[Tensor, "prompt answer"]:
    """Logits of the answers behind the last token of each prompt, sites edited."""
    with edited(model, edits):
        logits = last_logits(model, token)
    return logits[:, answers.token.to(logits.device)].cpu()


def measure(
    model: LanguageModel, prompts: YearPrompts, answers: Answers, edits: Edits
) -> Float[Tensor, " prompt"]:
    """The metric of each prompt, sites edited."""
    return greater_than(answer_logits(model, prompts.token, answers, edits), answers.year, prompts.start)


def replaced(dictionary: Dictionary, scored: Bool[Tensor, " position"]) -> Edit:
    """What the transcoder makes of the MLP's input, in place of the MLP's output; no error is kept."""

    def edit(x: Tensor, y: Tensor) -> Tensor:
        made = dictionary(x.to(dictionary.W_enc.dtype)).to(y.dtype)
        return torch.where(scored.to(y.device)[:, None], made, y)

    return edit


def ablated(value: Float[Tensor, "*position d"] | float, scored: Bool[Tensor, " position"]) -> Edit:
    """The same in place of the MLP's output on every prompt: at all positions, or a value at each."""

    def edit(_x: Tensor, y: Tensor) -> Tensor:
        made = torch.as_tensor(value, dtype=y.dtype, device=y.device)
        return torch.where(scored.to(y.device)[:, None], made, y)

    return edit


def without_feature(dictionary: Dictionary, feature: int, scored: Bool[Tensor, " position"]) -> Edit:
    """The MLP's own output without what a feature adds to it."""

    def edit(x: Tensor, y: Tensor) -> Tensor:
        z = dictionary.encode(x.to(dictionary.W_enc.dtype))[..., feature] * scored.to(y.device)
        return dictionary.subtract_feature(y, feature, z)

    return edit


@torch.inference_mode()
def conditions(
    model: LanguageModel,
    transcoders: Mapping[int, Dictionary],
    prompts: YearPrompts,
    answers: Answers,
) -> dict[str, Float[Tensor, " prompt"]]:
    """The metric of each prompt, by what was done to the model.

    Untouched; each layer's MLP replaced by its transcoder, and all at once; each layer's MLP ablated to zero, and to
    its mean over the prompts, at all positions that transcoders replace.
    """
    found = {UNTOUCHED: measure(model, prompts, answers, {})}
    stands = {Site("mlp_out", layer): replaced(each, prompts.scored) for layer, each in transcoders.items()}
    for site, edit in stands.items():
        found[replacing(site.layer)] = measure(model, prompts, answers, {site: edit})
    if len(stands) > 1:
        found[ALL] = measure(model, prompts, answers, stands)
    outputs = capture(model, prompts.token, [Site("mlp_out", layer) for layer in range(model.layers)])
    for site, output in sorted(outputs.items(), key=lambda each: each[0].layer):
        mean = output[:, prompts.scored.to(output.device)].mean((0, 1))
        for kind, value in {"zero": 0.0, "mean": mean}.items():
            edits = {site: ablated(value, prompts.scored)}
            found[ablating(site.layer, kind)] = measure(model, prompts, answers, edits)
    return found


def replacing(layer: int) -> str:
    """Name of the condition in which the MLP of a layer is replaced."""
    return f"MLP {layer} replaced"


def ablating(layer: int, kind: str) -> str:
    """Name of the condition in which the MLP of a layer is ablated."""
    return f"MLP {layer} {kind}-ablated"


@torch.inference_mode()
def layer_effects(
    model: LanguageModel, prompts: YearPrompts, answers: Answers
) -> Float[Tensor, "layer prompt"]:
    """What the metric loses where an MLP's output behind the last token is its mean over the prompts there.

    What is taken away is what tells the prompts apart.
    """
    last = torch.zeros_like(prompts.scored)
    last[-1] = True
    sites = [Site("mlp_out", layer) for layer in range(model.layers)]
    outputs = capture(model, prompts.token, sites)
    before = measure(model, prompts, answers, {})
    rows = [
        before - measure(model, prompts, answers, {site: ablated(outputs[site][:, -1].mean(0), last)})
        for site in sites
    ]
    return torch.stack(rows)


@dataclass(frozen=True)
class HeadShifts:
    """How far the answer goes over to another start year where a head's output behind the last token does."""

    layer: Int[Tensor, " head"]
    head: Int[Tensor, " head"]
    shift: Float[Tensor, "head prompt"]
    total: Float[Tensor, " prompt"]
    """Where the whole prompt does."""

    def order(self) -> Int[Tensor, " head"]:
        """Heads by falling shift, the mean over the prompts."""
        return self.shift.mean(1).argsort(descending=True, stable=True)


@torch.inference_mode()
def patch_heads(model: LanguageModel, prompts: YearPrompts, answers: Answers) -> HeadShifts:
    """Patch each head's output behind the last token from the prompt with the other start year.

    What is read off a pass is its metric for the prompt's own start year, less that for the other: twice the
    probability of the years between the two, which are due on one side only, and so moves either way.
    """

    def side(logits: Float[Tensor, "prompt answer"]) -> Float[Tensor, " prompt"]:
        own, other = (
            greater_than(logits, answers.year, each) for each in (prompts.start, prompts.other_start)
        )
        return own - other

    outputs: dict[int, Tensor] = {}

    def see(layer: int) -> Edit:
        def keep(_x: Tensor, y: Tensor) -> Tensor:
            outputs[layer] = y[:, -1]
            return y

        return keep

    sites = [Site("heads", layer) for layer in range(model.layers)]
    before = side(answer_logits(model, prompts.token, answers, {}))
    after = side(answer_logits(model, prompts.other, answers, {site: see(site.layer) for site in sites}))
    heads = model.anatomy.heads
    rows = []
    for site in sites:
        for head in range(heads):
            edits = {site: _patched(outputs[site.layer], head, heads)}
            rows.append(before - side(answer_logits(model, prompts.token, answers, edits)))
    number = torch.arange(len(rows))
    return HeadShifts(number // heads, number % heads, torch.stack(rows), before - after)


def _patched(output: Float[Tensor, "prompt value"], head: int, heads: int) -> Edit:
    size = output.shape[1] // heads
    own = slice(head * size, (head + 1) * size)

    def edit(_x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, -1, own] = output[:, own]
        return y

    return edit
