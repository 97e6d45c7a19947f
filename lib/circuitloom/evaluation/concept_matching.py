"""Finds the dictionary features, MLP neurons and residual directions that match each concept best."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.evaluation import Evaluation
from ..core.layout import NEURONS, RESIDUAL
from ..core.progress import progress
from ..dictionaries.dictionary import Encoder
from ..language_model.batches import Batch
from ..language_model.hooks import Site, capture
from ..language_model.model import LanguageModel
from .concepts import (
    ConceptAnnotations,
    ConceptScores,
    SparseActivations,
    best_features,
    score_columns,
    score_features,
)
from .held_out import HeldOut, passes
from .replacement import tokens_at_once

FEATURES_PER_CONCEPT = 10
"""Number of best features that the table lists per concept, run and layer."""
ENCODE_BATCH = 4096
"""Maximum number of tokens per encoder call. A smaller number needs less memory for dense activations."""


@torch.inference_mode()
def scored_activations(
    model: LanguageModel, sites: Sequence[Site], held_out: HeldOut, batch: Batch
) -> dict[Site, Float[Tensor, "token d"]]:
    """Returns the activations of `sites` at the scored positions, in text order. They are float32 on the CPU.

    Raises ValueError if an activation is not finite.
    """
    values: dict[Site, Tensor] = {}
    start = 0
    for part in passes(held_out, model, batch):
        for site, value in capture(model, part.token, sites).items():
            if site not in values:
                values[site] = torch.empty(held_out.n_tokens, value.shape[-1])
            values[site][start : start + part.n_tokens] = value[part.scored]
        start += part.n_tokens
    for site, value in values.items():
        model.check_finite(value, f"layer {site.layer}: {site.name} on held-out text")
    return values


def match_concepts(
    model: LanguageModel,
    dictionaries: Mapping[int, Mapping[str, Encoder]],
    held_out: HeldOut,
    annotations: ConceptAnnotations,
    config: Evaluation,
) -> Iterator[dict[str, Any]]:
    """Yield FEATURE_CONCEPT rows of all dictionaries, and of the MLP neurons and residual directions of their layers.

    `dictionaries[layer][run]` is the dictionary of a run at a layer. There is one forward pass per layer. A residual
    direction is a coordinate of mlp_in, or the negative of a coordinate. Thresholds of features and neurons are at
    least 0. Thresholds of residual directions may be negative.
    """
    total = sum(map(len, dictionaries.values())) + 2 * len(dictionaries)
    with progress("concepts", total, "bases") as bar:
        for layer, runs in sorted(dictionaries.items()):
            own = [Site("neurons", layer), Site("mlp_in", layer)]
            read = [Site(dictionary.site_in, layer) for dictionary in runs.values()]
            # one layer at a time, because the activations of all layers may not fit into memory
            activations = scored_activations(
                model, list(dict.fromkeys([*own, *read])), held_out, config.batch
            )
            for (run, dictionary), site in zip(runs.items(), read, strict=True):
                z = sparse_activations(dictionary, activations[site])
                scores = score_features(z, annotations, config.thresholds)
                yield from _rows(run, layer, scores, annotations, dictionary.width)
                bar.update(1)
            neurons, x = (activations[site] for site in own)
            scores = score_columns(neurons, annotations, config.thresholds)
            yield from _rows(NEURONS, layer, scores, annotations, neurons.shape[1])
            bar.update(1)
            signs = [score_columns(sign * x, annotations, config.thresholds, signed=True) for sign in (1, -1)]
            yield from _rows(RESIDUAL, layer, ConceptScores.concatenate(signs), annotations, x.shape[1])
            # otherwise memory holds the activations of two layers during the next pass
            del activations, neurons, x
            bar.update(1)


def _rows(
    run: str, layer: int, scores: ConceptScores, annotations: ConceptAnnotations, width: int
) -> Iterator[dict[str, Any]]:
    key = {"run": run, "layer": layer}
    return (key | row for row in best_features(scores, annotations, width, FEATURES_PER_CONCEPT))


@torch.inference_mode()
def sparse_activations(dictionary: Encoder, x: Float[Tensor, "token d_in"]) -> SparseActivations:
    """Returns the dictionary's non-zero activations for the input `x`, on the CPU. Indices are int32."""
    tokens, features, values = [], [], []
    # a mapped encoder is read for each call
    size = ENCODE_BATCH if dictionary.file is None else tokens_at_once(dictionary)
    for start in range(0, len(x), size):
        token, feature, value = dictionary.encode_sparse(x[start : start + size].to(dictionary.b_enc))
        tokens.append((token + start).to(torch.int32).cpu())
        features.append(feature.to(torch.int32).cpu())
        values.append(value.cpu())
    return SparseActivations(torch.cat(tokens), torch.cat(features), torch.cat(values), dictionary.width)
