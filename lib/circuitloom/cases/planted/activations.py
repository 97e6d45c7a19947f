"""Activations of features on held-out tokens, some features at a time."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...evaluation.concept_matching import scored_activations, sparse_activations
from ...evaluation.concepts import SparseActivations
from ...evaluation.held_out import HeldOut
from ...evaluation.names import NEURONS
from ...language_model.hooks import Site
from ..context import CaseContext

Columns = Callable[[Sequence[int]], Float[Tensor, "token feature"]]
"""Numbers of features to their activations at every scored token."""


def by_layer(
    opened: CaseContext, held_out: HeldOut, batch: int, neurons: bool
) -> Iterator[tuple[str, int, Columns]]:
    """Each run and layer with its activations, and with `neurons` the model's own as a run of that name.

    One layer's sites are in memory at a time.
    """
    layers = sorted({layer for dictionaries in opened.runs.values() for layer in dictionaries})
    for layer in layers:
        mine = {run: found[layer] for run, found in opened.runs.items() if layer in found}
        sites = {Site(dictionary.site_in, layer) for dictionary in mine.values()}
        own = Site("neurons", layer)
        values = scored_activations(opened.model, sorted({*sites, *[own] * neurons}), held_out, batch)
        for run, dictionary in mine.items():
            x = values[Site(dictionary.site_in, layer)]
            yield run, layer, code_columns(sparse_activations(dictionary, x), len(x))
        if neurons:
            yield NEURONS, layer, dense_columns(values[own])


def code_columns(code: SparseActivations, n_tokens: int) -> Columns:
    """Columns of sparse activations."""
    order = code.feature.argsort(stable=True)
    token, value = code.token[order].long(), code.value[order].float()
    start = torch.searchsorted(code.feature[order], torch.arange(code.width + 1, dtype=code.feature.dtype))

    def columns(features: Sequence[int]) -> Float[Tensor, "token feature"]:
        # transposed, so that a column is contiguous
        dense = torch.zeros(len(features), n_tokens)
        for row, feature in zip(dense, features, strict=True):
            mine = slice(int(start[feature]), int(start[feature + 1]))
            row[token[mine]] = value[mine]
        return dense.T

    return columns


def dense_columns(values: Float[Tensor, "token feature"]) -> Columns:
    """Columns of dense values; what is not positive is no activation."""
    transposed = values.T.contiguous()
    return lambda features: transposed[list(features)].relu().T
