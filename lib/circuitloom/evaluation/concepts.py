"""Which concepts each scored token takes part in, and which half of the documents it lies in. Concept scores: how
well one feature, above a threshold, says that a token takes part in a concept.

The F1 of [z > threshold], feature and threshold chosen on one half of the documents and scored on the other.
Candidate thresholds of a feature are activations of geometrically spaced rank, so that the number of tokens
above a threshold is resolved to the same share for rare concepts and for frequent ones. Counting is by bins,
in one pass for all thresholds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .held_out import HeldOut


@dataclass(frozen=True)
class ConceptAnnotations:
    """Concepts of the scored tokens, token by token (CSR)."""

    names: tuple[str, ...]
    """Names of the concepts, in the order of their numbers."""
    start: Int[Tensor, " token_plus_1"]
    """Concepts of token t are entries start[t] to start[t + 1]."""
    concept: Int[Tensor, " entry"]
    """Number of the concept of each entry; the last of every token is C = len(names), "any token"."""
    choosing: Bool[Tensor, " token"]
    """Tokens on which thresholds and features are chosen; the others are scored."""

    def positives(self, choosing: bool) -> Int[Tensor, " concept"]:
        """Tokens of one half that have each concept."""
        token = torch.repeat_interleave(torch.arange(len(self.choosing)), self.start.diff())
        mine = self.concept[self.choosing[token] == choosing]
        return torch.bincount(mine, minlength=len(self.names) + 1)[:-1]


def label(concepts: pa.Table, held_out: HeldOut) -> ConceptAnnotations:
    """The labels of the scored tokens of `held_out`, from a concept table; even documents are for choosing.

    A document is never split, so that no token of the scoring half shares its text with the choosing half.
    """
    place = torch.full(held_out.token.shape, -1)
    place[held_out.scored] = torch.arange(held_out.n_tokens)
    concepts = concepts.filter(pc.field("sequence") < len(held_out))
    names, number = np.unique(concepts["concept"].cast(pa.string()).to_numpy(), return_inverse=True)
    sequence, position = (
        torch.from_numpy(concepts[c].to_numpy().astype(np.int64)) for c in ("sequence", "position")
    )
    token, number = place[sequence, position], torch.from_numpy(number)
    token, number = token[token >= 0], number[token >= 0]
    everyone = torch.arange(held_out.n_tokens)
    token = torch.cat([token, everyone])
    concept = torch.cat([number, torch.full_like(everyone, len(names))])
    # by token, and within one by concept, so that "any token" comes last
    order = (token * (len(names) + 1) + concept).argsort()
    start = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(token, minlength=held_out.n_tokens).cumsum(0)]
    )
    choosing = held_out.document[held_out.scored] % 2 == 0
    return ConceptAnnotations(tuple(names.tolist()), start, concept[order], choosing)


CHUNK_COUNTS = 2**24
"""Counts (feature, threshold, concept) held at once."""


@dataclass(frozen=True)
class SparseActivations:
    """Activations of features on tokens, the non-zero ones (COO)."""

    token: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    width: int
    """Number of features, F."""

    def features(self, low: int, high: int) -> "SparseActivations":
        """The entries of features `low` to `high`, numbered from 0."""
        mine = (self.feature >= low) & (self.feature < high)
        return SparseActivations(self.token[mine], self.feature[mine] - low, self.value[mine], high - low)

    def tokens(self, mine: Tensor) -> "SparseActivations":
        """The entries of the tokens where `mine` is true."""
        entries = mine[self.token]
        return SparseActivations(self.token[entries], self.feature[entries], self.value[entries], self.width)


@dataclass(frozen=True)
class ConceptScores:
    """Of every feature and concept, at the threshold chosen; NaN where there is nothing to divide by."""

    f1_choosing: Float[Tensor, "feature concept"]
    threshold: Float[Tensor, "feature concept"]
    precision: Float[Tensor, "feature concept"]
    recall: Float[Tensor, "feature concept"]
    f1: Float[Tensor, "feature concept"]

    @staticmethod
    def concatenate(parts: Sequence["ConceptScores"]) -> "ConceptScores":
        """The scores of all features of `parts`, in order."""
        return ConceptScores(
            *(torch.cat(columns) for columns in zip(*(vars(p).values() for p in parts), strict=True))
        )


def score_features(
    code: SparseActivations, labels: ConceptAnnotations, thresholds: int, signed: bool = False
) -> ConceptScores:
    """Score every feature of `code` for every concept, with `thresholds` candidates a feature.

    Thresholds are 0 or more, unless `signed`: then `code` holds every token's value, and one may be negative.
    """
    columns = max(1, CHUNK_COUNTS // (thresholds * (len(labels.names) + 1)))
    parts = [
        _score_chunk(code.features(low, min(low + columns, code.width)), labels, thresholds, signed)
        for low in range(0, code.width, columns)
    ]
    return ConceptScores.concatenate(parts)


def score_columns(
    values: Float[Tensor, "token feature"],
    labels: ConceptAnnotations,
    thresholds: int,
    signed: bool = False,
    columns: int = 32,
) -> ConceptScores:
    """As `score_features`, of dense values, some at a time; only positive values count unless `signed`."""
    codes = (_columns(values[:, low : low + columns], signed) for low in range(0, values.shape[1], columns))
    return ConceptScores.concatenate([score_features(code, labels, thresholds, signed) for code in codes])


def _columns(values: Float[Tensor, "token feature"], signed: bool) -> SparseActivations:
    present = torch.ones_like(values, dtype=torch.bool) if signed else values > 0
    token, feature = present.nonzero(as_tuple=True)
    return SparseActivations(token, feature, values[token, feature], values.shape[1])


def _score_chunk(
    code: SparseActivations, labels: ConceptAnnotations, thresholds: int, signed: bool
) -> ConceptScores:
    chosen_from, scored_on = code.tokens(labels.choosing), code.tokens(~labels.choosing)
    candidates = _candidates(chosen_from, thresholds, signed)
    ratios = _ratios(_counts(chosen_from, candidates, labels), labels.positives(choosing=True))
    f1_choosing, best = ratios[2].nan_to_num(0.0).max(1)
    held = _ratios(_counts(scored_on, candidates, labels), labels.positives(choosing=False))
    precision, recall, f1 = (each.gather(1, best[:, None])[:, 0] for each in held)
    return ConceptScores(f1_choosing, candidates.gather(1, best), precision, recall, f1)


def _keys(feature: Int[Tensor, "*entry"], value: Float[Tensor, "*entry"]) -> Int[Tensor, "*entry"]:
    """Integers that sort by feature and then by value: a float's bits, read as an integer, keep its order."""
    # + 0.0 makes -0.0 the same as 0.0
    bits = (value.float() + 0.0).contiguous().view(torch.int32).long()
    return feature.long() * 2**32 + torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _values(keys: Int[Tensor, "*entry"], feature: Int[Tensor, "*entry"]) -> Float[Tensor, "*entry"]:
    """The values that `_keys` made of."""
    bits = keys - feature.long() * 2**32
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int32).view(torch.float32)


