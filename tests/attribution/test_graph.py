"""Graphs are what a dense, plain computation gives; effects are what autograd gives; sums add up on a real model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from tests.attribution.inputs import (
    BOS,
    KINDS,
    PROMPT,
    exact_norms,
    load_tiny,
    make_dictionaries,
    make_linearized,
)
from tests.models import ARCHITECTURES, VOCABULARY
from torch import Tensor

from circuitloom.attribution import direct_effects as attribution
from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import (
    direct_effects,
    feature_targets,
    logit_targets,
    source_columns,
)
from circuitloom.attribution.graph import AttributionGraph, Roots, adjacency, graph_rows, trace_graph
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import direct_sources, feature_reader, target_reader
from circuitloom.corpus.tokens import scored_positions
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.model import LanguageModel, load_model

BROKEN = PROMPT.clone()
"""The prompt with a BOS in its midst."""
BROKEN[4] = BOS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tiny models in float64, each made once."""
    folder = tmp_path_factory.mktemp("tiny")
    return cache(lambda architecture: load_tiny(architecture, folder, "float64"))


def make_roots(local: LinearizedModel) -> Roots:
    """Four logits at the end and one in the midst of the prompt."""
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[[10, 11, 12, 40, 20]]
    position = torch.tensor([len(local.captured) - 1] * 4 + [6])
    weight = torch.tensor([0.4, 0.2, 0.1, 0.05, 0.2], dtype=torch.float64)
    return Roots(logit_targets(local, position, weights), weight)


@dataclass
class Plain:
    """A pruned graph, nodes by their number in the whole: sources, then roots."""

    influence: np.ndarray
    nodes: list[int]
    edges: dict[tuple[int, int], float]
    """(target, source) to effect."""
    value: dict[int, float]
    size: dict[int, float]
    replacement: float
    completeness: float
    strict: float


def plain_graph(local: LinearizedModel, roots: Roots, node_share: float, edge_share: float) -> Plain:
    """The definitions written down on one dense square matrix, a power series and sets."""
    columns = source_columns(local)
    effects = adjacency(local, roots).numpy()
    features, n = columns.active, len(columns)
    square = np.zeros((n + len(roots.weight),) * 2)
    square[:features, :n] = effects[:features]
    square[n:, :n] = effects[features:]
    w = np.zeros(len(square))
    w[n:] = roots.weight
    learned = range(columns.position_embeddings.start, columns.position_embeddings.stop)
    uncounted = {*(learned if local.captured.position_embedding is not None else ()), columns.constant}
    # no column of positions where there are none
    real = [i for i in range(len(square)) if i not in learned or i in uncounted]
    N, influence = series(square, w, uncounted)
    error, embedding = (np.arange(each.start, each.stop) for each in (columns.errors, columns.embeddings))
    reached = influence + w
    explained = (1 - N[:, error].sum(1)) * reached

    fixed = {*embedding.tolist(), *uncounted, *range(n, len(square))}
    least = cutoff(influence, node_share)
    nodes = {i for i in real if influence[i] >= least or i in fixed}
    left = np.isin(np.arange(len(w)), sorted(nodes))
    N, inside = series(square * np.outer(left, left), w, uncounted)
    score = N * (inside + w)[:, None]
    least = cutoff(score.flatten(), edge_share)
    edges = {(int(t), int(s)) for t, s in zip(*np.nonzero(score), strict=True) if score[t, s] >= least}
    while True:
        targets, origins = {t for t, _ in edges}, {s for _, s in edges}
        gone = {i for i in nodes - fixed if i not in origins or (i < features and i not in targets)}
        if not gone:
            break
        nodes -= gone
        edges = {edge for edge in edges if not gone & set(edge)}
    edges |= {(t, s) for t in nodes for s in uncounted if square[t, s] != 0}
    tokens, errors = influence[embedding].sum(), influence[error].sum()
    return Plain(
        influence,
        sorted(nodes),
        {edge: square[edge] for edge in edges},
        {t: square[t].sum() for t in nodes},
        {t: np.abs(square[t]).sum() for t in nodes},
        tokens / (tokens + errors),
        explained.sum() / reached.sum(),
        (explained.sum() - explained[error].sum()) / reached.sum(),
    )


