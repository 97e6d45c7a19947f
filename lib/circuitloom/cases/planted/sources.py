"""Where features come from: the tokens of their circuits, held against the words that tell the planted concept."""

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
from ...evaluation.held_out import HeldOut
from ...evaluation.names import NEURONS
from ...language_model.hooks import Site
from ...language_model.residual import neuron_rows
from ..context import CaseContext
from .found import ConceptFeature

AT_ONCE = 32
"""Prompts that a gradient is taken of at once."""
HALVES = ("choosing", "scoring")


@dataclass(frozen=True)
class SourceScore:
    """How well the sources of a feature are the words that tell its concept, over some places where it fires."""

    precision: float | None
    """Share that cues are of the sources that are not optional; None where there are none."""
    strict: float | None
    """The same share of all sources, as if optional words were wrong."""
    recall: float
    """Share of the cues of which a word is among the sources."""
    n: int
    """Places."""

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 where no source is a cue."""
        return harmonic(self.precision, self.recall)


@dataclass(frozen=True)
class TokenContributions:
    """What each token contributes to a feature at one place."""

    effect: Float[Tensor, " position"]
    """0 for a BOS that is no cue."""
    position: int
    """Where the feature fires."""
    cues: list[list[int]]
    optional: list[int]


def harmonic(precision: float | None, recall: float | None) -> float:
    """F1 of precision and recall; 0 where either is missing, or both are 0."""
    if precision is None or recall is None or not precision + recall:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def mean_of(figure: str, every: Sequence[SourceScore]) -> float | None:
    """Mean of one figure over those that have it; None where none has."""
    values = [value for told in every if (value := getattr(told, figure)) is not None]
    return fmean(values) if values else None


Traced = Mapping[tuple[int, str], list[TokenContributions]]
"""Number of the feature, and half of the documents, to each place where it fires."""


def trace_circuits(
    opened: CaseContext, held_out: HeldOut, concepts: pa.Table, found: Sequence[ConceptFeature]
) -> Traced:
    """Tokens' effects through the circuits of features of transcoders, all errors left out."""
    cues = _Cues(concepts, held_out, opened.tokenizer.bos_id)
    weights = read_weights(opened.model)
    wanted: dict[int, dict[tuple[str, int], list[tuple[int, str, int]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for number, half, sequence, position in _places(found):
        each = found[number]
        wanted[sequence][each.run, each.layer].append((number, half, position))
    traced = defaultdict(list)
    for sequence, groups in sorted(wanted.items()):
        last = max(position for group in groups.values() for _, _, position in group)
        token = held_out.token[sequence, : last + 1].to(opened.model.device)
        frozen = capture_pass(opened.model, weights, token)
        local = {
            run: LinearizedModel(frozen, opened.runs[run], opened.tokenizer.bos_id)
            for run in {r for r, _ in groups}
        }
        for (run, layer), group in groups.items():
            features = torch.tensor([found[number].feature for number, _, _ in group])
            position = torch.tensor([position for _, _, position in group], device=token.device)
            dictionary = local[run].dictionaries[layer]
            rows, bias = dictionary.W_enc[features], dictionary.b_enc[features]
            targets = make_targets(local[run], layer, position, rows, bias)
            effects = total_effects(local[run], targets)[:, source_columns(local[run]).embeddings].float().cpu()
            for (number, half, at), effect in zip(group, effects, strict=True):
                traced[number, half].append(cues.of(found[number].concept, sequence, at, effect))
    return traced


def trace_gradients(
    opened: CaseContext, held_out: HeldOut, concepts: pa.Table, found: Sequence[ConceptFeature]
) -> Traced:
    """Gradient times input of tokens' embeddings, of features of any kind, in the model itself."""
    cues = _Cues(concepts, held_out, opened.tokenizer.bos_id)
    groups: dict[tuple[str, int], list[tuple[int, str, int, int]]] = defaultdict(list)
    for place in _places(found):
        groups[found[place[0]].run, found[place[0]].layer].append(place)
    traced = defaultdict(list)
    for (run, layer), places in groups.items():
        site, directions = _reads(opened, run, layer)
        # together what is of about one length
        places.sort(key=lambda place: place[3])
        for start in range(0, len(places), AT_ONCE):
            part = places[start : start + AT_ONCE]
            sequence, position = (torch.tensor([place[i] for place in part]) for i in (2, 3))
            token = held_out.token[sequence, : int(position.max()) + 1]
            vectors = directions[torch.tensor([found[place[0]].feature for place in part])]
            effects = gradient_times_input(opened.model, token, site, vectors, position)
            for (number, half, row, at), effect in zip(part, effects.float().cpu(), strict=True):
                traced[number, half].append(cues.of(found[number].concept, row, at, effect))
    return traced


def judge(places: Sequence[TokenContributions], share: float) -> SourceScore | None:
    """How well sources that hold `share` of what all tokens contribute are the words that tell; None without places."""
    hits = false = chosen = told = needed = 0
    for each in places:
        largest = set(strongest_tokens(each.effect[None], share)[0].nonzero()[:, 0].tolist())
        telling = {position for cue in each.cues for position in cue}
        hits += len(largest & telling)
        chosen += len(largest)
        false += len(largest - telling - set(each.optional))
        told += sum(not largest.isdisjoint(cue) for cue in each.cues)
        needed += len(each.cues)
    if not places:
        return None
    precision = hits / (hits + false) if hits + false else None
    return SourceScore(precision, hits / chosen if chosen else None, told / needed, len(places))


def choose_share(traced: Traced, numbers: Sequence[int], shares: Sequence[float]) -> float:
    """The share at which the sources of some features are best on the choosing half: of the largest F1 of mean
    precision and mean recall."""

    def quality(share: float) -> float:
        every = [told for number in numbers if (told := judge(traced.get((number, "choosing"), []), share))]
        return harmonic(mean_of("precision", every), mean_of("recall", every))

    return max(shares, key=quality)


def _places(found: Sequence[ConceptFeature]) -> list[tuple[int, str, int, int]]:
    """Number of the feature, half, sequence and position of every place to be traced."""
    return [
        (number, half, sequence, position)
        for number, each in enumerate(found)
        for half in HALVES
        for sequence, position in each.fires[half].tolist()
    ]


def _reads(opened: CaseContext, run: str, layer: int) -> tuple[Site, Float[Tensor, "feature d"]]:
    """The site that features read, and by which vectors."""
    if run == NEURONS:
        return Site("neurons", layer), torch.eye(len(neuron_rows(opened.model, layer)))
    dictionary = opened.runs[run][layer]
    return Site(dictionary.site_in, layer), dictionary.W_enc


class _Cues:
    """The words that tell labels, looked up by place."""

    def __init__(self, concepts: pa.Table, held_out: HeldOut, bos_id: int | None) -> None:
        self.token, self.bos_id = held_out.token, bos_id
        self.concepts = concepts
        self.known: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}

    def of(
        self, concept: str, sequence: int, position: int, effect: Float[Tensor, " position"]
    ) -> TokenContributions:
        if concept not in self.known:
            rows = self.concepts.filter(pc.field("concept") == concept).to_pylist()
            self.known[concept] = {(row["sequence"], row["position"]): row for row in rows}
        row = self.known[concept][sequence, position]
        cues: list[list[int]] = row["cues"]
        telling = torch.zeros_like(effect, dtype=torch.bool)
        telling[[place for cue in cues for place in cue]] = True
        # heads rest on a BOS whatever the text is
        silent = (self.token[sequence, : len(effect)] == self.bos_id) & ~telling
        return TokenContributions(effect.masked_fill(silent, 0.0), position, cues, row["optional"])
