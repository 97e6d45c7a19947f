"""The best feature of each planted concept in each run."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...config.cases.planted import PlantedCase
from ...core.layout import NEURONS
from ...evaluation.concept_matching import scored_activations, sparse_activations
from ...evaluation.concepts import ConceptAnnotations, SparseActivations
from ...evaluation.held_out import HeldOut
from ...language_model.batches import Batch
from ...language_model.hooks import Site
from ..context import CaseContext

TRANSCODER, SAE = "transcoder", "sae"
HALVES = ("choosing", "scoring")
"""Halves of the held-out documents. Features are chosen on the first half and scored on the second half."""
MAX_FIRING = 8
"""Maximum of (number of tokens above a threshold) / (number of tokens with the concept). Lower thresholds are skipped:
their F1 is below 2 / (1 + 8)."""
MATCH_COLUMNS = ("layer", "feature", "threshold", "precision", "recall", "f1", "f1_choosing")
"""Columns of the table `feature_concept` that `ConceptFeature` copies."""
Columns = Callable[[Sequence[int]], Float[Tensor, "token feature"]]
"""Maps feature indices to activations on every scored token."""


# Activations of some features at a time


def activations_by_layer(
    context: CaseContext, held_out: HeldOut, batch: Batch, neurons: bool
) -> Iterator[tuple[str, int, Columns]]:
    """Yields (run, layer, activations) of each dictionary. If `neurons` is true, also yields the neurons as the run
    `NEURONS`. Memory holds the activations of one layer at a time."""
    layers = sorted({layer for dictionaries in context.runs.values() for layer in dictionaries})
    for layer in layers:
        in_layer = {run: by_run[layer] for run, by_run in context.runs.items() if layer in by_run}
        sites = {Site(dictionary.site_in, layer) for dictionary in in_layer.values()}
        own = Site("neurons", layer)
        values = scored_activations(context.model, sorted({*sites, *[own] * neurons}), held_out, batch)
        for run, dictionary in in_layer.items():
            x = values[Site(dictionary.site_in, layer)]
            yield run, layer, sparse_columns(sparse_activations(dictionary, x), len(x))
        if neurons:
            yield NEURONS, layer, dense_columns(values.pop(own))
        # otherwise memory holds the values of two layers during the next pass
        values.clear()


def sparse_columns(code: SparseActivations, n_tokens: int) -> Columns:
    """Returns a function from feature indices to dense columns of activations."""
    order = code.feature.argsort(stable=True)
    token, value = code.token[order].long(), code.value[order].float()
    start = torch.searchsorted(code.feature[order], torch.arange(code.width + 1, dtype=code.feature.dtype))

    def columns(features: Sequence[int]) -> Float[Tensor, "token feature"]:
        # fill rows and transpose at the end, so that each column is contiguous in memory
        dense = torch.zeros(len(features), n_tokens)
        for row, feature in zip(dense, features, strict=True):
            own = slice(int(start[feature]), int(start[feature + 1]))
            row[token[own]] = value[own]
        return dense.T

    return columns


def dense_columns(values: Float[Tensor, "token feature"]) -> Columns:
    """Returns a function from feature indices to columns of `values`. Negative values become 0."""
    transposed = values.T.contiguous()
    return lambda features: transposed[list(features)].relu().T


# The feature of each concept


@dataclass(frozen=True)
class ConceptFeature:
    """Feature of a run with the largest F1 for a concept on the choosing half."""

    run: str
    concept: str
    layer: int
    feature: int
    threshold: float
    """Activation above which the feature predicts the concept."""
    precision: float | None
    recall: float | None
    f1: float | None
    """Precision, recall and F1 are measured on the scoring half. An undefined value is None."""
    f1_choosing: float
    f1_together: float
    """F1 of the best `FeatureSet` on the scoring half."""
    together_choosing: float
    """F1 of the best `FeatureSet` on the choosing half."""
    n_together: int
    together_layer: int
    fires: Mapping[str, Int[Tensor, "place 2"]]
    """Maps each half to places (sequence, position) where the token has the concept and the feature fires."""


def find_features(
    matched: pa.Table,
    activations: Iterable[tuple[str, int, Columns]],
    held_out: HeldOut,
    annotations: ConceptAnnotations,
    case: PlantedCase,
) -> list[ConceptFeature]:
    """Returns the best feature of each concept in each run, sorted by run and concept. `matched` has rows of the table
    `feature_concept`: the candidates of each concept."""
    rows: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for row in matched.to_pylist():
        rows.setdefault((row["run"], row["layer"]), {}).setdefault(row["concept"], []).append(row)
    positive = _positives(annotations)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for run, layer, columns in activations:
        for concept, unordered in rows.get((run, layer), {}).items():
            candidates = sorted(unordered, key=lambda row: row["rank"])
            values = columns([row["feature"] for row in candidates])
            fields = best.setdefault((run, concept), {"f1_choosing": -1.0, "together_choosing": -1.0})
            grown = grow_set(values, positive[concept], annotations.choosing, case.together)
            if grown.f1_choosing > fields["together_choosing"]:
                fields |= {"together_choosing": grown.f1_choosing, "f1_together": grown.f1}
                fields |= {"n_together": len(grown.columns), "together_layer": layer}
            first = candidates[0]
            if first["f1_choosing"] > fields["f1_choosing"]:
                right = positive[concept] & (values[:, 0] > first["threshold"])
                fields |= {name: first[name] for name in MATCH_COLUMNS}
                fields |= {"fires": _first_places(right, held_out, annotations, case.occurrences)}
        # it may hold the values of all neurons, and the next step of `activations` computes new ones
        del columns
    return [ConceptFeature(run, concept, **fields) for (run, concept), fields in sorted(best.items())]


def _positives(annotations: ConceptAnnotations) -> dict[str, Bool[Tensor, " token"]]:
    """Maps each concept to a mask of the tokens with this concept."""
    token = torch.repeat_interleave(torch.arange(len(annotations.choosing)), annotations.start.diff())
    positives = {}
    for number, name in enumerate(annotations.names):
        positives[name] = torch.zeros_like(annotations.choosing)
        positives[name][token[annotations.concept == number]] = True
    return positives


def _first_places(
    right: Bool[Tensor, " token"], held_out: HeldOut, annotations: ConceptAnnotations, most: int
) -> dict[str, Int[Tensor, "place 2"]]:
    """Maps each half to places (sequence, position): the first place in each document where `right` is true. A half has
    at most `most` places."""
    where = held_out.scored.nonzero()
    document = held_out.document[held_out.scored]
    places = {}
    for half, own in (("choosing", annotations.choosing), ("scoring", ~annotations.choosing)):
        token = (right & own).nonzero()[:, 0]
        new = torch.ones_like(token, dtype=torch.bool)
        new[1:] = document[token[1:]] != document[token[:-1]]
        places[half] = where[token[new][:most]]
    return places


@dataclass(frozen=True)
class FeatureSet:
    """Features that predict a concept together. A token is predicted if any feature exceeds its threshold."""

    columns: tuple[int, ...]
    """Indices of the features among the candidates, in the order of addition."""
    thresholds: tuple[float, ...]
    f1_choosing: float
    f1: float
    """F1 on the scoring half. NaN if this half has neither positives nor predicted positives."""


def grow_set(
    values: Float[Tensor, "token feature"],
    positive: Bool[Tensor, " token"],
    choosing: Bool[Tensor, " token"],
    most: int,
) -> FeatureSet:
    """Returns up to `most` features that predict a concept together.

    Each greedy step adds the feature and the threshold that give the set the largest F1 on the tokens in `choosing`.
    The search ends when no feature raises this F1. Thresholds are not negative.
    """
    chosen_from, truth = values[choosing], positive[choosing]
    total = int(truth.sum())
    ordered = [_descending(column, total) for column in chosen_from.unbind(1)]
    covered = torch.zeros_like(truth)
    columns: list[int] = []
    thresholds: list[float] = []
    best = 0.0
    while len(columns) < most and total:
        steps = [_best_threshold(*each, truth, covered, total) for each in ordered]
        column = max(range(len(steps)), key=lambda number: steps[number][0])
        f1, threshold = steps[column]
        if f1 <= best:
            break
        best = f1
        columns.append(column)
        thresholds.append(threshold)
        covered |= chosen_from[:, column] > threshold
    predicted = torch.zeros_like(positive)
    for column, threshold in zip(columns, thresholds, strict=True):
        predicted |= values[:, column] > threshold
    scored = _f1(predicted[~choosing], positive[~choosing])
    return FeatureSet(tuple(columns), tuple(thresholds), best, scored)


def _descending(column: Float[Tensor, " token"], positives: int) -> tuple[Tensor, Tensor]:
    """Returns the largest positive values in descending order, and their tokens. The number of tokens is at most
    `MAX_FIRING * positives`. The values have one more element at the end: the next smaller value, or 0."""
    token = (column > 0).nonzero()[:, 0]
    value, place = column[token].sort(descending=True, stable=True)
    kept = MAX_FIRING * positives
    # append 0: above the threshold 0, all positive values count
    value = torch.cat([value, value.new_zeros(1)])[: kept + 1]
    return value, token[place][:kept]


def _best_threshold(
    value: Float[Tensor, " rank_plus_1"],
    token: Int[Tensor, " rank"],
    truth: Bool[Tensor, " token"],
    covered: Bool[Tensor, " token"],
    total: int,
) -> tuple[float, float]:
    """Returns the largest F1 over all thresholds, and the threshold with this F1. Covered tokens and tokens above the
    threshold are predicted. `total` is the number of tokens with the concept."""
    new = ~covered[token]
    hits = int((truth & covered).sum()) + (new & truth[token]).cumsum(0)
    predicted = int(covered.sum()) + new.cumsum(0)
    f1 = 2 * hits / (predicted + total)
    # a threshold must lie between two different values
    f1 = f1.where(value[:-1] > value[1:], 0.0)
    if not len(f1):
        return 0.0, 0.0
    place = int(f1.argmax())
    below = float(value[place + 1])
    # use the midpoint, which generalizes to other tokens, but 0 if all positive values are above the threshold
    return float(f1[place]), (float(value[place]) + below) / 2 if below else 0.0


def _f1(predicted: Bool[Tensor, " token"], truth: Bool[Tensor, " token"]) -> float:
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else float("nan")
