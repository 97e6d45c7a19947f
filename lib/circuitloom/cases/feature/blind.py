"""A rule written down blind: from indices and weights, and from contexts of which no text is seen."""

from collections.abc import Sequence

import torch

from ...circuits.deembedding import BareTokens
from ...circuits.local_model import LocalModel
from ...circuits.prediction import Evidence, Firing, gather_evidence, predict_plain
from .rule import Condition, Rule


@torch.inference_mode()
def blind_rule(
    prompts: Sequence[LocalModel], layer: int, feature: int, tokens: BareTokens, least_share: float
) -> Rule:
    """The tokens that the weights name, here and one before, where what is there adds `least_share` or more of both.

    Contexts are the last tokens of prompts on which the feature fires: known of them is how much each layer-0 feature,
    by its number, adds to the feature, and by which vectors it reads embeddings (the protocol `plain`). Each place
    that adds enough becomes a condition.
    """
    last = torch.tensor([len(prompt.frozen) - 1 for prompt in prompts])
    numbers = torch.arange(len(prompts))
    firing = Firing(numbers, last, torch.full_like(numbers, feature))
    (evidence,) = gather_evidence(enumerate(prompts), {layer: firing}).values()
    total = evidence.total[0].clamp(min=0)
    places = [p for p in range(len(total)) if total[p] >= least_share * total.sum()]
    conditions = [Condition(-p, _named(evidence, p, tokens)) for p in places]
    return Rule(tuple(conditions))


def _named(evidence: Evidence, place: int, tokens: BareTokens) -> torch.Tensor:
    """The tokens that are predicted for one place."""
    there = torch.zeros_like(evidence.total)
    there[:, place] = 1
    prediction = predict_plain(Evidence(evidence.read, evidence.contribution, there), tokens)
    return prediction.token[0].cpu()
