"""Measurements of a feature: where it fires, what it reads, rules for where it fires, and tests of the rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...ablation.feature_edits import apply_edits, make_edits
from ...attribution.direct_effects import feature_targets, logit_targets, source_columns, total_effects
from ...attribution.linearized_model import LinearizedModel
from ...attribution.paths import HEAD, KINDS, direct_sources, feature_reader
from ...attribution.targets import read_answers
from ...config.cases import FeatureCase
from ...config.cases.feature import EXCHANGES
from ...config.circuits import FeatureChange, parse_target
from ...core.formatting import format_token
from ...corpus.prompt_text import AnswerToken, read_prompt
from ...evaluation.held_out import HeldOut
from ...language_model.hooks import Site, capture, edited
from ...weights.blind_prediction import ActivePositions, ContextMeans, compute_context_means, predict_plain
from ...weights.deembedding import TokenEmbeddings, embedding_rows
from ..case_report import code_span
from ..context import CaseContext
from .choice import ChosenFeature

MAX_DISTANCE = 24
"""Number of last tokens with recorded effects. The effects of earlier tokens count only in `FeatureSources.total`."""
MIN_GAIN = 0.02
"""Minimum increase of a rule's F1 for adding a condition."""
MAX_NAMED = 6
"""Maximum number of tokens that a condition names in words."""
DirectSource = tuple[str, int | None, int | None, int]
"""A source that a feature reads in one step: (kind, layer, number, position relative to the feature)."""


class TextPair(NamedTuple):
    """A text that should make the feature fire at the last token, and an edit that should not."""

    text: str
    edited: str
    half: str
    """`finding` or `testing`."""


@dataclass(frozen=True)
class FeatureActivity:
    """The chosen feature, and where it fires."""

    feature: ChosenFeature
    fires: Bool[Tensor, "sequence position"]
    """True at scored held-out positions with an activation above the threshold."""
    on: Float[Tensor, " pair"]
    """Activation at the last token of each text."""
    off: Float[Tensor, " pair"]
    """Activation at the last token of each edit."""


def last_activations(prompt: LinearizedModel, layer: int) -> Float[Tensor, " feature"]:
    """Returns the activations of all features of a layer at the last token of a prompt."""
    z = prompt.captured.resid_final.new_zeros(prompt.dictionaries[layer].width)
    active = prompt.active_at(layer, len(prompt.captured) - 1)
    z[prompt.features.feature[active]] = prompt.features.activation[active]
    return z.cpu()


# Rules


@dataclass(frozen=True)
class Condition:
    """A condition holds at a position if the token at position + `offset` is one of `tokens`."""

    offset: int
    """0 for the token at the position, -1 for the previous token, and so on."""
    tokens: Bool[Tensor, " vocabulary"]

    def holds(self, token: Int[Tensor, "sequence position"]) -> Bool[Tensor, "sequence position"]:
        """Returns whether the condition holds at each position. A missing token fails the condition."""
        met = torch.zeros_like(token, dtype=torch.bool)
        met[:, -self.offset :] = self.tokens[token][:, : token.shape[1] + self.offset]
        return met


@dataclass(frozen=True)
class Rule:
    """A rule holds at a position if all its conditions hold at this position."""

    conditions: tuple[Condition, ...]

    def holds(self, token: Int[Tensor, "sequence position"]) -> Bool[Tensor, "sequence position"]:
        """Returns whether the rule holds at each position."""
        met = torch.ones_like(token, dtype=torch.bool)
        for condition in self.conditions:
            met &= condition.holds(token)
        return met

    @property
    def offsets(self) -> list[int]:
        """Offsets of the conditions (0 or negative), in descending order."""
        return sorted((condition.offset for condition in self.conditions), reverse=True)

    def words(self, strings: Sequence[str], counts: Int[Tensor, " vocabulary"]) -> str:
        """Returns the rule in words. Each condition names up to MAX_NAMED tokens with the largest `counts`."""
        parts = []
        for condition in sorted(self.conditions, key=lambda each: -each.offset):
            ids = condition.tokens.nonzero()[:, 0]
            ids = ids[counts[ids].argsort(descending=True, stable=True)]
            named = " ".join(code_span(format_token(strings[int(i)])) for i in ids[:MAX_NAMED])
            more = f" and {len(ids) - MAX_NAMED} more tokens" if len(ids) > MAX_NAMED else ""
            parts.append(f"{_place_name(condition.offset)} is one of {named}{more}")
        return ", and ".join(parts) if parts else "any token stands there"


def _place_name(offset: int) -> str:
    if offset == 0:
        return "the token itself"
    return "the token before" if offset == -1 else f"the token {-offset} before"


