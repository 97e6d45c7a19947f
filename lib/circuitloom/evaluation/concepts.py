"""Measures how well a single feature predicts that a token has a concept.

The prediction for a token is positive if the feature's activation exceeds a threshold. The score is the F1 of this
prediction. The feature and the threshold are chosen on one half of the documents (the choosing half). The score is
computed on the other half (the scoring half).

1. `concept_annotations` finds the concepts of each token.
2. `_candidates` chooses the candidate thresholds of each feature. Candidates are activations at geometrically spaced
   ranks. Rare and frequent concepts therefore have equally fine thresholds.
3. `_counts` counts tokens for all thresholds and concepts. A token is counted if it has the concept and the activation
   exceeds the threshold.
4. `best_features` picks the best features of each concept.
"""

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
    """Concepts of the scored tokens, in CSR layout."""

    names: tuple[str, ...]
    """Name of each concept, indexed by concept number."""
    start: Int[Tensor, " token_plus_1"]
    """Token t has the entries start[t]:start[t + 1]."""
    concept: Int[Tensor, " entry"]
    """Concept number of each entry. The last entry of each token is len(names), which means "any token"."""
    choosing: Bool[Tensor, " token"]
    """True for tokens in the choosing half, false for tokens in the scoring half."""

    def positives(self, choosing: bool) -> Int[Tensor, " concept"]:
        """Returns the number of tokens with each concept, in the choosing half or in the scoring half."""
        token = torch.repeat_interleave(torch.arange(len(self.choosing)), self.start.diff())
        mine = self.concept[self.choosing[token] == choosing]
        return torch.bincount(mine, minlength=len(self.names) + 1)[:-1]


def concept_annotations(concepts: pa.Table, held_out: HeldOut) -> ConceptAnnotations:
    """Returns the annotations of the scored tokens in `held_out`. `concepts` is a CONCEPT table.

    The choosing half consists of the documents with even document numbers.
    """
    index = torch.full(held_out.token.shape, -1)
    index[held_out.scored] = torch.arange(held_out.n_tokens)
    concepts = concepts.filter(pc.field("sequence") < len(held_out))
    names, number = np.unique(concepts["concept"].cast(pa.string()).to_numpy(), return_inverse=True)
    sequence, position = (
        torch.from_numpy(concepts[c].to_numpy().astype(np.int64)) for c in ("sequence", "position")
    )
    token, number = index[sequence, position], torch.from_numpy(number)
    token, number = token[token >= 0], number[token >= 0]
    all_tokens = torch.arange(held_out.n_tokens)
    token = torch.cat([token, all_tokens])
    concept = torch.cat([number, torch.full_like(all_tokens, len(names))])
    # sorted by token, then by concept, so that "any token" comes last
    order = (token * (len(names) + 1) + concept).argsort()
    start = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(token, minlength=held_out.n_tokens).cumsum(0)]
    )
    choosing = held_out.document[held_out.scored] % 2 == 0
    return ConceptAnnotations(tuple(names.tolist()), start, concept[order], choosing)


MAX_COUNTS = 2**22
"""Maximum number of (feature, threshold, concept) counts in memory."""


@dataclass(frozen=True)
class SparseActivations:
    """Non-zero activations [token, feature], in COO layout."""

    token: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    width: int
    """Number of features, F."""


@dataclass(frozen=True)
class ConceptScores:
    """Scores of each feature for each concept at the chosen threshold.

    Precision, recall and F1 on the scoring half are NaN if they are 0 / 0.
    """

    f1_choosing: Float[Tensor, "feature concept"]
    threshold: Float[Tensor, "feature concept"]
    precision: Float[Tensor, "feature concept"]
    recall: Float[Tensor, "feature concept"]
    f1: Float[Tensor, "feature concept"]

    @staticmethod
    def concatenate(scores: Sequence["ConceptScores"]) -> "ConceptScores":
        """Returns `scores`, concatenated along the feature dimension."""
        return ConceptScores(
            *(torch.cat(columns) for columns in zip(*(vars(s).values() for s in scores), strict=True))
        )


