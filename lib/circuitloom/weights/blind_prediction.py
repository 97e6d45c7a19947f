"""Blind prediction: predict which tokens a feature fires on without any text, then test the prediction on text.

Two protocols give each vocabulary token a score. A token is predicted if its score is above the midpoint between the
mean score and the largest score.

- `restricted` uses weights only. The score is the effect of the token's embedding on the pre-activation, directly and
  through the layer-0 dictionary.
- `plain` also uses contexts in which the feature fires, but not the text of these contexts. Attention patterns and norm
  denominators are frozen. The score is g @ embedding + sum_i c_i z_i / max(z_i). g is the mean gradient of the
  pre-activation with respect to the token embedding. c_i is the mean contribution of layer-0 feature i. z_i is the
  activation of feature i on the token, and the maximum is over the vocabulary.

`restricted` predicts the token at the position where the feature fires. `plain` predicts the previous token instead if
the previous token contributes more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.capture import ModelWeights
from ..attribution.direct_effects import AttributionTargets, make_targets
from ..attribution.linearized_model import LinearizedModel, linearize_sequences
from ..core.tables import BLIND, write_table
from ..corpus.token_arrays import count_sequences
from ..corpus.tokens import Tokens
from ..dictionaries.cross_layer import LayerDictionary
from ..evaluation.concept_matching import scored_activations, sparse_activations
from ..evaluation.held_out import HeldOut, load_sequences
from ..language_model.batches import Batch
from ..language_model.hooks import Site
from ..language_model.model import LanguageModel
from .deembedding import TokenEmbeddings, encoder_in_residual, require_transcoder

PLACES = ("here", "previous")
"""Places of the predicted token. Place i is i positions before the position where the feature fires."""


@dataclass(frozen=True)
class ActivePositions:
    """Positions at which features of a layer fire, sorted by feature and then by order in the text."""

    sequence: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]

    def for_features(self, features: Int[Tensor, " some"]) -> "ActivePositions":
        """Returns the entries of the given features."""
        return self.select(torch.isin(self.feature, features))

    def select(self, which: Tensor) -> "ActivePositions":
        """Returns the entries that an index tensor or a mask selects."""
        return ActivePositions(*(column[which] for column in vars(self).values()))

    def evenly_spaced(self, n: int) -> "ActivePositions":
        """Returns up to `n` entries of each feature, evenly spaced among the feature's entries."""
        _, group, counts = torch.unique_consecutive(self.feature, return_inverse=True, return_counts=True)
        rank = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group]
        count = counts[group]
        # a feature's entries are divided into n equal parts; this is the middle of the entry's part
        middle = (2 * (rank * n // count) + 1) * count // (2 * n)
        return self.select((count <= n) | (rank == middle))


@dataclass(frozen=True)
class ContextMeans:
    """Means over contexts in which features of a layer fire. Place i is i positions before the feature fires."""

    vector: Float[Tensor, "feature place d"]
    """Mean gradient of the feature's pre-activation with respect to the token embedding `place` positions earlier."""
    contribution: Float[Tensor, "feature place layer0_feature"]
    """Mean direct effect of each layer-0 feature, `place` positions earlier, on the feature's pre-activation."""
    total: Float[Tensor, "feature place"]
    """Mean sum of the direct effects of the token embedding and all layer-0 features `place` positions earlier."""


@dataclass(frozen=True)
class Prediction:
    """Scores of all tokens for some features, and the predicted tokens."""

    score: Float[Tensor, "feature token"]
    place: Int[Tensor, " feature"]
    """Place of each feature's predicted tokens, as an index into `PLACES`."""

    @property
    def token(self) -> Bool[Tensor, "feature token"]:
        """Mask of tokens with a score above the midpoint between the mean score and the largest score."""
        above = self.score - self.score.mean(1, keepdim=True)
        return above > above.amax(1, keepdim=True) / 2


def predict_restricted(
    weights: ModelWeights,
    layer: int,
    dictionary: LayerDictionary,
    features: slice | Int[Tensor, " feature"],
    tokens: TokenEmbeddings,
) -> Prediction:
    """Predict tokens by the protocol `restricted`, for some features of the dictionary of `layer`."""
    token_vectors = tokens.embedding
    if layer > 0 and (layer0 := tokens.layer0_before(layer)) is not None:
        token_vectors = token_vectors + layer0
    score = encoder_in_residual(weights, layer, dictionary, features) @ token_vectors.T
    return Prediction(score, torch.zeros(len(score), dtype=torch.int64, device=score.device))


def predict_plain(means: ContextMeans, tokens: TokenEmbeddings) -> Prediction:
    """Predict tokens by the protocol `plain`."""
    place = means.total.argmax(1)
    feature = torch.arange(len(place), device=place.device)
    score = means.vector[feature, place] @ tokens.embedding.T
    if tokens.layer0_activations is not None:
        # a layer-0 feature that fires on no token of the vocabulary adds nothing to the scores
        largest = tokens.layer0_activations.largest
        share = torch.where(largest > 0, means.contribution[feature, place] / largest, 0.0)
        score = score + tokens.layer0_activations.weighted_sum(share.T.contiguous()).T
    return Prediction(score, place)


@torch.inference_mode()
def compute_context_means(
    prompts: Iterable[tuple[int, LinearizedModel]], contexts: Mapping[int, ActivePositions]
) -> dict[int, ContextMeans]:
    """Returns the means over the contexts of each layer. Layers without contexts are left out. The means have one row
    per feature, sorted by feature index. `prompts` yields pairs (sequence number, linearized model)."""
    sums: dict[int, _ContextSums] = {}
    for number, prompt in prompts:
        for layer, entries in contexts.items():
            here = entries.select(entries.sequence == number)
            if len(here.feature):
                if layer not in sums:
                    sums[layer] = _ContextSums(entries.feature, prompt)
                dictionary = prompt.dictionaries[layer]
                feature = here.feature.to(dictionary.b_enc.device)
                position = here.position.to(feature.device)
                rows, bias = dictionary.encoder_rows(feature), dictionary.b_enc[feature]
                targets = make_targets(prompt, layer, position, rows, bias)
                sums[layer].add(prompt, targets, feature)
    return {layer: each.means() for layer, each in sums.items()}


class _ContextSums:
    """Running sums for `ContextMeans`."""

    def __init__(self, feature: Int[Tensor, " entry"], prompt: LinearizedModel) -> None:
        like = prompt.captured.resid_final
        self.feature, n = (each.to(like.device) for each in feature.unique(return_counts=True))
        self.n = n[:, None]
        width0 = prompt.dictionaries[0].width if 0 in prompt.dictionaries else 0
        self.vector = like.new_zeros(len(n), len(PLACES), like.shape[1])
        self.contribution = like.new_zeros(len(n), len(PLACES), width0)
        self.total = like.new_zeros(len(n), len(PLACES))

    def means(self) -> ContextMeans:
        n = self.n[:, :, None]
        return ContextMeans(self.vector / n, self.contribution / n, self.total / self.n)

    def add(
        self, prompt: LinearizedModel, targets: AttributionTargets, feature: Int[Tensor, " target"]
    ) -> None:
        row = torch.searchsorted(self.feature, feature)
        done = 0
        for chunk in targets.chunks(prompt.captured.resid_final.numel()):
            rows = row[done : done + len(chunk)]
            done += len(chunk)
            for site, layer, g in prompt.backpropagate(chunk.vector, chunk.position, chunk.layer):
                for place in range(len(PLACES)):
                    # a previous position exists, since features are not counted at position 0
                    at = chunk.position - place
                    g_at = g[at, torch.arange(len(at), device=at.device)]
                    if site == "embedding":
                        self.vector[:, place].index_add_(0, rows, g_at)
                        effect = (g_at * prompt.captured.embedding[at]).sum(-1)
                        self.total[:, place].index_add_(0, rows, effect)
                    elif self.contribution.shape[2] and layer in prompt.outputs(0):
                        self._add_features(prompt, rows, place, at, g_at, layer)

    def _add_features(
        self,
        prompt: LinearizedModel,
        rows: Int[Tensor, " target"],
        place: int,
        at: Int[Tensor, " target"],
        g: Float[Tensor, "target d"],
        output: int,
    ) -> None:
        """Add the effects of layer-0 features through the output of layer `output`, whose gradient is g."""
        for row, position, vector in zip(rows.tolist(), at.tolist(), g, strict=True):
            active = prompt.active_at(0, position)
            effect = prompt.feature_outputs(0, active, output) @ vector
            self.contribution[row, place].index_add_(0, prompt.features.feature[active], effect)
            self.total[row, place] += effect.sum()


@dataclass(frozen=True)
class BlindScore:
    """Accuracy of the predictions for each feature. Ratios of 0 / 0 are NaN."""

    precision: Float[Tensor, " feature"]
    recall: Float[Tensor, " feature"]
    f1: Float[Tensor, " feature"]
    n_tokens: Int[Tensor, " feature"]
    """Number of scored tokens on which the feature fires."""


@torch.inference_mode()
def find_active_positions(
    model: LanguageModel, dictionaries: Mapping[int, LayerDictionary], held_out: HeldOut, batch: Batch
) -> dict[int, ActivePositions]:
    """Returns, for each layer, the positions of `held_out` where features fire. The model runs on `batch` sequences at
    a time."""
    sites = [Site(dictionary.site_in, layer) for layer, dictionary in dictionaries.items()]
    scored = held_out.scored.nonzero()
    active = {}
    for site, x in scored_activations(model, sites, held_out, batch).items():
        activations = sparse_activations(dictionaries[site.layer], x)
        order = activations.feature.argsort(stable=True)
        sequence, position = scored[activations.token[order].long()].T
        active[site.layer] = ActivePositions(sequence, position, activations.feature[order].long())
    return active


def choose_features(active: ActivePositions, n: int) -> Int[Tensor, " some"]:
    """Returns up to `n` feature indices, evenly spaced among the features that fire at least once."""
    live = active.feature.unique()
    return live[torch.linspace(0, len(live) - 1, min(n, len(live))).round().long()]


def score_predictions(
    prediction: Prediction, features: Int[Tensor, " feature"], active: ActivePositions, held_out: HeldOut
) -> BlindScore:
    """Compute precision, recall and F1 of the predictions on the scored tokens of `held_out`.

    Row i of `prediction` belongs to features[i]. `features` must be in ascending order. `active` has the positions
    where features fire.
    """
    token = prediction.token.cpu()
    place = prediction.place.cpu()
    sequence, position = held_out.scored.nonzero().T
    occurrences = [
        torch.bincount(held_out.token[sequence, position - p], minlength=token.shape[1])
        for p in range(len(PLACES))
    ]
    predicted = (token * torch.stack(occurrences)[place]).sum(1)
    mine = active.for_features(features)
    row = torch.searchsorted(features, mine.feature)
    at_place = held_out.token[mine.sequence, mine.position - place[row]]
    n = torch.bincount(row, minlength=len(features))
    hits = torch.bincount(row[token[row, at_place]], minlength=len(features))
    f1 = torch.where(n > 0, 2 * hits / (n + predicted), torch.nan)
    return BlindScore(hits / predicted, hits / n, f1, n)


def write_blind_predictions(
    run: str,
    dictionaries: Mapping[int, LayerDictionary],
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
    batch: Batch = "auto",
) -> None:
    """Write the table `blind` of each layer in `paths`: predictions and their accuracy.

    The first `context_tokens` tokens of `text` give up to `features` features and up to `contexts` contexts per
    feature. If `text` is short, features and contexts come from its first half. Predictions are scored on the next
    `scored_tokens` tokens, or on all remaining tokens if `scored_tokens` is None. `strings` are the vocabulary's tokens
    as text. Raises ValueError if the text has only one sequence or damaged tokens, or if a dictionary is not a
    transcoder.
    """
    context_rows, scored_rows = _split(text, context_tokens, scored_tokens)
    transcoders = {layer: require_transcoder(dictionaries[layer], layer) for layer in paths}
    active = find_active_positions(model, transcoders, load_sequences(text, context_rows), batch)
    chosen = {layer: choose_features(active[layer], features) for layer in active}
    examples = {layer: active[layer].for_features(chosen[layer]).evenly_spaced(contexts) for layer in active}
    sequences = torch.cat([each.sequence for each in examples.values()]).unique().tolist()
    prompts = linearize_sequences(model, weights, dictionaries, text, sequences, "blind")
    numbered = ((number, prompt) for prompt, number in zip(prompts, sequences, strict=True))
    means = compute_context_means(numbered, examples)
    held_out = load_sequences(text, scored_rows)
    active = find_active_positions(model, transcoders, held_out, batch)
    for layer, path in paths.items():
        table = []
        # a layer in which no feature fires has no means
        if layer in means:
            predictions = {
                "restricted": predict_restricted(weights, layer, transcoders[layer], chosen[layer], tokens),
                "plain": predict_plain(means[layer], tokens),
            }
            table = _rows(run, layer, chosen[layer], predictions, active[layer], held_out, strings)
        write_table(BLIND, table, path)


def _split(text: Tokens, context_tokens: int, scored_tokens: int | None) -> tuple[slice, slice]:
    """Returns two slices of sequences: one for contexts and one for scoring."""
    if len(text) < 2:
        raise ValueError(
            f"{text.path}: one sequence is not enough for both contexts and scoring; add held-out text"
        )
    split = min(count_sequences(text, context_tokens), len(text) // 2)
    end = len(text) if scored_tokens is None else split + max(1, scored_tokens // text.context)
    return slice(split), slice(split, end)


def _rows(
    run: str,
    layer: int,
    features: Int[Tensor, " feature"],
    predictions: Mapping[str, Prediction],
    active: ActivePositions,
    held_out: HeldOut,
    strings: Sequence[str],
) -> list[dict[str, Any]]:
    scores = {name: score_predictions(each, features, active, held_out) for name, each in predictions.items()}
    return [
        {"run": run, "layer": layer, "feature": feature, "protocol": name}
        | _row(predictions[name], scores[name], number, strings)
        for number, feature in enumerate(features.tolist())
        for name in predictions
    ]


def _row(prediction: Prediction, score: BlindScore, number: int, strings: Sequence[str]) -> dict[str, Any]:
    token = prediction.token[number].nonzero()[:, 0]
    ordered = token[prediction.score[number, token].argsort(descending=True, stable=True)]
    metrics = {name: float(getattr(score, name)[number]) for name in ("precision", "recall", "f1")}
    return {
        "tokens": [strings[each] for each in ordered.tolist()],
        "place": PLACES[int(prediction.place[number])],
        **{name: None if isnan(value) else value for name, value in metrics.items()},
        "n_tokens": int(score.n_tokens[number]),
    }