def fit_rule(
    token: Int[Tensor, "sequence position"],
    fires: Bool[Tensor, "sequence position"],
    where: Bool[Tensor, "sequence position"],
    offsets: Sequence[int],
    vocabulary: int,
    most: int = 3,
) -> Rule:
    """Returns a rule with at most `most` conditions that predicts where the feature fires.

    Only positions with `where` true count. Each greedy step adds the condition that gives the largest F1. Then the step
    fits the tokens of each condition again, with all other conditions fixed.
    """
    rule, best = Rule(()), 0.0
    total = int((fires & where).sum())
    candidates = list(offsets)

    def choose(others: Rule, offset: int) -> tuple[float, Condition]:
        return _best_tokens(token, fires, others.holds(token) & where, offset, vocabulary, total)

    while candidates and len(rule.conditions) < most and total:
        _, condition = max((choose(rule, offset) for offset in candidates), key=lambda each: each[0])
        conditions = [*rule.conditions, condition]
        f1 = 0.0
        for i, own in enumerate(conditions):
            others = Rule(tuple(conditions[:i] + conditions[i + 1 :]))
            f1, conditions[i] = choose(others, own.offset)
        if f1 < best + MIN_GAIN:
            break
        rule, best = Rule(tuple(conditions)), f1
        candidates.remove(condition.offset)
    return rule


def _best_tokens(
    token: Int[Tensor, "sequence position"],
    fires: Bool[Tensor, "sequence position"],
    met: Bool[Tensor, "sequence position"],
    offset: int,
    vocabulary: int,
    total: int,
) -> tuple[float, Condition]:
    """Returns the largest F1 over all conditions at `offset`, and the condition with this F1. `met` is true where all
    other conditions hold. `total` is the number of positions where the feature fires."""
    reach = met.clone()
    reach[:, :-offset] = False
    seen = token[:, : token.shape[1] + offset][reach[:, -offset:]]
    n = torch.bincount(seen, minlength=vocabulary).double()
    hits = torch.bincount(seen, fires[reach].double(), minlength=vocabulary)
    precision = torch.where(n > 0, hits / n, -1.0)
    order = precision.argsort(descending=True, stable=True)
    f1 = 2 * hits[order].cumsum(0) / (n[order].cumsum(0) + total)
    kept = int(f1.argmax())
    tokens = torch.zeros(vocabulary, dtype=torch.bool)
    tokens[order[: kept + 1]] = True
    return float(f1[kept]), Condition(offset, tokens & (hits > 0))


@torch.inference_mode()
def blind_rule(
    prompts: Sequence[LinearizedModel], layer: int, feature: int, tokens: TokenEmbeddings, least_share: float
) -> Rule:
    """Returns a rule by the protocol `plain` of `weights.blind_prediction`.

    The contexts are the last tokens of `prompts`. The feature must fire at each last token. The rule has up to two
    conditions: one on the current token and one on the previous token. A token gets a condition if its contribution is
    at least `least_share` of the sum of both contributions.
    """
    last = torch.tensor([len(prompt.captured) - 1 for prompt in prompts])
    numbers = torch.arange(len(prompts))
    firing = ActivePositions(numbers, last, torch.full_like(numbers, feature))
    (means,) = compute_context_means(enumerate(prompts), {layer: firing}).values()
    total = means.total[0].clamp(min=0)
    places = [p for p in range(len(total)) if total[p] >= least_share * total.sum()]
    return Rule(tuple(Condition(-p, _predicted_tokens(means, p, tokens)) for p in places))


def _predicted_tokens(
    means: ContextMeans, place: int, tokens: TokenEmbeddings
) -> Bool[Tensor, " vocabulary"]:
    """Returns a mask of the tokens predicted `place` positions before the feature fires."""
    only_here = torch.zeros_like(means.total)
    only_here[:, place] = 1
    prediction = predict_plain(ContextMeans(means.vector, means.contribution, only_here), tokens)
    return prediction.token[0].cpu()


def agreement(
    predicted: Bool[Tensor, "sequence position"],
    actual: Bool[Tensor, "sequence position"],
    where: Bool[Tensor, "sequence position"],
    document: Int[Tensor, "sequence position"],
) -> Float[Tensor, "document 3"]:
    """Returns the numbers of true positives, predicted positives and positives of each document. Only positions with
    `where` true count. Documents without such positions are left out."""
    _, number = document[where].unique(return_inverse=True)
    predicted, actual = predicted[where], actual[where]
    n = int(number.max()) + 1 if len(number) else 0
    columns = (predicted & actual, predicted, actual)
    return torch.stack([torch.bincount(number, each.double(), minlength=n).float() for each in columns], 1)


# What the feature reads


