"""Predictions of the blind protocol: which tokens a feature fires on, from what never shows a text.

`restricted` knows the weights: the score of a token is what its embedding adds to the feature's pre-activation,
directly and through what layer 0's dictionary makes of it. `plain` also knows, of some contexts in which the
feature fires, how much each layer-0 feature, by its number, adds to it there, and by which vectors it reads
embeddings through patterns of heads and denominators of norms as they are there. The score is mean vector times
embedding, plus the sum over layer-0 features of mean contribution times the token's activation by itself, a share
of the largest of any token. In layer 0 itself no feature is in between, and the first part is all.

Predicted is every token whose score, mean over the vocabulary taken off, exceeds half the largest. `restricted`
says `here`: weights do not tell where attention looks. `plain` says `previous` where the token before the one at
which the feature fires contributes more than that one does. The blind protocol: predict which tokens a feature
fires on without having seen a text, then count."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.capture import ModelWeights, capture_pass
from ..attribution.direct_effects import AttributionTargets, make_targets
from ..attribution.linearized_model import LinearizedModel
from ..core.progress import progress
from ..core.tables import BLIND, write_table
from ..corpus.tokens import Tokens
from ..dictionaries.dictionary import Dictionary
from ..evaluation.concept_matching import scored_activations, sparse_activations
from ..evaluation.held_out import HeldOut, count_sequences, load_sequences
from ..language_model.hooks import Site
from ..language_model.model import LanguageModel
from .deembedding import TokenEmbeddings, encoder_in_residual, require_transcoder

PLACES = ("here", "previous")
"""Where predicted tokens stand: so many tokens, 0 or 1, before the one at which the feature fires."""


@dataclass(frozen=True)
class ActivePositions:
    """Where some features of a layer fire, by feature and then in the order of the text."""

    sequence: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]

    def of(self, features: Int[Tensor, " some"]) -> "Firing":
        """The entries of some features."""
        return self.take(torch.isin(self.feature, features))

    def take(self, which: Tensor) -> "Firing":
        """Some entries."""
        return ActivePositions(*(column[which] for column in vars(self).values()))

    def spread(self, n: int) -> "Firing":
        """Of each feature `n` entries, evenly spaced over the text, or all where they are few."""
        _, group, counts = torch.unique_consecutive(self.feature, return_inverse=True, return_counts=True)
        place = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group]
        many = counts[group]
        middle = (2 * (place * n // many) + 1) * many // (2 * n)
        return self.take((many <= n) | (place == middle))


@dataclass(frozen=True)
class ContextMeans:
    """What is known of some features of a layer from contexts in which they fire; means over the contexts."""

    read: Float[Tensor, "feature place d"]
    """By which vectors they read embeddings at each of `PLACES`."""
    contribution: Float[Tensor, "feature place first"]
    """What each layer-0 feature there adds to them."""
    total: Float[Tensor, "feature place"]
    """What embeddings and layer-0 features there add, together."""


@dataclass(frozen=True)
class Prediction:
    """Which tokens each of some features is said to fire on."""

    score_predictions: Float[Tensor, "feature token"]
    place: Int[Tensor, " feature"]
    """Number of one of `PLACES`."""

    @property
    def token(self) -> Bool[Tensor, "feature token"]:
        """Those that are predicted: score above its mean by more than half of what the largest is."""
        above = self.score - self.score.mean(1, keepdim=True)
        return above > above.amax(1, keepdim=True) / 2


def predict_restricted(
    weights: ModelWeights, layer: int, rows: Float[Tensor, "feature d"], tokens: TokenEmbeddings
) -> Prediction:
    """From encoder rows of a layer and what tokens bring into the stream by themselves."""
    written = tokens.embedding
    if layer > 0 and tokens.layer0_output is not None:
        written = written + tokens.layer0_output
    score_predictions = encoder_in_residual(weights, layer, rows) @ written.T
    return Prediction(score_predictions, torch.zeros(len(score_predictions), dtype=torch.int64, device=score_predictions.device))


def predict_plain(evidence: ContextMeans, tokens: TokenEmbeddings) -> Prediction:
    """From what is known of contexts."""
    place = evidence.total.argmax(1)
    feature = torch.arange(len(place), device=place.device)
    score_predictions = evidence.read[feature, place] @ tokens.embedding.T
    if tokens.layer0_activations is not None:
        # a feature that fires on no token by itself names none
        largest = tokens.layer0_activations.largest
        share = torch.where(largest > 0, evidence.contribution[feature, place] / largest, 0.0)
        score_predictions = score_predictions + tokens.layer0_activations.weigh(share.T.contiguous()).T
    return Prediction(score_predictions, place)


@torch.inference_mode()
def compute_context_means(
    prompts: Iterable[tuple[int, LinearizedModel]], contexts: Mapping[int, ActivePositions]
) -> dict[int, ContextMeans]:
    """What contexts, by layer, tell of their features, by ascending number; none of a layer without contexts.

    Prompts come with the numbers of their sequences, once each.
    """
    sums: dict[int, _EvidenceSums] = {}
    for number, prompt in prompts:
        for layer, every in contexts.items():
            mine = every.take(every.sequence == number)
            if len(mine.feature):
                if layer not in sums:
                    sums[layer] = _EvidenceSums(every.feature, prompt)
                dictionary = prompt.dictionaries[layer]
                feature = mine.feature.to(dictionary.W_enc.device)
                position = mine.position.to(feature.device)
                rows, bias = dictionary.W_enc[feature], dictionary.b_enc[feature]
                targets = make_targets(prompt, layer, position, rows, bias)
                sums[layer].add(prompt, targets, feature)
    return {layer: each.means() for layer, each in sums.items()}


class _EvidenceSums:
    """Sums over contexts."""

    def __init__(self, feature: Int[Tensor, " entry"], prompt: LinearizedModel) -> None:
        like = prompt.captured.resid_final
        self.feature, n = (each.to(like.device) for each in feature.unique(return_counts=True))
        self.n = n[:, None]
        first = prompt.dictionaries[0].width if 0 in prompt.dictionaries else 0
        self.read = like.new_zeros(len(n), len(PLACES), like.shape[1])
        self.contribution = like.new_zeros(len(n), len(PLACES), first)
        self.total = like.new_zeros(len(n), len(PLACES))

    def means(self) -> ContextMeans:
        n = self.n[:, :, None]
        return ContextMeans(self.read / n, self.contribution / n, self.total / self.n)

    def add(
        self, prompt: LinearizedModel, targets: AttributionTargets, feature: Int[Tensor, " target"]
    ) -> None:
        row = torch.searchsorted(self.feature, feature)
        done = 0
        for chunk in targets.chunks(prompt.captured.resid_final.numel()):
            mine = row[done : done + len(chunk)]
            done += len(chunk)
            for part, layer, g in prompt.backpropagate(chunk.vector, chunk.position, chunk.layer):
                for place in range(len(PLACES)):
                    # position 0 never counts, so that there is one before
                    at = chunk.position - place
                    reads = g[at, torch.arange(len(at), device=at.device)]
                    if part == "start":
                        self.read[:, place].index_add_(0, mine, reads)
                        embedded = (reads * prompt.captured.embedding[at]).sum(-1)
                        self.total[:, place].index_add_(0, mine, embedded)
                    elif part == "mlp" and layer == 0 and self.contribution.shape[2]:
                        self._add_features(prompt, mine, place, at, reads)

    def _add_features(
        self,
        prompt: LinearizedModel,
        row: Int[Tensor, " target"],
        place: int,
        at: Int[Tensor, " target"],
        reads: Float[Tensor, "target d"],
    ) -> None:
        for number, position, read in zip(row.tolist(), at.tolist(), reads, strict=True):
            active = prompt.active_at(0, position)
            effect = prompt.feature_outputs(0, active) @ read
            self.contribution[number, place].index_add_(0, prompt.features.feature[active], effect)
            self.total[number, place] += effect.sum()


@dataclass(frozen=True)
class BlindScore:
    """How well predictions hold, of each feature; NaN for 0 / 0."""

    precision: Float[Tensor, " feature"]
    recall: Float[Tensor, " feature"]
    f1: Float[Tensor, " feature"]
    n_tokens: Int[Tensor, " feature"]
    """Scored tokens on which the feature fires."""


@torch.inference_mode()
def find_active_positions(
    model: LanguageModel, dictionaries: Mapping[int, Dictionary], held_out: HeldOut, batch: int
) -> dict[int, ActivePositions]:
    """Where the features of each layer fire, in one pass over `held_out`, `batch` sequences at a time."""
    sites = [Site("mlp_in", layer) for layer in dictionaries]
    place = held_out.scored.nonzero()
    found = {}
    for site, x in scored_activations(model, sites, held_out, batch).items():
        code = sparse_activations(dictionaries[site.layer], x)
        order = code.feature.argsort(stable=True)
        sequence, position = place[code.token[order].long()].T
        found[site.layer] = ActivePositions(sequence, position, code.feature[order].long())
    return found


def choose_features(firing: ActivePositions, n: int) -> Int[Tensor, " some"]:
    """`n` of the features that fire at all, evenly spaced by their numbers; all where they are few."""
    live = firing.feature.unique()
    return live[torch.linspace(0, len(live) - 1, min(n, len(live))).round().long()]


def score_predictions(
    prediction: Prediction, features: Int[Tensor, " feature"], firing: ActivePositions, held_out: HeldOut
) -> BlindScore:
    """How well predictions about `features`, ascending, hold on the scored tokens of `held_out`."""
    token = prediction.token.cpu()
    place = prediction.place.cpu()
    sequence, position = held_out.scored.nonzero().T
    occurs = [
        torch.bincount(held_out.token[sequence, position - p], minlength=token.shape[1])
        for p in range(len(PLACES))
    ]
    predicted = (token * torch.stack(occurs)[place]).sum(1)
    mine = firing.of(features)
    row = torch.searchsorted(features, mine.feature)
    read = held_out.token[mine.sequence, mine.position - place[row]]
    n = torch.bincount(row, minlength=len(features))
    hits = torch.bincount(row[token[row, read]], minlength=len(features))
    f1 = torch.where(n > 0, 2 * hits / (n + predicted), torch.nan)
    return BlindScore(hits / predicted, hits / n, f1, n)


def write_blind_predictions(
    run: str,
    dictionaries: Mapping[int, Dictionary],
    model: LanguageModel,
    weights: ModelWeights,
    tokens: TokenEmbeddings,
    strings: Sequence[str],
    text: Tokens,
    paths: Mapping[int, Path],
    features: int = 50,
    contexts: int = 8,
    context_tokens: int = 8192,
    scored_tokens: int | None = 32768,
    batch: int = 32,
) -> None:
    """Write, for each layer in `paths`, predictions about `features` live features and how well they hold.

    The first `context_tokens` of `text`, at most half of it, are where features are looked for and up to `contexts`
    contexts of each are taken from; the `scored_tokens` after them are scored. `strings` are the tokens as text, by
    id. Raises ValueError where there is but one sequence, the tokens are damaged, or a dictionary is no transcoder.
    """
    known, unseen = _split(text, context_tokens, scored_tokens)
    mine = {layer: require_transcoder(dictionaries[layer], layer) for layer in paths}
    found = find_active_positions(model, mine, load_sequences(text, known), batch)
    chosen = {layer: choose_features(firing, features) for layer, firing in found.items()}
    where = {layer: firing.of(chosen[layer]).spread(contexts) for layer, firing in found.items()}
    evidence = compute_context_means(_prompts(model, weights, dictionaries, text, where), where)
    held_out = load_sequences(text, unseen)
    firing = find_active_positions(model, mine, held_out, batch)
    for layer, path in paths.items():
        table = []
        # there is none where nothing fires at all
        if layer in evidence:
            rows = mine[layer].W_enc[chosen[layer]]
            predictions = {
                "restricted": predict_restricted(weights, layer, rows, tokens),
                "plain": predict_plain(evidence[layer], tokens),
            }
            table = _table(run, layer, chosen[layer], predictions, firing[layer], held_out, strings)
        write_table(BLIND, table, path)


def _split(text: Tokens, context_tokens: int, scored_tokens: int | None) -> tuple[slice, slice]:
    """Sequences that contexts are taken from, and those that are scored."""
    if len(text) < 2:
        raise ValueError(
            f"{text.path}: one sequence is too few to predict from and to score; add held-out text"
        )
    split = min(count_sequences(text, context_tokens), len(text) // 2)
    end = len(text) if scored_tokens is None else split + max(1, scored_tokens // text.context)
    return slice(split), slice(split, end)


def _table(
    run: str,
    layer: int,
    features: Int[Tensor, " feature"],
    predictions: Mapping[str, Prediction],
    firing: ActivePositions,
    held_out: HeldOut,
    strings: Sequence[str],
) -> list[dict[str, Any]]:
    scores = {name: score_predictions(each, features, firing, held_out) for name, each in predictions.items()}
    return [
        {"run": run, "layer": layer, "feature": feature, "protocol": name}
        | _row(predictions[name], scores[name], number, strings)
        for number, feature in enumerate(features.tolist())
        for name in predictions
    ]


def _prompts(
    model: LanguageModel,
    weights: ModelWeights,
    dictionaries: Mapping[int, Dictionary],
    text: Tokens,
    contexts: Mapping[int, ActivePositions],
) -> Iterator[tuple[int, LinearizedModel]]:
    sequences = torch.cat([each.sequence for each in contexts.values()]).unique().tolist()
    with progress("blind", len(sequences), "sequences") as bar:
        for number in sequences:
            token = text.take(slice(number, number + 1))[0]
            yield number, LinearizedModel(capture_pass(model, weights, token), dictionaries, text.bos_id)
            bar.update(1)


def _row(prediction: Prediction, score_predictions: BlindScore, number: int, strings: Sequence[str]) -> dict[str, Any]:
    token = prediction.token[number].nonzero()[:, 0]
    ordered = token[prediction.score[number, token].argsort(descending=True, stable=True)]
    figures = {name: float(getattr(score_predictions, name)[number]) for name in ("precision", "recall", "f1")}
    return {
        "tokens": [strings[each] for each in ordered.tolist()],
        "place": PLACES[int(prediction.place[number])],
        **{name: None if isnan(figure) else figure for name, figure in figures.items()},
        "n_tokens": int(score_predictions.n_tokens[number]),
    }
