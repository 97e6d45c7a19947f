"""Measurements of planted concepts: the best feature of each concept, and whether its sources are the cues."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...attribution.capture import capture_pass, read_weights
from ...attribution.direct_effects import make_targets, source_columns, total_effects
from ...attribution.linearized_model import LinearizedModel
from ...attribution.token_gradients import gradient_times_input, strongest_tokens
from ...config.cases.planted import PlantedCase
from ...core.layout import NEURONS
from ...evaluation.concept_matching import scored_activations, sparse_activations
from ...evaluation.concepts import ConceptAnnotations, SparseActivations
from ...evaluation.held_out import HeldOut
from ...language_model.batches import Batch
from ...language_model.hooks import Site
from ...language_model.residual import neuron_output_weights
from ..context import CaseContext

TRANSCODER, SAE = "transcoder", "sae"
HALVES = ("choosing", "scoring")
"""Halves of the held-out documents. Features are chosen on the first half and scored on the second half."""
GRADIENT_BATCH = 32
"""Number of prompts per backward pass."""
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


# Source tokens


@dataclass(frozen=True)
class TokenContributions:
    """Contribution of each token to a feature at one place."""

    effect: Float[Tensor, " position"]
    """Contribution of each token. The contribution of a separator of documents is 0 unless it is a cue."""
    position: int
    """Position where the feature fires."""
    cues: list[list[int]]
    """Token positions of each cue of the concept."""
    optional: list[int]
    """Positions of optional words. An optional word is neither right nor wrong as a source."""


@dataclass(frozen=True)
class SourceScore:
    """Agreement of a feature's sources with the cues of its concept, over places where the feature fires."""

    precision: float | None
    """Share of the sources that belong to a cue. Optional words do not count. None if no sources remain."""
    strict: float | None
    """Share of the sources that belong to a cue. Optional words count as wrong."""
    recall: float
    """Share of the cues with at least one word among the sources."""
    n: int
    """Number of places."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, or 0 if no source belongs to a cue."""
        return harmonic_mean(self.precision, self.recall)


Contributions = Mapping[tuple[int, str], list[TokenContributions]]
"""Maps (index of a feature, half) to the contributions at each place where the feature fires."""


def harmonic_mean(precision: float | None, recall: float | None) -> float:
    """Returns 2 p r / (p + r) of precision p and recall r, or 0 if the ratio is undefined."""
    if precision is None or recall is None or not precision + recall:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def mean_of(name: str, scores: Sequence[SourceScore]) -> float | None:
    """Returns the mean of the field `name` over all scores in which the field is not None. Returns None if no such
    scores exist."""
    values = [value for score in scores if (value := getattr(score, name)) is not None]
    return fmean(values) if values else None


