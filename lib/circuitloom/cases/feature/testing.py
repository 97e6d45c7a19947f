"""The rule of a feature put to the test: tokens exchanged, what the rule reads taken away, the feature taken away."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...circuits.attribution import Targets, logit_targets, reading_targets
from ...circuits.changes import apply_edits, make_edits
from ...circuits.deembedding import embedding_rows
from ...circuits.interventions import run_free
from ...circuits.local_model import LocalModel
from ...circuits.targets import find_token
from ...config.cases import FeatureCase
from ...config.circuits import Change, parse_target
from ...evaluation.held_out import HeldOut
from ...language_model.model import Site
from ..opening import Opened
from .choosing import Chosen
from .rule import Condition, Rule

EXCHANGES = 8
"""Exchanges tried of each text and condition."""


@dataclass(frozen=True)
class Tests:
    """What became of the feature, and of the prediction, on the testing half's texts; a row a text."""

    exchanged: Float[Tensor, "text 2"]
    """Of the rule's words each exchanged for one that breaks the rule: times that more than half of the activation
    went, times."""
    without_rule: Float[Tensor, " text"]
    """Share of the activation that goes when the words that the rule names are taken out of the stream."""
    without_others: Float[Tensor, " text"]
    """The same for as many other words."""
    effect: Float[Tensor, " text"] | None
    """What ablating the feature, nothing held, takes from the effect that was asked for."""

    def rows(self, case: str, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table `outcome`."""
        columns = {
            ("share_halved", "a word of the rule exchanged"): self.exchanged[:, 0] / self.exchanged[:, 1],
            ("share_lost", "without the rule's words"): self.without_rule,
            ("share_lost", "without other words"): self.without_others,
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
                "half": "testing",
                "value": None if isnan(value) else value,
            }
            for (measure, condition), values in columns.items()
            for number, (text, value) in enumerate(zip(texts, values.tolist(), strict=True))
        ]


@torch.inference_mode()
def run_tests(
    opened: Opened,
    held_out: HeldOut,
    case: FeatureCase,
    chosen: Chosen,
    rule: Rule,
    prompts: Sequence[LocalModel],
) -> Tests:
    """The tests of a rule on prompts at whose last token the feature is to fire."""
    generator = torch.Generator().manual_seed(case.seed)
    mean = embedding_rows(opened.model, opened.tracer().weights).mean(0)
    breakers = {c.offset: _breakers(rule, c, held_out) for c in rule.conditions}
    exchanged, with_rule, with_others, effect = [], [], [], []
    for prompt in prompts:
        target = _feature_target(prompt, chosen)
        exchanged.append(_exchange(opened, prompt, chosen, breakers, generator))
        named = [len(prompt.frozen) - 1 + offset for offset in rule.offsets]
        named = [position for position in named if position > 0]
        rest = [p for p in range(1, len(prompt.frozen) - 1) if p not in named]
        others = [rest[i] for i in torch.randperm(len(rest), generator=generator).tolist()]
        # what is one of the text's last words is as near as what the rule names
        lost = _without(opened, prompt, target, [named, others[: len(named)]], mean)
        with_rule.append(lost[0])
        with_others.append(lost[1])
        if case.effect is not None:
            effect.append(_effect(opened, prompt, chosen, case.effect))
    return Tests(
        torch.stack(exchanged),
        torch.tensor(with_rule),
        torch.tensor(with_others),
        torch.tensor(effect) if case.effect is not None else None,
    )


def _feature_target(prompt: LocalModel, chosen: Chosen) -> Targets:
    """The feature's pre-activation at the last token, whether it fires or not."""
    dictionary = prompt.dictionaries[chosen.layer]
    last = torch.tensor([len(prompt.frozen) - 1], device=prompt.features.layer.device)
    own = slice(chosen.feature, chosen.feature + 1)
    return reading_targets(prompt, chosen.layer, last, dictionary.W_enc[own], dictionary.b_enc[own])


def _breakers(rule: Rule, condition: Condition, held_out: HeldOut) -> Int[Tensor, " token"]:
    """Tokens, as often as they occur, that stand where the condition looks while only it is not met."""
    others = Rule(tuple(c for c in rule.conditions if c is not condition))
    broken = others.holds(held_out.token) & ~condition.holds(held_out.token) & held_out.scored
    broken[:, : -condition.offset] = False
    sequence, position = broken.nonzero().T
    return held_out.token[sequence, position + condition.offset]


def _exchange(
    opened: Opened,
    prompt: LocalModel,
    chosen: Chosen,
    breakers: dict[int, Int[Tensor, " token"]],
    generator: torch.Generator,
) -> Float[Tensor, " 2"]:
    """How often less than half of the activation is left, of how many exchanges of one word each."""
    token = prompt.frozen.token
    texts = []
    for offset, tokens in breakers.items():
        position = len(token) - 1 + offset
        if position > 0 and len(tokens):
            for i in torch.randint(len(tokens), (EXCHANGES,), generator=generator).tolist():
                texts.append(token.clone())
                texts[-1][position] = tokens[i]
    if not texts:
        return torch.zeros(2)
    texts.append(token)
    x = opened.model.capture(torch.stack(texts), [_site(chosen)])[_site(chosen)][:, -1].float()
    *z, before = opened.transcoders[chosen.layer].encode(x)[:, chosen.feature].tolist()
    return torch.tensor([sum(value < before / 2 for value in z), float(len(z))])


def _site(chosen: Chosen) -> Site:
    return Site("mlp_in", chosen.layer)


def _without(
    opened: Opened,
    prompt: LocalModel,
    target: Targets,
    groups: Sequence[Sequence[int]],
    mean: Float[Tensor, " d"],
) -> list[float]:
    """Share of the pre-activation that goes when the embeddings at some positions are made the mean one, nothing held.

    Not a number where the feature does not fire, or there is no position.
    """
    entering = {}
    for i, positions in enumerate(groups):
        entering[i] = torch.zeros_like(prompt.frozen.embedding)
        for position in positions:
            entering[i][position] = mean - prompt.frozen.embedding[position]
    n = len(groups)
    after = run_free(opened.model, prompt, n, {}, entering, [target])[0][:, 0].clamp(min=0)
    before = run_free(opened.model, prompt, 1, {}, {}, [target])[0][0, 0]
    if before <= 0:
        return [float("nan")] * n
    return [
        float(1 - value / before) if positions else float("nan")
        for value, positions in zip(after, groups, strict=True)
    ]


def _effect(opened: Opened, prompt: LocalModel, chosen: Chosen, effect: str) -> float:
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