@dataclass(frozen=True)
class FeatureSources:
    """Effects on a feature at the last token of some prompts."""

    direct: list[dict[DirectSource, float]]
    """Effect of each source read in one step, per prompt. Errors and constants have relative position 0."""
    by_token: Float[Tensor, "prompt offset"]
    """Element [prompt, i] is the effect of the token i positions before the last token, over all paths. Missing tokens
    have effect 0."""
    total: Float[Tensor, " prompt"]
    """Sum of the absolute effects of all tokens of the prompt."""
    token_ids: list[list[int]]
    """Ids of the last `MAX_DISTANCE` tokens of each prompt. The last token comes first."""

    @property
    def shares(self) -> Float[Tensor, " offset"]:
        """Mean over prompts of |by_token| / total."""
        return (self.by_token.abs() / self.total[:, None].clamp(min=1e-9)).mean(0)

    def offsets(self, share: float) -> list[int]:
        """Returns the offsets (0 or negative) of tokens with at least `share` of the total effect."""
        return (-(self.shares >= share).nonzero()[:, 0]).tolist()


def trace_sources(prompts: Sequence[LinearizedModel], feature: ChosenFeature) -> FeatureSources:
    """Returns the sources of the feature at the last token of each prompt. The feature must fire at each last token."""
    direct, by_token, totals, ids = [], [], [], []
    for prompt in prompts:
        last = len(prompt.captured) - 1
        active = prompt.features.find(feature.layer, last, feature.feature)
        assert active is not None
        direct.append(_direct(prompt, active, last))
        effects = token_effects(prompt, active)
        row = effects.new_zeros(MAX_DISTANCE)
        near = effects.flip(0)[:MAX_DISTANCE]
        row[: len(near)] = near
        by_token.append(row.cpu())
        totals.append(float(effects.abs().sum()))
        ids.append(prompt.captured.token.flip(0)[:MAX_DISTANCE].tolist())
    return FeatureSources(direct, torch.stack(by_token), torch.tensor(totals), ids)


def token_effects(prompt: LinearizedModel, active: int) -> Float[Tensor, " position"]:
    """Returns the effect of each token's embedding on the pre-activation of an active feature, over all paths. `active`
    is the index of the feature in `prompt.features`."""
    target = feature_targets(prompt, torch.tensor([active], device=prompt.features.layer.device))
    return total_effects(prompt, target)[0, source_columns(prompt).embeddings]


def _direct(prompt: LinearizedModel, active: int, last: int) -> dict[DirectSource, float]:
    step = direct_sources(prompt, feature_reader(prompt, active))
    effects: dict[DirectSource, float] = {}
    for kind, layer, index, position, value in zip(
        *(getattr(step, name).tolist() for name in ("kind", "layer", "index", "position", "value")),
        strict=True,
    ):
        numbered = kind <= HEAD
        key = (KINDS[kind], layer if numbered else None, index if numbered else None, position - last)
        effects[key] = effects.get(key, 0.0) + value
    effects["error", None, None, 0] = step.error
    effects["constant", None, None, 0] = step.constant
    return effects


# Tests of the rule


@dataclass(frozen=True)
class RuleTests:
    """Results of interventions on the texts of the testing half, with one row per text."""

    exchanged: Float[Tensor, "text 2"]
    """An exchange replaces one of the rule's tokens. Column 0 counts exchanges that more than halve the activation.
    Column 1 counts all exchanges. Both columns are 0 if the feature does not fire on the text."""
    rule_alone: Float[Tensor, " text"]
    """Share of the activation that remains when all tokens outside the rule get the mean embedding. NaN if the feature
    does not fire, or if the rule covers all tokens."""
    effect: Float[Tensor, " text"] | None
    """Decrease of the metric `case.effect` when the feature is ablated, in logits. None if `case.effect` is None."""


@torch.inference_mode()
def run_rule_tests(
    context: CaseContext,
    held_out: HeldOut,
    case: FeatureCase,
    feature: ChosenFeature,
    rule: Rule,
    prompts: Sequence[tuple[LinearizedModel, Sequence[AnswerToken]]],
) -> RuleTests:
    """Test a rule on `prompts`, each with its answers from `effect_answers`. The feature should fire at the last token
    of each prompt."""
    generator = torch.Generator().manual_seed(case.seed)
    mean = embedding_rows(context.model, context.tracer().weights).mean(0)
    breaking = {c.offset: _breaking_tokens(rule, c, held_out) for c in rule.conditions}
    exchanged, alone, effect = [], [], []
    for prompt, answers in prompts:
        exchanged.append(_exchange(context, prompt, feature, breaking, generator))
        alone.append(_rule_alone(context, prompt, feature, rule, mean))
        if answers:
            effect.append(ablation_effect(context, prompt, feature, answers))
    return RuleTests(
        torch.stack(exchanged),
        torch.tensor(alone),
        torch.tensor(effect) if case.effect is not None else None,
    )


