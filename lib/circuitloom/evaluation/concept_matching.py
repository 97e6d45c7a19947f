"""Concept scores of dictionaries, and of what the model itself has: neurons and residual directions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.evaluation import Evaluation
from ..core.progress import progress
from ..dictionaries.dictionary import Dictionary
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
from .held_out import HeldOut
from .names import NEURONS, RESIDUAL

FEATURES_PER_CONCEPT = 10
"""Features kept of each concept, run and layer."""
ENCODE_BATCH = 4096
"""Tokens whose activations, of all features, are held at once."""


@torch.inference_mode()
def scored_activations(
    model: LanguageModel, sites: Sequence[Site], held_out: HeldOut, batch: int
) -> dict[Site, Float[Tensor, "token d"]]:
    """Values of `sites` at the scored positions, in order, float32, in main memory."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for part in held_out.to(model.device).batches(batch):
        for site, value in capture(model, part.token, sites).items():
            parts[site].append(value[part.scored].float().cpu())
    return {site: torch.cat(values) for site, values in parts.items()}


def match_dictionaries(
    model: LanguageModel,
    runs: Mapping[str, Mapping[int, Dictionary]],
    held_out: HeldOut,
    labels: ConceptAnnotations,
    config: Evaluation,
) -> Iterator[dict[str, Any]]:
    """The feature_concept table's rows of each run (dictionaries by layer)."""
    layers = sorted({layer for dictionaries in runs.values() for layer in dictionaries})
    with progress(f"concepts: {', '.join(runs)}", len(layers) * len(runs), "dictionaries") as bar:
        for layer in layers:
            mine = {run: dictionaries[layer] for run, dictionaries in runs.items() if layer in dictionaries}
            sites = sorted({Site(dictionary.site_in, layer) for dictionary in mine.values()})
            activations = scored_activations(model, sites, held_out, config.batch)
            for run, dictionary in mine.items():
                code = sparse_activations(dictionary, activations[Site(dictionary.site_in, layer)])
                scores = score_features(code, labels, config.thresholds)
                yield from _rows(run, layer, scores, labels, dictionary.width)
                bar.update(1)


def match_bases(
    model: LanguageModel,
    layers: Sequence[int],
    held_out: HeldOut,
    labels: ConceptAnnotations,
    config: Evaluation,
) -> Iterator[dict[str, Any]]:
    """The feature_concept table's rows of neurons and of residual directions.

    A neuron says that a concept is present by a positive activation. A residual direction is a coordinate of
    mlp_in or its negative; its threshold may have any sign, since a coordinate's mean is not zero.
    """
    with progress("concepts: neurons and residual directions", len(layers), "layers") as bar:
        for layer in layers:
            sites = [Site("neurons", layer), Site("mlp_in", layer)]
            neurons, x = scored_activations(model, sites, held_out, config.batch).values()
            yield from _rows(
                NEURONS, layer, score_columns(neurons, labels, config.thresholds), labels, neurons.shape[1]
            )
            signs = [score_columns(sign * x, labels, config.thresholds, signed=True) for sign in (1, -1)]
            yield from _rows(RESIDUAL, layer, ConceptScores.concatenate(signs), labels, x.shape[1])
            bar.update(1)


def _rows(
    run: str, layer: int, scores: ConceptScores, labels: ConceptAnnotations, width: int
) -> Iterator[dict[str, Any]]:
    place = {"run": run, "layer": layer}
    return (place | row for row in best_features(scores, labels, width, FEATURES_PER_CONCEPT))


@torch.inference_mode()
def sparse_activations(dictionary: Dictionary, x: Float[Tensor, "token d_in"]) -> SparseActivations:
    """The non-zero activations of all tokens, indices int32, in main memory."""
    tokens, features, values = [], [], []
    for start in range(0, len(x), ENCODE_BATCH):
        token, feature, value = dictionary.encode_sparse(
            x[start : start + ENCODE_BATCH].to(dictionary.W_enc.device)
        )
        tokens.append((token + start).to(torch.int32).cpu())
        features.append(feature.to(torch.int32).cpu())
        values.append(value.cpu())
    return SparseActivations(torch.cat(tokens), torch.cat(features), torch.cat(values), dictionary.width)
