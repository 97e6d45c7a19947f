"""Rules: which tokens must stand where for a feature to fire; learned on some documents, scored on others. A rule
written down blind: from indices and weights, and from contexts of which no text is seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...attribution.linearized_model import LinearizedModel
from ...weights.blind_prediction import Evidence, Firing, gather_evidence, predict_plain
from ...weights.deembedding import BareTokens

GAIN = 0.02
"""F1 by which a condition must better a rule to be added to it."""
NAMED = 6
"""Tokens of a condition that are named."""


@dataclass(frozen=True)
class Condition:
    """One of some tokens stands so many tokens before."""

    offset: int
    """0 for the token itself, -1 for the one before."""
    tokens: Bool[Tensor, " vocabulary"]

    def holds(self, token: Int[Tensor, "sequence position"]) -> Bool[Tensor, "sequence position"]:
        """Where it does; nowhere that the sequence does not reach back to."""
        met = torch.zeros_like(token, dtype=torch.bool)
        met[:, -self.offset :] = self.tokens[token][:, : token.shape[1] + self.offset]
        return met


@dataclass(frozen=True)
class Rule:
    """All of some conditions."""

    conditions: tuple[Condition, ...]

    def holds(self, token: Int[Tensor, "sequence position"]) -> Bool[Tensor, "sequence position"]:
        """Where all conditions do."""
        met = torch.ones_like(token, dtype=torch.bool)
        for condition in self.conditions:
            met &= condition.holds(token)
        return met

    @property
    def offsets(self) -> list[int]:
        """Where it looks, the token itself first."""
        return sorted((condition.offset for condition in self.conditions), reverse=True)

    def words(self, strings: Sequence[str], counts: Int[Tensor, " vocabulary"]) -> str:
        """The rule in words; of many tokens those that `counts` has most of."""
        parts = []
        for condition in sorted(self.conditions, key=lambda each: -each.offset):
            ids = condition.tokens.nonzero()[:, 0]
            ids = ids[counts[ids].argsort(descending=True, stable=True)]
            named = " ".join(f"`{strings[int(i)].strip() or strings[int(i)]}`" for i in ids[:NAMED])
            more = f" and {len(ids) - NAMED} more tokens" if len(ids) > NAMED else ""
            parts.append(f"{_place(condition.offset)} is one of {named}{more}")
        return ", and ".join(parts) if parts else "anything stands there"


def _place(offset: int) -> str:
    if offset == 0:
        return "the token itself"
    return "the token before" if offset == -1 else f"the token {-offset} before"


@dataclass(frozen=True)
class Counts:
    """How often a description and what it describes hold, document by document."""

    hits: Float[Tensor, " document"]
    """Both hold."""
    said: Float[Tensor, " document"]
    """The description holds."""
    true: Float[Tensor, " document"]

    @property
    def rows(self) -> Float[Tensor, "document 3"]:
        """A row a document, for a bootstrap."""
        return torch.stack([self.hits, self.said, self.true], 1)


def count(
    said: Bool[Tensor, "sequence position"],
    true: Bool[Tensor, "sequence position"],
    where: Bool[Tensor, "sequence position"],
    document: Int[Tensor, "sequence position"],
) -> Counts:
    """Counts over the places `where`, of every document that has some."""
    _, number = document[where].unique(return_inverse=True)
    said, true = said[where], true[where]
    n = int(number.max()) + 1 if len(number) else 0
    return Counts(
        *(torch.bincount(number, each.double(), minlength=n).float() for each in (said & true, said, true))
    )


def fit_rule(
    token: Int[Tensor, "sequence position"],
    fires: Bool[Tensor, "sequence position"],
    where: Bool[Tensor, "sequence position"],
    offsets: Sequence[int],
    vocabulary: int,
    most: int = 3,
) -> Rule:
    """The rule, of at most so many conditions, that best says where `fires` holds among the places `where`.

    Greedy: the condition is added whose offset and tokens, chosen by the share of their places that fire, give the
    largest F1 together with those before, whose tokens are then chosen anew.
    """
    rule, best = Rule(()), 0.0
    total = int((fires & where).sum())
    left = list(offsets)

    def choose(others: Rule, offset: int) -> tuple[float, Condition]:
        return _best_tokens(token, fires, others.holds(token) & where, offset, vocabulary, total)

    while left and len(rule.conditions) < most and total:
        _, condition = max((choose(rule, offset) for offset in left), key=lambda each: each[0])
        conditions = [*rule.conditions, condition]
        f1 = 0.0
        for i, own in enumerate(conditions):
            others = Rule(tuple(conditions[:i] + conditions[i + 1 :]))
            f1, conditions[i] = choose(others, own.offset)
        if f1 < best + GAIN:
            break
        rule, best = Rule(tuple(conditions)), f1
        left.remove(condition.offset)
    return rule


def _best_tokens(
    token: Int[Tensor, "sequence position"],
    fires: Bool[Tensor, "sequence position"],
    met: Bool[Tensor, "sequence position"],
    offset: int,
    vocabulary: int,
    total: int,
) -> tuple[float, Condition]:
    """F1 with the tokens at `offset` that make it largest, of the places that meet the rule so far."""
    reach = met.clone()
    reach[:, :-offset] = False
    seen = token[:, : token.shape[1] + offset][reach[:, -offset:]]
    n = torch.bincount(seen, minlength=vocabulary).double()
    hits = torch.bincount(seen, fires[reach].double(), minlength=vocabulary)
    share = torch.where(n > 0, hits / n, -1.0)
    order = share.argsort(descending=True, stable=True)
    f1 = 2 * hits[order].cumsum(0) / (n[order].cumsum(0) + total)
    kept = int(f1.argmax())
    tokens = torch.zeros(vocabulary, dtype=torch.bool)
    tokens[order[: kept + 1]] = True
    return float(f1[kept]), Condition(offset, tokens & (hits > 0))


@torch.inference_mode()
def blind_rule(
    prompts: Sequence[LinearizedModel], layer: int, feature: int, tokens: BareTokens, least_share: float
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
