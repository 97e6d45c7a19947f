"""Source tokens of features, through circuits and by gradient, compared with the cues of the features' concepts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution.capture import capture_pass, read_weights
from ...attribution.direct_effects import make_targets, source_columns, total_effects
from ...attribution.linearized_model import LinearizedModel
from ...attribution.token_gradients import gradient_times_input, strongest_tokens
from ...core.layout import NEURONS
from ...evaluation.held_out import HeldOut
from ...language_model.hooks import Site
from ...language_model.residual import neuron_output_weights
from ..context import CaseContext
from .concept_features import HALVES, ConceptFeature

GRADIENT_BATCH = 32
"""Number of prompts per backward pass."""


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
            rows, bias = dictionary.encoder_rows(feature), dictionary.b_enc[feature]
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
