"""QK attribution: pairs of sources sum to the model's own scores, on every architecture."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.architectures import NAMES
from tests.attribution.inputs import PROMPT, load_tiny, make_linearized
from tests.attribution.test_architectures import exact_norms
from tests.models import ARCHITECTURES, LAYERS

from circuitloom.attribution.attention_scores import ScoreAttribution, attribute_scores
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.language_model.model import LanguageModel
from circuitloom.language_model.query_key import HeadEdge, PromptScores, capture_scores, read_query_key

BOUNDS = {"float64": 1e-9, "float32": 1e-4}
IN_FLOAT32 = ("codegen", "cohere", "cohere2", "ernie4_5", "gpt_neo", "gptj", "hunyuan_v1_dense")
"""Architectures that rotate or multiply queries and keys in float32, whatever the model's dtype is."""
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
    return float(each.scale * (each.query[own].double().sum(0) @ each.key[own].double().sum(0)))


def capped(score: float, cap: float | None) -> float:
    return score if cap is None else cap * math.tanh(score / cap)


def assert_sums_are_own_scores(model: LanguageModel, linearized: LinearizedModel, bound: float) -> None:
    expected = own_scores(model)
    for total in (False, True):
        for each in attribute(model, linearized, total):
            layer, head, query, key = each.edge
            own = float(expected[layer][head, query, key])
            cap = getattr(model.attention(layer), "attn_logit_softcapping", None)
            # in float32, sums of products round by the length of query and key
            length = each.scale * float(each.query_vector.norm() * each.key_vector.norm())
            assert abs(capped(sum_of_pairs(each), cap) - own) < bound * max(1, length)
            assert abs(each.capped - own) < bound * max(1, abs(own))


@pytest.mark.parametrize(
    "kind",
    [
        "skip transcoder",
        "one layer without",
        "cross-layer",
        pytest.param("transcoder", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pairs_of_sources_sum_to_the_model_s_own_score(architecture, kind, dtype, tmp_path):
    model = load(architecture, tmp_path, dtype)
    assert_sums_are_own_scores(model, make_linearized(model, kind), BOUNDS[dtype])


def test_pairs_sum_to_the_score_with_transcoders_of_resid_mid(tmp_path):
    model = load("llama", tmp_path, "float64")
    assert_sums_are_own_scores(model, make_linearized(model, site_in="resid_mid"), 1e-9)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gemma3_text" else pytest.mark.slow) for name in NAMES]
)
def test_pairs_of_sources_sum_to_the_score_on_every_architecture(name, tmp_path):
    model = load(name, tmp_path, "float64")
    bound = 1e-6 if name in IN_FLOAT32 else BOUNDS["float64"]
    assert_sums_are_own_scores(model, make_linearized(model, "skip transcoder"), bound)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_score_differences_are_log_ratios_of_the_pattern(architecture, tmp_path):
    model = load(architecture, tmp_path, "float64")
    linearized = make_linearized(model)
    edges = [HeadEdge(2, 1, 10, 10), HeadEdge(2, 1, 10, 9)]
    first, second = attribute_scores(linearized, read(model), edges)
    pattern = linearized.captured.layers[2].pattern[1, 10]
    assert first.capped - second.capped == pytest.approx(float((pattern[10] / pattern[9]).log()), abs=1e-4)
    assert first.pattern == float(pattern[10])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_marginals_sum_over_the_other_side(architecture, tmp_path):
    model = load(architecture, tmp_path, "float64")
    for each in attribute(model, make_linearized(model)):
        every = torch.arange(len(each.query))
        pairs = each.pairs(every, every)
        torch.testing.assert_close(each.query_effects, pairs.sum(1), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(each.key_effects, pairs.sum(0), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_relative_effects_sum_to_the_score_minus_the_mean_score(architecture, tmp_path):
    model = load(architecture, tmp_path, "float64")
    linearized = make_linearized(model)
    scores = read(model)
    for each in attribute(model, linearized):
        layer, head, query, _ = each.edge
        row = scores.layer(layer).score[head, query, : query + 1]
        weights = linearized.captured.layers[layer].pattern[head, query, : query + 1]
        mean, plain = float(row @ (weights / weights.sum())), float(row.mean())
        assert (each.mean_score, each.plain_mean_score) == pytest.approx((mean, plain), abs=1e-9)
        for effects, expected in (
            (each.relative_query_effects(), each.score - mean),
            (each.relative_key_effects(), each.score - mean),
            (each.relative_query_effects(plain=True), each.score - plain),
            (each.relative_key_effects(plain=True), each.score - plain),
        ):
            assert float(effects.sum()) == pytest.approx(expected, abs=1e-8)


def test_a_key_source_s_relative_effect_is_its_effect_minus_the_mean_over_keys(tmp_path):
    model = load("llama", tmp_path, "float64")
    linearized = make_linearized(model)
    keys = [HeadEdge(1, 2, 6, key) for key in range(7)]
    each = list(attribute_scores(linearized, read(model), keys))
    effects = torch.stack([one.key_effects for one in each])
    pattern = linearized.captured.layers[1].pattern[2, 6, :7]
    expected = effects[4] - (pattern / pattern.sum()).to(effects) @ effects
    torch.testing.assert_close(each[4].relative_key_effects(), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("total", [False, True])
def test_strongest_pairs_are_the_largest_of_all(total, tmp_path, monkeypatch):
    monkeypatch.setattr("circuitloom.attribution.attention_scores.FIRST_SOURCES", 3)
    monkeypatch.setattr("circuitloom.attribution.attention_scores.PAIR_ELEMENTS", 50)
    model = load("gpt2", tmp_path, "float64")
    each = attribute(model, make_linearized(model), total)[-1]
    first = each.features if total else 0
    every = torch.arange(first, len(each.query))
    pairs = each.pairs(every, every)
    found = each.strongest_pairs(7)
    best = pairs.abs().flatten().sort(descending=True).values[:7]
    torch.testing.assert_close(found.effect.abs(), best)
    torch.testing.assert_close(found.effect, pairs[found.query_source - first, found.key_source - first])


def test_a_head_edge_that_does_not_exist_raises(tmp_path):
    model = load("gemma3_text", tmp_path, "float32")
    linearized, scores = make_linearized(model), read(model)
    local = next(layer for layer in range(LAYERS) if not scores.recorded[layer].allowed[10, 0])
    for edge, message in (
        (HeadEdge(3, 0, 1, 1), "layer 3 does not exist; choose 0 to 2"),
        (HeadEdge(0, 4, 1, 1), "head 4 does not exist; choose 0 to 3"),
        (HeadEdge(0, 0, 11, 1), "query position 11 is outside the prompt; choose 0 to 10"),
        (HeadEdge(0, 0, 3, 4), "cannot read position 4, which its mask hides; choose 0 to 3"),
        (HeadEdge(local, 0, 10, 0), "cannot read position 0, which its mask hides; choose 7 to 10"),
    ):
        with pytest.raises(ValueError, match=message):
            next(attribute_scores(linearized, scores, [edge]))


def test_scores_with_a_bias_are_refused(tmp_path):
    model = load("llama", tmp_path, "float32")
    weights = read_query_key(model)
    rotary = model.attention(1).q_proj
    rotary.register_forward_hook(lambda _module, _args, output: output.tanh())
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM: its queries and keys are not affine.*choose another"
    ):
        capture_scores(model, weights, PROMPT).layer(1)