def series(square: np.ndarray, w: np.ndarray, uncounted: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """N; w (N + N^2 + ...)."""
    size = np.abs(square)
    size[:, sorted(uncounted)] = 0
    total = size.sum(1, keepdims=True)
    N = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    influence, term = np.zeros_like(w), w @ N
    while term.any():
        influence, term = influence + term, term @ N
    return N, influence


def cutoff(values: np.ndarray, share: float) -> float:
    """The value at which the largest reach a share of the sum."""
    total = 0.0
    for value in sorted(values.tolist(), reverse=True):
        total += value
        if total >= share * values.sum():
            return value
    raise AssertionError("no value reaches the share")


def edges_of(graph: AttributionGraph) -> dict[tuple[int, int], float]:
    target, source = (graph.node[ends].tolist() for ends in (graph.target, graph.source))
    return dict(zip(zip(target, source, strict=True), graph.effect.tolist(), strict=True))


@pytest.mark.parametrize("shares", [(0.8, 0.98), (0.9, 0.8)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_traced_graph_equals_the_dense_one(architecture, kind, shares, tiny):
    local = make_linearized(tiny(architecture), kind, BROKEN)
    roots = make_roots(local)
    graph, plain = trace_graph(local, roots, *shares), plain_graph(local, roots, *shares)
    assert graph.node.tolist() == plain.nodes
    edges = edges_of(graph)
    assert len(edges) == len(graph.effect) and edges.keys() == plain.edges.keys()
    assert edges == pytest.approx(plain.edges, abs=1e-10)
    np.testing.assert_allclose(graph.influence, plain.influence[plain.nodes], atol=1e-12)
    np.testing.assert_allclose(graph.value, [plain.value[i] for i in plain.nodes], atol=1e-10)
    np.testing.assert_allclose(graph.size, [plain.size[i] for i in plain.nodes], atol=1e-10)
    explained = {node: sum(effect for (t, _), effect in edges.items() if t == node) for node in plain.nodes}
    remainder = [plain.value[node] - explained[node] for node in plain.nodes]
    np.testing.assert_allclose(graph.remainder, remainder, atol=1e-10)
    given = (graph.scores.replacement, graph.scores.completeness, graph.scores.completeness_strict)
    assert given == pytest.approx((plain.replacement, plain.completeness, plain.strict), abs=1e-12)
    # something was pruned at each step, and something is left
    assert source_columns(local).active > (graph.node < source_columns(local).active).sum() > 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_of_nodes_are_pre_activations_and_logits(architecture, tiny):
    model = tiny(architecture)
    local = make_linearized(model, "skip transcoder", BROKEN)
    graph = trace_graph(local, make_roots(local))
    columns = source_columns(local)
    features = graph.node < columns.active
    activation = local.features.activation[graph.node[features]]
    torch.testing.assert_close(graph.value[features], activation, atol=1e-9, rtol=1e-9)
    # eager attention rounds patterns to float32, fused attention does not
    with model.eager_attention():
        logits = model.logits(BROKEN[None])[0]
    logits = logits - logits.mean(1, keepdim=True)
    expected = logits[[-1, -1, -1, -1, 6], [10, 11, 12, 40, 20]]
    torch.testing.assert_close(graph.value[graph.node >= len(columns)], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("carried", [1, 1500])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_change_nothing(architecture, carried, tiny, monkeypatch):
    local = make_linearized(tiny(architecture), "skip transcoder")
    roots = make_roots(local)
    whole, effects = trace_graph(local, roots), adjacency(local, roots)
    monkeypatch.setattr(attribution, "MAX_ELEMENTS", carried)
    rows = graph_rows(local, roots)(torch.ones(len(source_columns(local)) + 5, dtype=torch.float64))
    sizes = [len(nodes) for nodes, _ in rows]
    # so the chunks are many
    assert sum(sizes) == len(local.features) + 5 and max(sizes[1:]) < 15
    torch.testing.assert_close(adjacency(local, roots), effects, atol=1e-12, rtol=0)
    parts = trace_graph(local, roots)
    assert torch.equal(parts.node, whole.node)
    assert edges_of(parts) == pytest.approx(edges_of(whole), abs=1e-12)
    torch.testing.assert_close(parts.influence, whole.influence, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.remainder, whole.remainder, atol=1e-12, rtol=0)
    assert parts.scores.completeness == pytest.approx(whole.scores.completeness, abs=1e-12)


def test_rows_are_made_of_reached_features_alone_and_after_all_that_they_lead_to(tiny):
    local = make_linearized(tiny("gpt2"))
    reached = torch.zeros(len(source_columns(local)) + 5, dtype=torch.float64)
    wanted = [3, 50, 51, 110]
    assert local.features.layer[wanted].tolist() == [0, 1, 1, 2]
    seen = []
    for nodes, _ in graph_rows(local, make_roots(local))(reached):
        seen.append(nodes.tolist())
        # reached while rows are asked for, as influence does
        reached[wanted] = 1.0
    roots = list(range(len(source_columns(local)), len(source_columns(local)) + 5))
    assert seen == [roots, [110], [50, 51], [3]]


def test_a_prompt_of_one_token_is_explained_by_errors_and_its_embedding(tiny):
    local = make_linearized(tiny("gpt2"), token=PROMPT[:1])
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[10:12]
    position = torch.tensor([0, 0])
    roots = Roots(logit_targets(local, position, weights), torch.tensor([0.5, 0.25], dtype=torch.float64))
    graph = trace_graph(local, roots, node_share=1.0, edge_share=1.0)
    assert len(local.features) == 0
    # three errors, embedding, position and constant; the roots
    assert graph.node.tolist() == list(range(8))
    assert graph.remainder.abs().max() < 1e-12
    expected = local.captured.logits()[0, 10:12]
    torch.testing.assert_close(graph.value[6:], expected, atol=1e-9, rtol=0)


# The model's own modules, patterns and denominators held, differentiated


@dataclass
class Leaves:
    """What a pass starts from, as autograd sees it, and what it gives."""

    z: dict[int, Tensor] = field(default_factory=dict)
    error: dict[int, Tensor] = field(default_factory=dict)
    embedding: list[Tensor] = field(default_factory=list)
    """Of tokens, then of positions where the model learns them."""
    pre: dict[int, Tensor] = field(default_factory=dict)
    """Pre-activations, [position, feature]."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def hold_norm(module, args, _output):
    """The norm's formula, with its denominator detached."""
    (x,) = args
    if isinstance(module, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    epsilon = module.eps if isinstance(module, torch.nn.LayerNorm) else module.variance_epsilon
    sigma = (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
    bias = getattr(module, "bias", None)
    return module.weight * x / sigma.detach() + (0 if bias is None else bias)


@contextmanager
def holding_patterns(model: LanguageModel, token: Tensor) -> Iterator[None]:
    """Attention takes the patterns that the model itself computes on the prompt, and no gradient goes through them."""
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

    AttentionInterface.register("held", attend)
    AttentionMaskInterface.register("held", lambda *_args, **_options: None)
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation("held")
    try:
        yield
    finally:
        model.module.set_attn_implementation(before)
        del AttentionInterface._global_mapping["held"], AttentionMaskInterface._global_mapping["held"]


def run_held(model: LanguageModel, dictionaries: dict[int, Dictionary], token: Tensor) -> Leaves:
    """One pass of the model's own modules, with leaves where the replacement model has sources."""
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
        stack.enter_context(holding_patterns(model, token))
        hooks = [(model.module.get_submodule(name), embed) for name in embeddings]
        hooks += [(norm, hold_norm) for norm in norms.values()]
        hooks += [(model.mlp(layer), replace(layer)) for layer in range(model.layers)]
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        leaves.logits = model.logits(token[None])[0]
    return leaves


def by_autograd(local: LinearizedModel, leaves: Leaves, target: Tensor) -> Tensor:
    """A row of direct effects: the gradient of a target at each source, times the source; what is left is constant."""
    columns, features = source_columns(local), local.features
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
    errors = torch.stack([effect[id(leaves.error[layer])].sum(1) for layer in range(local.layers)])
    row[columns.errors] = errors.flatten()
    for place, leaf in zip((columns.embeddings, columns.position_embeddings), leaves.embedding, strict=False):
        row[place] = effect[id(leaf)].view(len(local.captured), -1).sum(1)
    row[columns.constant] = target.detach() - row.sum()
    return row


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_effects_are_what_autograd_gives_with_patterns_and_denominators_held(architecture, kind, tiny):
    model = tiny(architecture)
    local = make_linearized(model, kind, BROKEN)
    dictionaries = {
        layer: dictionary.to("cpu", torch.float64)
        for layer, dictionary in make_dictionaries(model, kind).items()
    }
    leaves = run_held(model, dictionaries, BROKEN)
    assert leaves.embedding[0].requires_grad and len(leaves.embedding) == 1 + (architecture == "gpt2")
    for layer in dictionaries:
        places = (local.features.layer == layer).nonzero()[:, 0]
        effects = direct_effects(local, feature_targets(local, places))
        for i in range(0, len(places), 5):
            position, feature = local.features.position[places[i]], local.features.feature[places[i]]
            expected = by_autograd(local, leaves, leaves.pre[layer][position, feature])
            torch.testing.assert_close(effects[i], expected, atol=1e-9, rtol=0)
    roots = make_roots(local)
    effects = direct_effects(local, roots.targets)
    for i, (position, token) in enumerate([(10, 10), (10, 11), (10, 12), (10, 40), (6, 20)]):
        logits = leaves.logits[position]
        expected = by_autograd(local, leaves, logits[token] - logits.mean())
        torch.testing.assert_close(effects[i], expected, atol=1e-9, rtol=0)
        # effects of some size, so that the comparison says something
        assert expected[: len(local.features)].abs().max() > 1e-2


# A real model

BOUNDS = {"float64": 1e-9, "float32": 1e-4}


def make_real(folder, dtype: str, skip: bool) -> LinearizedModel:
    """The replacement model of 24 tokens on stories260K, dictionaries being random."""
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
    local = make_real(real_input, dtype, skip)
    features, bound = local.features, BOUNDS[dtype]
    assert len(features) > 800
    for layer, dictionary in local.dictionaries.items():
        places = (features.layer == layer).nonzero()[:, 0]
        read = local.captured.layers[layer].mlp_in[features.position[places]]
        feature = features.feature[places]
        expected = (read * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        scale = expected.abs().clamp(min=1)
        full = direct_effects(local, feature_targets(local, places)).sum(1)
        assert ((full - expected).abs() / scale).max() < bound
        for i in range(0, len(places), 9):
            step = direct_sources(local, feature_reader(local, int(places[i])))
            one = float(step.value.double().sum()) + step.error + step.constant
            assert abs(one - float(expected[i])) / float(scale[i]) < bound
    logits = local.captured.logits()
    weights = torch.eye(logits.shape[1], dtype=logits.dtype)[[5, 300]]
    targets = logit_targets(local, torch.tensor([23, 11]), weights)
    expected = logits[[23, 11], [5, 300]]
    scale = expected.abs().clamp(min=1)
    assert ((direct_effects(local, targets).sum(1) - expected).abs() / scale).max() < bound
    for i in range(2):
        step = direct_sources(local, target_reader(local, targets[i : i + 1]))
        one = float(step.value.double().sum()) + step.error + step.constant
        assert abs(one - float(expected[i])) / float(scale[i]) < bound