def score_features(
    activations: SparseActivations, annotations: ConceptAnnotations, thresholds: int, signed: bool = False
) -> ConceptScores:
    """Returns the scores of every feature for every concept. Each feature has `thresholds` candidate thresholds.

    If `signed` is false, thresholds are at least 0. If `signed` is true, thresholds may be negative. Then `activations`
    must contain a value for every token and feature.

    >>> from circuitloom.evaluation.concepts import SparseActivations
    >>> activations = SparseActivations(*dictionary.encode_sparse(x), dictionary.width)
    >>> scores = score_features(activations, annotations, thresholds=256)
    >>> scores.f1.nan_to_num().max(dim=0)
    """
    chosen = annotations.choosing[activations.token.long()]
    choosing, scoring = (_sort_entries(activations, mask) for mask in (chosen, ~chosen))
    size = max(1, MAX_COUNTS // (thresholds * (len(annotations.names) + 1)))
    ranges = [(low, min(low + size, activations.width)) for low in range(0, activations.width, size)]
    return ConceptScores.concatenate(
        [
            _score_range(
                choosing.features(*limits), scoring.features(*limits), annotations, thresholds, signed
            )
            for limits in ranges
        ]
    )


def score_columns(
    values: Float[Tensor, "token feature"],
    annotations: ConceptAnnotations,
    thresholds: int,
    signed: bool = False,
    columns: int = 32,
) -> ConceptScores:
    """Returns the scores of dense activations, [token, feature]. `score_features` describes the scores.

    If `signed` is false, negative values count as 0. `columns` features are scored at a time.
    """
    parts = (_to_sparse(values[:, low : low + columns], signed) for low in range(0, values.shape[1], columns))
    return ConceptScores.concatenate(
        [score_features(part, annotations, thresholds, signed) for part in parts]
    )


def _to_sparse(values: Float[Tensor, "token feature"], signed: bool) -> SparseActivations:
    present = torch.ones_like(values, dtype=torch.bool) if signed else values > 0
    token, feature = present.nonzero(as_tuple=True)
    return SparseActivations(token, feature, values[token, feature], values.shape[1])


@dataclass(frozen=True)
class _SortedEntries:
    """Non-zero activations, sorted by feature and then by value."""

    key: Int[Tensor, " entry"]
    """Feature and value of each entry, from `_keys`."""
    token: Int[Tensor, " entry"]
    width: int
    """Number of features."""

    @property
    def feature(self) -> Int[Tensor, " entry"]:
        """Feature of each entry."""
        return (self.key + 2**31) >> 32

    def features(self, low: int, high: int) -> "_SortedEntries":
        """Returns the entries of features low:high. These features are renumbered from 0."""
        edges = torch.tensor([low, high]) * 2**32 - 2**31
        mine = slice(*torch.searchsorted(self.key, edges).tolist())
        return _SortedEntries(self.key[mine] - low * 2**32, self.token[mine], high - low)


def _sort_entries(activations: SparseActivations, mask: Bool[Tensor, " entry"]) -> _SortedEntries:
    """Returns the entries where `mask` is true."""
    key = _keys(activations.feature[mask], activations.value[mask])
    # numpy's sort is vectorised, torch's is not
    order = torch.from_numpy(np.argsort(key.numpy()))
    return _SortedEntries(key[order], activations.token[mask][order].long(), activations.width)


def _score_range(
    choosing: _SortedEntries,
    scoring: _SortedEntries,
    annotations: ConceptAnnotations,
    thresholds: int,
    signed: bool,
) -> ConceptScores:
    candidates = _candidates(choosing, thresholds, signed)
    chosen = _ratios(_counts(choosing, candidates, annotations), annotations.positives(choosing=True))
    f1_choosing, best = chosen[2].nan_to_num(0.0).max(1)
    scored = _ratios(_counts(scoring, candidates, annotations), annotations.positives(choosing=False))
    precision, recall, f1 = (each.gather(1, best[:, None])[:, 0] for each in scored)
    return ConceptScores(f1_choosing, candidates.gather(1, best), precision, recall, f1)


def _keys(feature: Int[Tensor, "*entry"], value: Float[Tensor, "*entry"]) -> Int[Tensor, "*entry"]:
    """Returns one integer key per entry. Keys are ordered by feature, then by value."""
    # + 0.0 turns -0.0 into 0.0. Non-negative floats have the same order as their bits, read as integers. For negative
    # floats, all bits except the sign bit are flipped.
    bits = (value.float() + 0.0).contiguous().view(torch.int32).long()
    return feature.long() * 2**32 + torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _values(keys: Int[Tensor, "*entry"], feature: Int[Tensor, "*entry"]) -> Float[Tensor, "*entry"]:
    """Returns the value of each key. This function is the inverse of `_keys`."""
    bits = keys - feature.long() * 2**32
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int32).view(torch.float32)


