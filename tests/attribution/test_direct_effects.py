"""Direct and total effects: they sum to the target's value and equal what autograd gives on the real modules."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from tests.attribution.inputs import (
    BOS,
    BROKEN,
    KINDS,
    PROMPT,
    exact_norms,
    load_tiny,
    make_dictionaries,
    make_linearized,
)
from tests.models import ARCHITECTURES, LAYERS, VOCABULARY
from torch import Tensor

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
from circuitloom.corpus.token_arrays import scored_positions
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.model import LanguageModel, load_model

BOUNDS = {"float64": 1e-9, "float32": 1e-4}
"""Largest error relative to max(1, |value|)."""


# Sums over sources


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pre_activation_equals_the_sum_of_its_sources(architecture, kind, dtype, tmp_path):
    linearized = make_linearized(load_tiny(architecture, tmp_path, dtype), kind)
    assert len(linearized.features) > 50
    for layer, dictionary in linearized.dictionaries.items():
        places = (linearized.features.layer == layer).nonzero()[:, 0]
        effects = direct_effects(linearized, feature_targets(linearized, places))
        read = linearized.captured.layers[layer].mlp_in[linearized.features.position[places]]
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


@dataclass
class Leaves:
    """Leaves of the autograd graph, one per source, and the outputs of the pass."""

    z: dict[int, Tensor] = field(default_factory=dict)
    error: dict[int, Tensor] = field(default_factory=dict)
    embedding: list[Tensor] = field(default_factory=list)
    """Token embeddings, then position embeddings if the model has them."""
    pre: dict[int, Tensor] = field(default_factory=dict)
    """Pre-activations, [position, feature]."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def frozen_norm(module, args, _output):
    """The norm's formula, with its denominator detached."""
    (x,) = args
    if isinstance(module, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    epsilon = module.eps if isinstance(module, torch.nn.LayerNorm) else module.variance_epsilon
    sigma = (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
    bias = getattr(module, "bias", None)
    return module.weight * x / sigma.detach() + (0 if bias is None else bias)


@contextmanager
def frozen_patterns(model: LanguageModel, token: Tensor) -> Iterator[None]:
    """Replace attention patterns by those that the model computes on the prompt, without gradient."""
    from transformers import AttentionInterface, AttentionMaskInterface

    patterns: list[Tensor] = []
    handles = [
        model.attention(layer).register_forward_hook(lambda _m, _a, output: patterns.append(output[1]))
        for layer in range(model.layers)
    ]
    with model.eager_attention(), torch.no_grad():
        model.logits(token[None])
    for handle in handles:
        handle.remove()

    def attend(module, query, _key, value, _mask, **_options):
        pattern = patterns[module.layer_idx]
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return (pattern @ value).transpose(1, 2), pattern

    AttentionInterface.register("frozen", attend)
    AttentionMaskInterface.register("frozen", lambda *_args, **_options: None)
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation("frozen")
    try:
        yield
    finally:
        model.module.set_attn_implementation(before)
        del AttentionInterface._global_mapping["frozen"], AttentionMaskInterface._global_mapping["frozen"]


def run_frozen(model: LanguageModel, dictionaries: dict[int, Dictionary], token: Tensor) -> Leaves:
    """Run the model's own modules with a leaf for every source of the linearized model."""
    leaves = Leaves()
    replaced = scored_positions(token[None], BOS)[0][:, None].double()

    def embed(_module, _args, output):
        leaves.embedding.append(output.detach().clone().requires_grad_())
        return leaves.embedding[-1]

    def replace(layer: int):
        def mlp(_module, args, output):
            x, y = args[0][0], output[0].detach()
            reconstruction = torch.zeros_like(y)
            if layer in dictionaries:
                dictionary = dictionaries[layer]
                leaves.pre[layer] = x @ dictionary.W_enc.T + dictionary.b_enc
                z = leaves.z[layer] = dictionary.encode(x.detach()).requires_grad_()
                skip = 0 if dictionary.W_skip is None else x @ dictionary.W_skip.T
                reconstruction = replaced * (z @ dictionary.W_dec + dictionary.b_dec + skip)
            error = leaves.error[layer] = (y - reconstruction).detach().requires_grad_()
            return (reconstruction + error)[None]

        return mlp

    anatomy = model.anatomy
    embeddings = [anatomy.embedding, *([] if anatomy.positions is None else [anatomy.positions])]
    norms = {anatomy.norm_final: model.module.get_submodule(anatomy.norm_final)}
    for layer in range(model.layers):
        for name in (anatomy.norm_attention, anatomy.norm_mlp):
            norms[f"{layer} {name}"] = model.norm(layer, name)
    with ExitStack() as stack:
        stack.enter_context(frozen_patterns(model, token))
        hooks = [(model.module.get_submodule(name), embed) for name in embeddings]
        hooks += [(norm, frozen_norm) for norm in norms.values()]
        hooks += [(model.mlp(layer), replace(layer)) for layer in range(model.layers)]
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        leaves.logits = model.logits(token[None])[0]
    return leaves


def by_autograd(linearized: LinearizedModel, leaves: Leaves, target: Tensor) -> Tensor:
    """A row of direct effects: a target's gradient at each source times the source; the remainder is the constant."""
    columns, features = source_columns(linearized), linearized.features
    row = torch.zeros(len(columns), dtype=torch.float64)
    every = [*leaves.z.values(), *leaves.error.values(), *leaves.embedding]
    gradients = torch.autograd.grad(target, every, retain_graph=True, allow_unused=True)
    effect = {
        id(leaf): torch.zeros_like(leaf) if gradient is None else (gradient * leaf).detach()
        for leaf, gradient in zip(every, gradients, strict=True)
    }
    for layer, z in leaves.z.items():
        at = features.layer == layer
        row[: columns.active][at] = effect[id(z)][features.position[at], features.feature[at]]
    errors = torch.stack([effect[id(leaves.error[layer])].sum(1) for layer in range(linearized.layers)])
    row[columns.errors] = errors.flatten()
    for place, leaf in zip((columns.embeddings, columns.position_embeddings), leaves.embedding, strict=False):
        row[place] = effect[id(leaf)].view(len(linearized.captured), -1).sum(1)
    row[columns.constant] = target.detach() - row.sum()
    return row


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_direct_effects_equal_gradients_with_patterns_and_denominators_frozen(architecture, kind, tiny):
    model = tiny(architecture)
    linearized = make_linearized(model, kind, BROKEN)
    dictionaries = {
        layer: dictionary.to("cpu", torch.float64)
        for layer, dictionary in make_dictionaries(model, kind).items()
    }
    leaves = run_frozen(model, dictionaries, BROKEN)
    assert leaves.embedding[0].requires_grad and len(leaves.embedding) == 1 + (architecture == "gpt2")
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
    positions, tokens = map(torch.tensor, zip(*pairs, strict=True))
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[tokens]
    effects = direct_effects(linearized, logit_targets(linearized, positions, weights))
    for i, (position, token) in enumerate(pairs):
        logits = leaves.logits[position]
        expected = by_autograd(linearized, leaves, logits[token] - logits.mean())
        torch.testing.assert_close(effects[i], expected, atol=1e-9, rtol=0)
        # effects are large enough for the comparison to mean something
        assert expected[: len(linearized.features)].abs().max() > 1e-2


# Total effects


@pytest.fixture(scope="module", params=[(a, kind) for a in ARCHITECTURES for kind in KINDS])
def linearized(request, tmp_path_factory) -> LinearizedModel:
    architecture, kind = request.param
    return make_linearized(load_tiny(architecture, tmp_path_factory.mktemp(architecture), "float64"), kind)


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