def _breaking_tokens(rule: Rule, condition: Condition, held_out: HeldOut) -> Int[Tensor, " token"]:
    """Returns tokens that break one condition, from held-out positions where all other conditions hold."""
    others = Rule(tuple(c for c in rule.conditions if c is not condition))
    broken = others.holds(held_out.token) & ~condition.holds(held_out.token) & held_out.scored
    broken[:, : -condition.offset] = False
    sequence, position = broken.nonzero().T
    return held_out.token[sequence, position + condition.offset]


def _exchange(
    context: CaseContext,
    prompt: LinearizedModel,
    feature: ChosenFeature,
    breaking: dict[int, Int[Tensor, " token"]],
    generator: torch.Generator,
) -> Float[Tensor, " 2"]:
    """Returns the row of `RuleTests.exchanged` for one prompt. breaking[offset] has the replacement tokens."""
    token = prompt.captured.token
    texts = [token]
    for offset, tokens in breaking.items():
        position = len(token) - 1 + offset
        if position > 0 and len(tokens):
            for i in torch.randint(len(tokens), (EXCHANGES,), generator=generator).tolist():
                texts.append(token.clone())
                texts[-1][position] = tokens[i]
    before, *after = _activations(context, torch.stack(texts), feature)
    if not before:
        return torch.zeros(2)
    return torch.tensor([float(sum(value < before / 2 for value in after)), float(len(after))])


def _rule_alone(
    context: CaseContext,
    prompt: LinearizedModel,
    feature: ChosenFeature,
    rule: Rule,
    mean: Float[Tensor, " d"],
) -> float:
    """Returns `RuleTests.rule_alone` for one prompt. The first token also keeps its embedding."""
    embedding = prompt.captured.embedding
    kept = {len(embedding) - 1 + offset for offset in rule.offsets}
    others = [position for position in range(1, len(embedding)) if position not in kept]
    change = torch.zeros_like(embedding)
    change[others] = mean.to(embedding) - embedding[others]

    def edit(_x: Tensor, stream: Tensor) -> Tensor:
        # the first sequence of the batch is the unchanged prompt
        return torch.stack([stream[0], stream[1] + change.to(stream)])

    with edited(context.model, {Site("resid_pre", 0): edit}):
        before, after = _activations(context, prompt.captured.token.expand(2, -1), feature)
    return after / before if before and others else float("nan")


def _activations(
    context: CaseContext, token: Int[Tensor, "text position"], feature: ChosenFeature
) -> list[float]:
    """Returns the feature's activation at the last token of each text."""
    dictionary = context.transcoders[feature.layer]
    site = Site(dictionary.site_in, feature.layer)
    x = capture(context.model, token, [site])[site][:, -1]
    return dictionary.encode(x.to(dictionary.dtype))[:, feature.feature].tolist()


def effect_answers(
    context: CaseContext, case: FeatureCase, texts: Sequence[str]
) -> tuple[list[list[AnswerToken]], list[str]]:
    """Returns the tokens of the metric `case.effect` after each text, and notes on how texts and answers were read.
    Without a metric, the tokens are empty lists. Raises ValueError if an answer is not one token."""
    read = [read_prompt(text, context.tokenizer, context.context_length) for text in texts]
    answers: list[list[AnswerToken]] = [[] for _ in texts]
    if case.effect is not None:
        target = parse_target(case.effect)
        answers = [read_answers(target, prompt) for prompt in read]
    notes = [note for prompt in read for note in prompt.notes]
    notes += [each.note for own in answers for each in own if each.note]
    return answers, list(dict.fromkeys(notes))


def ablation_effect(
    context: CaseContext, prompt: LinearizedModel, feature: ChosenFeature, answers: Sequence[AnswerToken]
) -> float:
    """Returns the decrease of the metric at the last token under free ablation of the feature. The metric is the logit
    of the first answer, minus that of the second if there is one."""
    weights = prompt.captured.resid_final.new_zeros(1, prompt.captured.unembedding.weight.shape[0])
    for answer, sign in zip(answers, (1, -1), strict=False):
        weights[0, answer.token_id] += sign
    last = torch.tensor([len(prompt.captured) - 1], device=weights.device)
    change = FeatureChange(kind="ablate", features=[feature.name])
    outcome = apply_edits(
        context.model, prompt, make_edits(prompt, change), [logit_targets(prompt, last, weights)]
    )
    return float(outcome.before[0] - outcome.free[0])