def _candidates(entries: _SortedEntries, thresholds: int, signed: bool) -> Float[Tensor, "feature threshold"]:
    """Returns the candidate thresholds of each feature, in ascending order.

    The numbers of entries above the thresholds are geometrically spaced. One entry exceeds the highest threshold. The
    lowest threshold is 0, or the feature's smallest value if `signed` is true. A feature without entries has only
    thresholds of 0.
    """
    n = torch.bincount(entries.feature, minlength=entries.width)[:, None]
    exponent = torch.linspace(0, 1, thresholds, dtype=torch.float64)
    rank = n.clamp_min(1).double().pow(exponent).round().long()
    feature = torch.arange(entries.width)[:, None].expand_as(rank)
    # the threshold of rank r is the (r + 1)-th largest entry, so that the r largest entries exceed the threshold
    index = n.cumsum(0) - 1 - (rank.minimum(n - 1))
    values = torch.zeros(rank.shape)
    exists = (n > 0).expand_as(rank) if signed else rank < n
    values[exists] = _values(entries.key[index[exists]], feature[exists])
    return values.sort(1).values


def _counts(
    entries: _SortedEntries,
    candidates: Float[Tensor, "feature threshold"],
    annotations: ConceptAnnotations,
) -> Int[Tensor, "feature threshold concept_plus_1"]:
    """Returns numbers of tokens as counts[feature, threshold, concept].

    A token is counted if it has the concept and the feature's activation exceeds the threshold. The last concept is
    "any token".
    """
    n_features, n_thresholds = candidates.shape
    n_concepts = len(annotations.names) + 1
    rows = torch.arange(n_features)[:, None].expand_as(candidates)
    edges = _keys(rows, candidates).flatten()
    # below[i] is the number of thresholds below entry i, including all thresholds of earlier features
    first_above = torch.searchsorted(entries.key, edges, right=True)
    bounds = torch.cat([first_above.new_zeros(1), first_above, first_above.new_tensor([len(entries.key)])])
    below = torch.repeat_interleave(torch.arange(len(edges) + 1), bounds.diff())
    above_any = below > entries.feature * n_thresholds
    cell, token = below[above_any] - 1, entries.token[above_any]
    n_of_token = annotations.start.diff()[token]
    # the indices start[token], start[token] + 1, ... of the concepts of each entry's token
    first = torch.repeat_interleave(
        annotations.start[token] - (n_of_token.cumsum(0) - n_of_token), n_of_token
    )
    concept = annotations.concept[first + torch.arange(len(first))]
    key = torch.repeat_interleave(cell, n_of_token) * n_concepts + concept
    counts = torch.bincount(key, minlength=n_features * n_thresholds * n_concepts)
    return counts.view(n_features, n_thresholds, n_concepts).flip(1).cumsum(1).flip(1)


def _ratios(
    counts: Int[Tensor, "feature threshold concept_plus_1"], positives: Int[Tensor, " concept"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns precision, recall and F1, which have the shape [feature, threshold, concept]. 0 / 0 gives NaN."""
    hits, fires = counts[..., :-1].float(), counts[..., -1:].float()
    return hits / fires, hits / positives, 2 * hits / (fires + positives)


def best_features(
    scores: ConceptScores, annotations: ConceptAnnotations, n_features: int, top: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield FEATURE_CONCEPT rows of the `top` best features of each concept, without the columns `run` and `layer`.

    Features are ranked by their F1 on the choosing half of the documents. Row i of `scores` belongs to feature i. Row
    `n_features` + i, if present, belongs to the negative direction of feature i.
    """
    positives = annotations.positives(choosing=False)
    for number, name in enumerate(annotations.names):
        f1 = scores.f1_choosing[:, number]
        # a stable argsort is used because the order of topk is undefined for ties
        order = f1.argsort(descending=True, stable=True)[:top]
        for rank, row in enumerate(order.tolist()):
            values = {field: float(column[row, number]) for field, column in vars(scores).items()}
            yield {
                "concept": name,
                "rank": rank,
                "feature": row % n_features,
                "sign": 1 if row < n_features else -1,
                **{field: None if np.isnan(value) else value for field, value in values.items()},
                "n_positive": int(positives[number]),
            }