def trace_circuits(
    context: CaseContext, held_out: HeldOut, concepts: pa.Table, features: Sequence[ConceptFeature]
) -> Contributions:
    """Returns the effect of each token's embedding on transcoder features, over all paths."""
    cues = _CueTable(concepts, held_out, context.tokenizer.separator_id)
    weights = read_weights(context.model)
    wanted: dict[int, dict[tuple[str, int], list[tuple[int, str, int]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for number, half, sequence, position in _places(features):
        each = features[number]
        wanted[sequence][each.run, each.layer].append((number, half, position))
    contributions = defaultdict(list)
    for sequence, groups in sorted(wanted.items()):
        last = max(position for group in groups.values() for _, _, position in group)
        token = held_out.token[sequence, : last + 1].to(context.model.device)
        captured = capture_pass(context.model, weights, token)
        linearized = {
            run: LinearizedModel(captured, context.runs[run], context.tokenizer.separator_id)
            for run in {r for r, _ in groups}
        }
        for (run, layer), group in groups.items():
            feature = torch.tensor([features[number].feature for number, _, _ in group])
            position = torch.tensor([position for _, _, position in group], device=token.device)
            dictionary = linearized[run].dictionaries[layer]
            rows, bias = dictionary.W_enc[feature], dictionary.b_enc[feature]
            targets = make_targets(linearized[run], layer, position, rows, bias)
            embeddings = source_columns(linearized[run]).embeddings
            effects = total_effects(linearized[run], targets)[:, embeddings].float().cpu()
            for (number, half, at), effect in zip(group, effects, strict=True):
                contributions[number, half].append(
                    cues.contributions(features[number].concept, sequence, at, effect)
                )
    return contributions


def trace_gradients(
    context: CaseContext, held_out: HeldOut, concepts: pa.Table, features: Sequence[ConceptFeature]
) -> Contributions:
    """Returns gradient times input of each token's embedding in the original model, for features of any kind."""
    cues = _CueTable(concepts, held_out, context.tokenizer.separator_id)
    groups: dict[tuple[str, int], list[tuple[int, str, int, int]]] = defaultdict(list)
    for place in _places(features):
        groups[features[place[0]].run, features[place[0]].layer].append(place)
    contributions = defaultdict(list)
    for (run, layer), places in groups.items():
        site, directions = _encoder(context, run, layer)
        # sort, so that the prompts of a batch have similar lengths
        places.sort(key=lambda place: place[3])
        for start in range(0, len(places), GRADIENT_BATCH):
            part = places[start : start + GRADIENT_BATCH]
            sequence, position = (torch.tensor([place[i] for place in part]) for i in (2, 3))
            token = held_out.token[sequence, : int(position.max()) + 1]
            vectors = directions[torch.tensor([features[place[0]].feature for place in part])]
            effects = gradient_times_input(context.model, token, site, vectors, position)
            for (number, half, row, at), effect in zip(part, effects.float().cpu(), strict=True):
                contributions[number, half].append(
                    cues.contributions(features[number].concept, row, at, effect)
                )
    return contributions


def score_sources(places: Sequence[TokenContributions], share: float) -> SourceScore | None:
    """Returns the score of a feature's sources over `places`, or None if there are no places. Sources are the fewest
    tokens that hold `share` of all contributions."""
    hits = false = chosen = cues_hit = n_cues = 0
    for each in places:
        sources = set(strongest_tokens(each.effect[None], share)[0].nonzero()[:, 0].tolist())
        cue_words = {position for cue in each.cues for position in cue}
        hits += len(sources & cue_words)
        chosen += len(sources)
        false += len(sources - cue_words - set(each.optional))
        cues_hit += sum(not sources.isdisjoint(cue) for cue in each.cues)
        n_cues += len(each.cues)
    if not places:
        return None
    precision = hits / (hits + false) if hits + false else None
    return SourceScore(precision, hits / chosen if chosen else None, cues_hit / n_cues, len(places))


def choose_share(contributions: Contributions, numbers: Sequence[int], shares: Sequence[float]) -> float:
    """Returns the element of `shares` with the best sources on the choosing half of the documents.

    The best sources have the largest harmonic mean of mean precision and mean recall. `numbers` are the indices of the
    features.
    """

    def quality(share: float) -> float:
        scores = [
            score
            for number in numbers
            if (score := score_sources(contributions.get((number, "choosing"), []), share))
        ]
        return harmonic_mean(mean_of("precision", scores), mean_of("recall", scores))

    return max(shares, key=quality)


def _places(features: Sequence[ConceptFeature]) -> list[tuple[int, str, int, int]]:
    """Returns (index in `features`, half, sequence, position) of each traced place."""
    return [
        (number, half, sequence, position)
        for number, each in enumerate(features)
        for half in HALVES
        for sequence, position in each.fires[half].tolist()
    ]


def _encoder(context: CaseContext, run: str, layer: int) -> tuple[Site, Float[Tensor, "feature d"]]:
    """Returns the input site of a run's features at a layer, and the encoder row of each feature."""
    if run == NEURONS:
        return Site("neurons", layer), torch.eye(len(neuron_output_weights(context.model, layer)))
    dictionary = context.runs[run][layer]
    return Site(dictionary.site_in, layer), dictionary.W_enc


class _CueTable:
    """Looks up the cues of a concept at a place (sequence, position) in the table `concept`."""

    def __init__(self, concepts: pa.Table, held_out: HeldOut, separator_id: int | None) -> None:
        self.token, self.separator_id = held_out.token, separator_id
        self.concepts = concepts
        self.by_concept: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}

    def contributions(
        self, concept: str, sequence: int, position: int, effect: Float[Tensor, " position"]
    ) -> TokenContributions:
        if concept not in self.by_concept:
            rows = self.concepts.filter(pc.field("concept") == concept).to_pylist()
            self.by_concept[concept] = {(row["sequence"], row["position"]): row for row in rows}
        row = self.by_concept[concept][sequence, position]
        cues: list[list[int]] = row["cues"]
        is_cue = torch.zeros_like(effect, dtype=torch.bool)
        is_cue[[place for cue in cues for place in cue]] = True
        # the separator gets much attention for any text (attention sink), so it counts only if it is a cue
        sink = (self.token[sequence, : len(effect)] == self.separator_id) & ~is_cue
        return TokenContributions(effect.masked_fill(sink, 0.0), position, cues, row["optional"])


# Results


@dataclass(frozen=True)
class ConceptOutcome:
    """Measurements of one concept in one run."""

    kind: str
    feature: ConceptFeature
    is_found: bool
    circuit: SourceScore | None
    """Score of the sources found through circuits. None if the run has no transcoders, or if the concept was not
    found."""
    gradient: SourceScore | None
    """Score of the sources found by gradient. None if the concept was not found."""
    shares: tuple[float | None, float | None]
    """Share of all contributions that the sources hold: (through circuits, by gradient)."""
    contextual: bool
    """Whether, at some place, the cues are not only the token where the feature fires."""

    @property
    def source_score(self) -> SourceScore | None:
        """`circuit` for transcoders, `gradient` for other kinds."""
        return self.circuit if self.kind == TRANSCODER else self.gradient


@dataclass(frozen=True)
class PlantedResults:
    """Outcomes of all concepts in all runs."""

    runs: dict[str, dict[str, ConceptOutcome]]
    """Outcomes by run, then by concept."""

    @cached_property
    def concepts(self) -> list[str]:
        """Names of the concepts, sorted."""
        return sorted({concept for outcomes in self.runs.values() for concept in outcomes})

    def best(self, kind: str, bound: float) -> str | None:
        """Returns the run of the given kind that finds the most concepts on the choosing half, or None if no run has
        this kind."""

        def quality(run: str) -> tuple[int, float]:
            f1 = [outcome.feature.f1_choosing for outcome in self.runs[run].values()]
            return sum(value >= bound for value in f1), sum(f1)

        own = [run for run, outcomes in self.runs.items() if next(iter(outcomes.values())).kind == kind]
        return max(own, key=quality) if own else None
