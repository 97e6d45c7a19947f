"""Direct and total effects: they sum to the target's value and equal what autograd gives on the real modules."""

import pytest
import torch
from tests.attribution.autograd import by_autograd, run_frozen
from tests.attribution.inputs import (
    BOS,
    BROKEN,
    KINDS,
    PROMPT,
    READING,
    exact_norms,
    load_tiny,
    make_dictionaries,
    make_linearized,
)
from tests.attribution.test_architectures import exact_norms as exact_any_norms
from tests.attribution.test_architectures import load_any
from tests.models import LAYERS, VOCABULARY

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import (
    AttributionTargets,
    direct_effects,
    feature_targets,
    logit_targets,
    source_columns,
    total_effects,
)
from circuitloom.attribution.graph import Roots, adjacency
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import direct_sources, feature_reader, target_reader
from circuitloom.config.activations import MLP_INPUTS, MLP_OUTPUTS
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel, load_model

BOUNDS = {"float64": 1e-9, "float32": 1e-4}
"""Largest error relative to max(1, |value|)."""


# Sums over sources


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "reads"), READING)
def test_a_pre_activation_equals_the_sum_of_its_sources(architecture, reads, kind, dtype, tmp_path):
    model = load_tiny(architecture, tmp_path, dtype)
    linearized = make_linearized(model, kind, site_in=reads)
    seen = capture(model, PROMPT[None], [Site(reads, layer) for layer in range(LAYERS)])
    assert len(linearized.features) > 50
    for layer, dictionary in linearized.dictionaries.items():
        places = (linearized.features.layer == layer).nonzero()[:, 0]
        effects = direct_effects(linearized, feature_targets(linearized, places))
        inputs = linearized.captured.layers[layer].input(dictionary)
        # attention is computed differently in the two passes, and its softmax rounds to float32
        torch.testing.assert_close(inputs, seen[Site(reads, layer)][0], atol=1e-5, rtol=1e-5)
        read = inputs[linearized.features.position[places]]
        feature = linearized.features.feature[places]
        expected = (read * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        error = (effects.sum(1) - expected).abs() / expected.abs().clamp(min=1)
        assert error.max() < BOUNDS[dtype]


def make_real(folder, dtype: str, skip: bool) -> LinearizedModel:
    """Linearized model of 24 tokens on stories260K with random dictionaries."""
    model = load_model(folder / "models" / "stories260K", dtype, device="cpu")
    if dtype == "float64":
        exact_norms(model)
    token = torch.arange(24) * 37 % 480 + 20
    token[0] = BOS
    captured = capture_pass(model, read_weights(model), token)
    d, dictionaries = captured.resid_final.shape[1], {}
    for layer in range(model.layers):
        random = torch.Generator().manual_seed(layer)
        W_dec = torch.randn(160, d, generator=random)
        dictionaries[layer] = Dictionary(
            W_enc=torch.randn(160, d, generator=random) / d**0.5,
            b_enc=0.1 * torch.randn(160, generator=random),
            W_dec=W_dec / W_dec.norm(dim=1, keepdim=True),
            b_dec=torch.randn(d, generator=random) / d**0.5,
            act="topk",
            k=8,
            W_skip=torch.randn(d, d, generator=random) / d if skip else None,
            layer=layer,
        )
    return LinearizedModel(captured, dictionaries, BOS)


@pytest.mark.parametrize("skip", [False, True], ids=["transcoder", "skip transcoder"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_sums_add_up_on_a_real_model(dtype, skip, real_input):
    linearized = make_real(real_input, dtype, skip)
    features, bound = linearized.features, BOUNDS[dtype]
    assert len(features) > 800
    for layer, dictionary in linearized.dictionaries.items():
        places = (features.layer == layer).nonzero()[:, 0]
        read = linearized.captured.layers[layer].mlp_in[features.position[places]]
        feature = features.feature[places]
        expected = (read * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        scale = expected.abs().clamp(min=1)
        full = direct_effects(linearized, feature_targets(linearized, places)).sum(1)
        assert ((full - expected).abs() / scale).max() < bound
        for i in range(0, len(places), 9):
            sources = direct_sources(linearized, feature_reader(linearized, int(places[i])))
            one = float(sources.value.double().sum()) + sources.error + sources.constant
            assert abs(one - float(expected[i])) / float(scale[i]) < bound
    logits = linearized.captured.logits()
    weights = torch.eye(logits.shape[1], dtype=logits.dtype)[[5, 300]]
    targets = logit_targets(linearized, torch.tensor([23, 11]), weights)
    expected = logits[[23, 11], [5, 300]]
    scale = expected.abs().clamp(min=1)
    assert ((direct_effects(linearized, targets).sum(1) - expected).abs() / scale).max() < bound
    for i in range(2):
        sources = direct_sources(linearized, target_reader(linearized, targets[i : i + 1]))
        one = float(sources.value.double().sum()) + sources.error + sources.constant
        assert abs(one - float(expected[i])) / float(scale[i]) < bound


# Against autograd


def assert_equal_to_autograd(
    model: LanguageModel, linearized: LinearizedModel, dictionaries: dict[int, Dictionary]
) -> None:
    """Compare every fifth active feature of each layer and some logits. `linearized` is the model on `BROKEN`."""
    leaves = run_frozen(model, dictionaries, BROKEN)
    positions = linearized.captured.position_embedding is not None
    assert leaves.embedding[0].requires_grad and len(leaves.embedding) == 1 + positions
    for layer in dictionaries:
        places = (linearized.features.layer == layer).nonzero()[:, 0]
        effects = direct_effects(linearized, feature_targets(linearized, places))
        for i in range(0, len(places), 5):
            position, feature = (
                linearized.features.position[places[i]],
                linearized.features.feature[places[i]],
            )
            expected = by_autograd(linearized, leaves, leaves.pre[layer][position, feature])
            torch.testing.assert_close(effects[i], expected, atol=1e-9, rtol=0)
    pairs = [(10, 10), (10, 11), (10, 12), (10, 40), (6, 20)]
    position, tokens = map(torch.tensor, zip(*pairs, strict=True))
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[tokens]
    effects = direct_effects(linearized, logit_targets(linearized, position, weights))
    for i, (at, token) in enumerate(pairs):
        logits = leaves.logits[at]
        expected = by_autograd(linearized, leaves, logits[token] - logits.mean())
        torch.testing.assert_close(effects[i], expected, atol=1e-9, rtol=0)
        # effects are large enough for the comparison to mean something
        assert expected[: len(linearized.features)].abs().max() > 1e-2


def double(dictionaries: dict[int, Dictionary]) -> dict[int, Dictionary]:
    return {layer: dictionary.to("cpu", torch.float64) for layer, dictionary in dictionaries.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "reads"), READING)
def test_direct_effects_equal_gradients_with_patterns_and_denominators_frozen(
    architecture, reads, kind, tiny
):
    model = tiny(architecture)
    made = double(make_dictionaries(model, kind, site_in=reads))
    assert_equal_to_autograd(model, make_linearized(model, kind, BROKEN, site_in=reads), made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", MLP_INPUTS)
@pytest.mark.parametrize("site", MLP_OUTPUTS)
@pytest.mark.parametrize("name", ["Gemma3Text", "Olmo2"])
def test_direct_effects_equal_gradients_where_a_norm_follows_the_mlp(name, site, reads, kind, tmp_path):
    model = load_any(name, tmp_path)
    exact_any_norms(model)
    made = make_dictionaries(model, kind, site_in=reads, site_out=site)
    captured = capture_pass(model, read_weights(model), BROKEN)
    assert_equal_to_autograd(model, LinearizedModel(captured, made, BOS), double(made))


# Total effects


@pytest.fixture(scope="module", params=[(*model, kind) for model in READING for kind in KINDS], ids=", ".join)
def linearized(request, tmp_path_factory) -> LinearizedModel:
    architecture, reads, kind = request.param
    model = load_tiny(architecture, tmp_path_factory.mktemp(architecture), "float64")
    return make_linearized(model, kind, site_in=reads)


def some_targets(linearized: LinearizedModel) -> list[AttributionTargets]:
    """Two logit differences, and the active features of the last layer at the last position and two before."""
    weights = linearized.captured.resid_final.new_zeros(2, len(linearized.captured.unembedding.weight))
    weights[0, 12], weights[0, 20], weights[1, 31], weights[1, 9] = 1, -1, 1, -1
    places = torch.tensor([len(PROMPT) - 1, len(PROMPT) - 3])
    features = linearized.features
    active = (features.layer == LAYERS - 1) & torch.isin(features.position, places)
    return [logit_targets(linearized, places, weights), feature_targets(linearized, active.nonzero()[:, 0])]


def test_total_effects_of_tokens_positions_errors_and_biases_sum_to_the_target(linearized):
    for targets in some_targets(linearized):
        total = total_effects(linearized, targets)[:, source_columns(linearized).active :].sum(1)
        expected = direct_effects(linearized, targets).sum(1)
        torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


def test_total_effects_are_direct_effects_summed_over_all_paths(linearized):
    active = source_columns(linearized).active
    for targets in some_targets(linearized):
        direct = adjacency(linearized, Roots(targets, targets.constant.new_ones(len(targets))))
        # features have slope 1, so effect / activation is the gradient
        slope = direct[:, :active] / linearized.features.activation
        through = torch.linalg.solve(torch.eye(active) - slope[:active], direct[:active])
        expected = direct[active:] + slope[active:] @ through
        torch.testing.assert_close(total_effects(linearized, targets), expected, rtol=1e-8, atol=1e-9)
