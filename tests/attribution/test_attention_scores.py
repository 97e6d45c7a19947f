"""QK attribution: pairs of sources sum to the model's own scores, on every architecture."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.architectures import NAMES
from tests.attribution.inputs import KINDS, PROMPT, READING, load_tiny, make_linearized
from tests.attribution.test_architectures import exact_norms
from tests.models import ARCHITECTURES, LAYERS

from circuitloom.attribution.attention_scores import ScoreAttribution, attribute_scores
from circuitloom.attribution.direct_effects import source_columns
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.language_model.model import LanguageModel
from circuitloom.language_model.query_key import HeadEdge, PromptScores, capture_scores, read_query_key

BOUNDS = {"float64": 1e-9, "float32": 1e-4}
IN_FLOAT32 = ("codegen", "gpt_neo", "gptj")
"""Architectures that multiply queries and keys in float32, whatever the model's dtype is."""
PAIRS = ((3, 0), (3, 3), (10, 4), (10, 7))


def load(name: str, folder, dtype: str) -> LanguageModel:
    model = load_tiny(name, folder, dtype)
    if dtype == "float64" and name not in ARCHITECTURES:
        exact_norms(model)
    return model


def read(model: LanguageModel, token: torch.Tensor = PROMPT) -> PromptScores:
    return capture_scores(model, read_query_key(model), token)


@contextmanager
def watched_softmax(model: LanguageModel) -> Iterator[list[torch.Tensor]]:
    """Inputs of softmax in attention, as the model computes them: torch's softmax is replaced."""
    seen: list[torch.Tensor] = []
    original = torch.nn.functional.softmax, torch.softmax

    def softmax(x, *args, **kwargs):
        if x.dim() == 4:
            seen.append(x[0].double())
        return original[0](x, *args, **kwargs)

    torch.nn.functional.softmax = torch.softmax = softmax
    try:
        yield seen
    finally:
        torch.nn.functional.softmax, torch.softmax = original


def own_scores(model: LanguageModel) -> list[torch.Tensor]:
    """The model's own scores of each layer: scaled, capped and masked."""
    with model.eager_attention(), watched_softmax(model) as seen:
        model.logits(PROMPT[None])
    assert len(seen) == LAYERS
    return seen


def attribute(
    model: LanguageModel, linearized: LinearizedModel, total: bool = False
) -> list[ScoreAttribution]:
    """Attributions of some scores of every head."""
    scores = read(model)
    edges = [
        HeadEdge(layer, head, query, key)
        for layer in range(LAYERS)
        for head in range(model.anatomy.heads)
        for query, key in PAIRS
        if scores.recorded[layer].allowed[query, key]
    ]
    assert len(edges) >= 2 * LAYERS * model.anatomy.heads
    return list(attribute_scores(linearized, scores, edges, total))


def sum_of_pairs(each: ScoreAttribution) -> float:
    """Sum over all pairs of sources, without the features if effects are total."""
    first = each.features if each.total else 0
    own = torch.arange(first, len(each.query))
    return float(each.pairs(own, own).sum())


def capped(score: float, cap: float | None) -> float:
    return score if cap is None else cap * math.tanh(score / cap)


def assert_sums_are_own_scores(model: LanguageModel, linearized: LinearizedModel, bound: float) -> None:
    expected = own_scores(model)
    for total in (False, True):
        for each in attribute(model, linearized, total):
            layer, head, query, key = each.edge
            own = float(expected[layer][head, query, key])
            cap = getattr(model.attention(layer), "attn_logit_softcapping", None)
            assert abs(capped(sum_of_pairs(each), cap) - own) < bound * max(1, abs(own))
            assert abs(each.capped - own) < bound * max(1, abs(own))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "reads"), READING)
def test_pairs_of_sources_sum_to_the_model_s_own_score(architecture, reads, kind, dtype, tmp_path):
    model = load(architecture, tmp_path, dtype)
    linearized = make_linearized(model, kind, site_in=reads)
    assert_sums_are_own_scores(model, linearized, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
def test_pairs_of_sources_sum_to_the_score_on_every_architecture(name, dtype, tmp_path):
    model = load(name, tmp_path, dtype)
    bound = 1e-5 if dtype == "float64" and name in IN_FLOAT32 else BOUNDS[dtype]
    assert_sums_are_own_scores(model, make_linearized(model, "skip transcoder"), bound)
