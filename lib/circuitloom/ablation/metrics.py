"""Prompts and their metrics. A metric is a number computed from the logits at the last position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corpus.token_arrays import scored_positions
from ..evaluation.scoring import can_resume
from ..language_model.hooks import Site, edited, recorded_outputs, resumed
from ..language_model.model import LanguageModel

Metric = Callable[[Float[Tensor, "pass vocabulary"]], Float[Tensor, " pass"]]
"""Differentiable function of the logits at the last position. Returns one number per pass."""


@dataclass(frozen=True)
class PromptMetric:
    """A prompt, a metric, and a mask of the positions to ablate."""

    token: Int[Tensor, " position"]
    metric: Metric
    where: Bool[Tensor, " position"]
    """Mask of the positions at which components are ablated."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.token)


def make_prompt_metrics(
    tokens: Sequence[Int[Tensor, " _"]],
    metrics: Sequence[Metric],
    separator_id: int | None,
    position: int | None = None,
) -> list[PromptMetric]:
    """Pair each prompt with its metric, and choose the positions to ablate.

    By default, all positions except position 0 and separators of documents are ablated. If `position` is given, only
    this position is ablated. A negative `position` counts from the end. Raises ValueError if a prompt has no position
    to ablate, or if the numbers of prompts and metrics differ.
    """
    if len(tokens) != len(metrics):
        raise ValueError(f"{len(tokens)} prompts and {len(metrics)} metrics; give one for each prompt")
    prompts = []
    for number, (token, metric) in enumerate(zip(tokens, metrics, strict=True)):
        where = scored_positions(token[None], separator_id)[0] if len(token) else token.bool()
        if position is not None:
            chosen = torch.zeros_like(where)
            if -len(token) <= position < len(token):
                chosen[position] = True
            where &= chosen
        if not where.any():
            place = "" if position is None else f" {position}"
            raise ValueError(
                f"prompt {number} of {len(token)} tokens has no position{place} that is neither first nor a separator; "
                "choose another"
            )
        prompts.append(PromptMetric(token, metric, where))
    return prompts


def logit(token: int) -> Metric:
    """Returns a metric: the logit of `token`."""
    return lambda logits: logits[:, token]


def logit_difference(token: int, against: int) -> Metric:
    """Returns a metric: logit(token) - logit(against), which equals log p(token) - log p(against)."""
    return lambda logits: logits[:, token] - logits[:, against]


def probability(tokens: Sequence[int], against: Sequence[int] = ()) -> Metric:
    """Returns a metric: the total probability of `tokens` minus the total probability of `against`.

    In the greater-than task of Hanna et al. 2023 (arXiv 2305.00586), `tokens` are the years after the prompt's year.
    `against` are the other years.
    """
    plus, minus = list(tokens), list(against)

    def measure(logits: Float[Tensor, "pass vocabulary"]) -> Float[Tensor, " pass"]:
        p = logits.softmax(-1)
        return p[:, plus].sum(1) - p[:, minus].sum(1)

    return measure


def last_logits(
    model: LanguageModel, token: Int[Tensor, "pass position"]
) -> Float[Tensor, "pass vocabulary"]:
    """Returns the logits at the last position, as float32 (float64 for a float64 model)."""
    with edited(model, {Site("unembedding_in"): lambda _x, y: y[:, -1:]}):
        logits = model.logits(token)[:, -1]
    return logits if logits.dtype == torch.float64 else logits.float()


class RecordedPass:
    """A forward pass whose block outputs are kept, so that later passes over the same tokens can start at a layer."""

    def __init__(self, model: LanguageModel, token: Int[Tensor, "pass position"]) -> None:
        self.model, self.token = model, token
        self.outputs: dict[int, Any] = {}
        with recorded_outputs(model, range(model.layers - 1), self.outputs):
            self.logits = last_logits(model, token)
        # some models use values from inside earlier blocks in later ones
        self.can_resume = can_resume(model, token[:1].to(model.device))

    def repeat(self, layer: int) -> Float[Tensor, "pass vocabulary"]:
        """Returns the logits at the last position again. Nothing before the block `layer` may be edited, because the
        blocks before it do not run."""
        with resumed(self.model, layer if self.can_resume else 0, self.outputs.get(layer - 1)):
            return last_logits(self.model, self.token)


def kl_divergence(
    reference: Float[Tensor, " vocabulary"], logits: Float[Tensor, "pass vocabulary"]
) -> Float[Tensor, " pass"]:
    """Returns KL(reference || pass) of the next-token distributions in nats, one value per pass."""
    before, after = reference.log_softmax(-1), logits.log_softmax(-1)
    # rounding can make a KL of 0 negative
    return (before.exp() * (before - after)).sum(-1).clamp(min=0)
