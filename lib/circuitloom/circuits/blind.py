"""The blind protocol: predict which tokens a feature fires on without having seen a text, then count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpus.tokens import Tokens
from ..dictionaries.dictionary import Dictionary
from ..evaluation.held_out import HeldOut, count_sequences, hold_out_rows
from ..evaluation.matching import encode, scored_activations
from ..language_model.model import LanguageModel, Site
from ..progress import progress
from ..tables import BLIND, write_table
from .deembedding import BareTokens, checked
from .freezing import freeze
from .frozen import Weights
from .local_model import LocalModel
from .prediction import PLACES, Firing, Prediction, gather_evidence, predict_plain, predict_restricted


@dataclass(frozen=True)
class Score:
    """How well predictions hold, of each feature; NaN for 0 / 0."""

    precision: Float[Tensor, " feature"]
    recall: Float[Tensor, " feature"]
    f1: Float[Tensor, " feature"]
    n_tokens: Int[Tensor, " feature"]
    """Scored tokens on which the feature fires."""


@torch.inference_mode()
def find_firing(
    model: LanguageModel, dictionaries: Mapping[int, Dictionary], held_out: HeldOut, batch: int
) -> dict[int, Firing]:
    """Where the features of each layer fire, in one pass over `held_out`, `batch` sequences at a time."""
    sites = [Site("mlp_in", layer) for layer in dictionaries]
    place = held_out.scored.nonzero()
    found = {}
    for site, x in scored_activations(model, sites, held_out, batch).items():
        code = encode(dictionaries[site.layer], x)
        order = code.feature.argsort(stable=True)
        sequence, position = place[code.token[order].long()].T
        found[site.layer] = Firing(sequence, position, code.feature[order].long())
    return found


def choose_features(firing: Firing, n: int) -> Int[Tensor, " some"]:
    """`n` of the features that fire at all, evenly spaced by their numbers; all where they are few."""
    live = firing.feature.unique()
    return live[torch.linspace(0, len(live) - 1, min(n, len(live))).round().long()]


def score(
    prediction: Prediction, features: Int[Tensor, " feature"], firing: Firing, held_out: HeldOut
) -> Score:
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
    return Score(hits / predicted, hits / n, f1, n)


def write_blind(
    run: str,
    dictionaries: Mapping[int, Dictionary],
    model: LanguageModel,
    weights: Weights,
    tokens: BareTokens,
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
    mine = {layer: checked(dictionaries[layer], layer) for layer in paths}
    found = find_firing(model, mine, hold_out_rows(text, known), batch)
    chosen = {layer: choose_features(firing, features) for layer, firing in found.items()}
    where = {layer: firing.of(chosen[layer]).spread(contexts) for layer, firing in found.items()}
    evidence = gather_evidence(_prompts(model, weights, dictionaries, text, where), where)
    held_out = hold_out_rows(text, unseen)
    firing = find_firing(model, mine, held_out, batch)
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
    firing: Firing,
    held_out: HeldOut,
    strings: Sequence[str],
) -> list[dict[str, Any]]:
    scores = {name: score(each, features, firing, held_out) for name, each in predictions.items()}
    return [
        {"run": run, "layer": layer, "feature": feature, "protocol": name}
        | _row(predictions[name], scores[name], number, strings)
        for number, feature in enumerate(features.tolist())
        for name in predictions
    ]


def _prompts(
    model: LanguageModel,
    weights: Weights,
    dictionaries: Mapping[int, Dictionary],
    text: Tokens,
    contexts: Mapping[int, Firing],
) -> Iterator[tuple[int, LocalModel]]:
    sequences = torch.cat([each.sequence for each in contexts.values()]).unique().tolist()
    with progress("blind", len(sequences), "sequences") as bar:
        for number in sequences:
            token = text.take(slice(number, number + 1))[0]
            yield number, LocalModel(freeze(model, weights, token), dictionaries, text.bos_id)
            bar.update(1)


def _row(prediction: Prediction, score: Score, number: int, strings: Sequence[str]) -> dict[str, Any]:
    token = prediction.token[number].nonzero()[:, 0]
    ordered = token[prediction.score[number, token].argsort(descending=True, stable=True)]
    figures = {name: float(getattr(score, name)[number]) for name in ("precision", "recall", "f1")}
    return {
        "tokens": [strings[each] for each in ordered.tolist()],
        "place": PLACES[int(prediction.place[number])],
        **{name: None if isnan(figure) else figure for name, figure in figures.items()},
        "n_tokens": int(score.n_tokens[number]),
    }