def _candidates(code: SparseActivations, thresholds: int, signed: bool) -> Float[Tensor, "feature threshold"]:
    """Ascending thresholds of each feature, exceeded by n, ..., 1 of its n entries, in equal ratios.

    The lowest is 0, or with `signed` the smallest value. A feature without entries gets zeros.
    """
    # numpy's sort uses vector instructions where torch's does not
    keys = torch.from_numpy(np.sort(_keys(code.feature, code.value).numpy()))
    n = torch.bincount(code.feature, minlength=code.width)[:, None]
    exponent = torch.linspace(0, 1, thresholds, dtype=torch.float64)
    rank = n.clamp_min(1).double().pow(exponent).round().long()
    feature = torch.arange(code.width)[:, None].expand_as(rank)
    # rank r is exceeded by the r largest, where there is one more entry to stand for the threshold
    place = n.cumsum(0) - 1 - (rank.minimum(n - 1))
    values = torch.zeros(rank.shape)
    there = (n > 0).expand_as(rank) if signed else rank < n
    values[there] = _values(keys[place[there]], feature[there])
    return values.sort(1).values


def _counts(
    code: SparseActivations, candidates: Float[Tensor, "feature threshold"], labels: ConceptAnnotations
) -> Int[Tensor, "feature threshold concept_plus_1"]:
    """Tokens above each threshold that have each concept; the last concept is "any token"."""
    n_features, n_thresholds = candidates.shape
    n_concepts = len(labels.names) + 1
    rows = torch.arange(n_features)[:, None].expand_as(candidates)
    edges = _keys(rows, candidates).flatten()
    # number of thresholds, over all features up to the entry's, that lie below the entry
    below = torch.searchsorted(edges, _keys(code.feature, code.value))
    above_any = below > code.feature.long() * n_thresholds
    cell, token = below[above_any] - 1, code.token[above_any].long()
    many = labels.start.diff()[token]
    # entry by entry, the numbers start[token], start[token] + 1, ... of its token's concepts
    first = torch.repeat_interleave(labels.start[token] - (many.cumsum(0) - many), many)
    concept = labels.concept[first + torch.arange(len(first))]
    key = torch.repeat_interleave(cell, many) * n_concepts + concept
    counts = torch.bincount(key, minlength=n_features * n_thresholds * n_concepts)
    return counts.view(n_features, n_thresholds, n_concepts).flip(1).cumsum(1).flip(1)


def _ratios(
    counts: Int[Tensor, "feature threshold concept_plus_1"], positives: Int[Tensor, " concept"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1, each [feature, threshold, concept]; NaN for 0 / 0."""
    hits, fires = counts[..., :-1].float(), counts[..., -1:].float()
    return hits / fires, hits / positives, 2 * hits / (fires + positives)


def best_features(
    scores: ConceptScores, labels: ConceptAnnotations, n_features: int, top: int = 1
) -> Iterator[dict[str, Any]]:
    """Of each concept the `top` features with the highest F1 on the choosing half: columns of the table.

    Rows of `scores` beyond `n_features` are the features' negative directions.
    """
    positives = labels.positives(choosing=False)
    for number, name in enumerate(labels.names):
        f1 = scores.f1_choosing[:, number]
        # the earlier of equals: topk would leave their order open
        order = f1.argsort(descending=True, stable=True)[:top]
        for rank, row in enumerate(order.tolist()):
            figures = {field: float(column[row, number]) for field, column in vars(scores).items()}
            yield {
                "concept": name,
                "rank": rank,
                "feature": row % n_features,
                "sign": 1 if row < n_features else -1,
                **{field: None if np.isnan(figure) else figure for field, figure in figures.items()},
                "n_positive": int(positives[number]),
            }
