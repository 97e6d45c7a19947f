"""The rule of a feature put to the test: its words exchanged, all others taken away, the feature taken away."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...ablation.feature_edits import apply_edits, make_edits
from ...attribution.direct_effects import logit_targets
from ...attribution.linearized_model import LinearizedModel
from ...attribution.targets import find_token
from ...config.cases import FeatureCase
from ...config.circuits import Change, parse_target
from ...evaluation.held_out import HeldOut
from ...language_model.model import Site
from ...weights.deembedding import embedding_rows
from ..context import TESTING, CaseContext
from .choosing import Chosen
from .rule import Condition, Rule

EXCHANGES = 8
"""Exchanges tried of each text and condition."""


@dataclass(frozen=True)
class Tests:
    """What became of the feature, and of the prediction, on the testing half's texts; a row a text."""

    exchanged: Float[Tensor, "text 2"]
    """Of the rule's words each exchanged for one that breaks the rule: times that more than half of the activation
    went, times; both 0 where the feature is silent."""
    left: Float[Tensor, " text"]
    """Share of the activation that is left where every word that the rule does not name is made the mean embedding;
    not a number where the feature is silent, or the rule names all words."""
    effect: Float[Tensor, " text"] | None
    """What ablating the feature, nothing held, takes from the effect that was asked for."""

    def rows(self, case: str, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table `outcome`."""
        columns = {
            ("share_halved", "a word of the rule exchanged"): self.exchanged[:, 0] / self.exchanged[:, 1],
            ("share_left", "the rule's words alone"): self.left,
        }
        if self.effect is not None:
            columns["effect_lost", "without the feature"] = self.effect
        return [
            {
                "case_study": case,
                "measure": measure,
                "condition": condition,
                "prompt": number,
                "text": text,
                "half": TESTING,
                "value": None if isnan(value) else value,
            }
            for (measure, condition), values in columns.items()
            for number, (text, value) in enumerate(zip(texts, values.tolist(), strict=True))
        ]


@torch.inference_mode()
def run_tests(
    opened: CaseContext,
    held_out: HeldOut,
    case: FeatureCase,
    chosen: Chosen,
    rule: Rule,
    prompts: Sequence[LinearizedModel],
) -> Tests:
    """The tests of a rule on prompts at whose last token the feature is to fire."""
    generator = torch.Generator().manual_seed(case.seed)
    mean = embedding_rows(opened.model, opened.tracer().weights).mean(0)
    breakers = {c.offset: _breakers(rule, c, held_out) for c in rule.conditions}
    exchanged, left, effect = [], [], []
    for prompt in prompts:
        exchanged.append(_exchange(opened, prompt, chosen, breakers, generator))
        left.append(_rule_alone(opened, prompt, chosen, rule, mean))
        if case.effect is not None:
            effect.append(_effect(opened, prompt, chosen, case.effect))
    return Tests(
        torch.stack(exchanged),
        torch.tensor(left),
        torch.tensor(effect) if case.effect is not None else None,
    )


def _breakers(rule: Rule, condition: Condition, held_out: HeldOut) -> Int[Tensor, " token"]:
    """Tokens, as often as they occur, that stand where the condition looks while only it is not met."""
    others = Rule(tuple(c for c in rule.conditions if c is not condition))
    broken = others.holds(held_out.token) & ~condition.holds(held_out.token) & held_out.scored
    broken[:, : -condition.offset] = False
    sequence, position = broken.nonzero().T
    return held_out.token[sequence, position + condition.offset]


def _exchange(
    opened: CaseContext,
    prompt: LinearizedModel,
    chosen: Chosen,
    breakers: dict[int, Int[Tensor, " token"]],
    generator: torch.Generator,
) -> Float[Tensor, " 2"]:
    """How often less than half of the activation is left, of how many exchanges of one word each."""
    token = prompt.frozen.token
    texts = [token]
    for offset, tokens in breakers.items():
        position = len(token) - 1 + offset
        if position > 0 and len(tokens):
            for i in torch.randint(len(tokens), (EXCHANGES,), generator=generator).tolist():
                texts.append(token.clone())
                texts[-1][position] = tokens[i]
    before, *after = _activations(opened, torch.stack(texts), chosen)
    if not before:
        return torch.zeros(2)
    return torch.tensor([float(sum(value < before / 2 for value in after)), float(len(after))])


def _rule_alone(
    opened: CaseContext, prompt: LinearizedModel, chosen: Chosen, rule: Rule, mean: Float[Tensor, " d"]
) -> float:
    """Share of the activation that is left with the rule's words alone, BOS kept, nothing held."""
    embedding = prompt.frozen.embedding
    named = {len(embedding) - 1 + offset for offset in rule.offsets}
    others = [position for position in range(1, len(embedding)) if position not in named]
    change = torch.zeros_like(embedding)
    change[others] = mean.to(embedding) - embedding[others]

    def enter(stream: Tensor) -> Tensor:
        # of the two passes the second
        return torch.stack([stream[0], stream[1] + change.to(stream)])

    with opened.model.substituting(Site("resid_pre", 0), enter):
        before, after = _activations(opened, prompt.frozen.token.expand(2, -1), chosen)
    return after / before if before and others else float("nan")


def _activations(opened: CaseContext, token: Int[Tensor, "text position"], chosen: Chosen) -> list[float]:
    """The feature at the last token of each text."""
    site = Site("mlp_in", chosen.layer)
    x = opened.model.capture(token, [site])[site][:, -1]
    dictionary = opened.transcoders[chosen.layer]
    return dictionary.encode(x.to(dictionary.W_enc.dtype))[:, chosen.feature].tolist()


def _effect(opened: CaseContext, prompt: LinearizedModel, chosen: Chosen, effect: str) -> float:
    """The wanted logit, or difference of two, before minus after the feature is ablated, nothing held."""
    wanted = parse_target(effect)
    strings = opened.tokenizer.strings()
    weights = prompt.frozen.resid_final.new_zeros(1, prompt.frozen.unembedding.weight.shape[0])
    weights[0, find_token(wanted.token, strings)] += 1
    if wanted.against:
        weights[0, find_token(wanted.against, strings)] -= 1
    last = torch.tensor([len(prompt.frozen) - 1], device=weights.device)
    target = logit_targets(prompt, last, weights)
    change = Change(kind="ablate", features=[f"{chosen.layer}/{chosen.feature}"])
    outcome = apply_edits(opened.model, prompt, make_edits(prompt, change), [target])
    return float(outcome.before[0] - outcome.free[0])
