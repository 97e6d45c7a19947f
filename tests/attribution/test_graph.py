"""Pruned graphs equal those of a dense reference implementation."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.attribution.inputs import (
    BROKEN,
    KINDS,
    PROMPT,
    make_linearized,
)
from tests.models import ARCHITECTURES, VOCABULARY

from circuitloom.attribution import direct_effects as attribution
from circuitloom.attribution.direct_effects import (
    logit_targets,
    source_columns,
)
from circuitloom.attribution.graph import AttributionGraph, Roots, adjacency, graph_rows, trace_graph
from circuitloom.attribution.linearized_model import LinearizedModel


def make_roots(linearized: LinearizedModel) -> Roots:
    """Four logits at the end of the prompt and one in its middle."""
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[[10, 11, 12, 40, 20]]
    position = torch.tensor([len(linearized.captured) - 1] * 4 + [6])
    weight = torch.tensor([0.4, 0.2, 0.1, 0.05, 0.2], dtype=torch.float64)
    return Roots(logit_targets(linearized, position, weights), weight)


@dataclass
class ReferenceGraph:
    """A pruned graph; nodes are numbered as in the full graph: sources, then roots."""

    influence: np.ndarray
    nodes: list[int]
    edges: dict[tuple[int, int], float]
    """(target, source) to effect."""
    value: dict[int, float]
    size: dict[int, float]
    replacement: float
    completeness: float
    strict: float


def reference_graph(
    linearized: LinearizedModel, roots: Roots, node_share: float, edge_share: float
) -> ReferenceGraph:
    """Reference implementation on a dense square matrix, with a power series and sets."""
    columns = source_columns(linearized)
    effects = adjacency(linearized, roots).numpy()
    features, n = columns.active, len(columns)
    square = np.zeros((n + len(roots.weight),) * 2)
    square[:features, :n] = effects[:features]
    square[n:, :n] = effects[features:]
    w = np.zeros(len(square))
    w[n:] = roots.weight
    learned = range(columns.position_embeddings.start, columns.position_embeddings.stop)
    uncounted = {*(learned if linearized.captured.position_embedding is not None else ()), columns.constant}
    # no position columns for models without position embeddings
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
    return ReferenceGraph(
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
    linearized = make_linearized(tiny(architecture), kind, BROKEN)
    roots = make_roots(linearized)
    graph, plain = trace_graph(linearized, roots, *shares), reference_graph(linearized, roots, *shares)
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
    # some but not all features are pruned
    assert source_columns(linearized).active > (graph.node < source_columns(linearized).active).sum() > 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_of_nodes_are_pre_activations_and_logits(architecture, tiny):
    model = tiny(architecture)
    linearized = make_linearized(model, "skip transcoder", BROKEN)
    graph = trace_graph(linearized, make_roots(linearized))
    columns = source_columns(linearized)
    features = graph.node < columns.active
    activation = linearized.features.activation[graph.node[features]]
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
    linearized = make_linearized(tiny(architecture), "skip transcoder")
    roots = make_roots(linearized)
    full, effects = trace_graph(linearized, roots), adjacency(linearized, roots)
    monkeypatch.setattr(attribution, "MAX_ELEMENTS", carried)
    rows = graph_rows(linearized, roots)(torch.ones(len(source_columns(linearized)) + 5, dtype=torch.float64))
    sizes = [len(nodes) for nodes, _ in rows]
    # there are many chunks
    assert sum(sizes) == len(linearized.features) + 5 and max(sizes[1:]) < 15
    torch.testing.assert_close(adjacency(linearized, roots), effects, atol=1e-12, rtol=0)
    parts = trace_graph(linearized, roots)
    assert torch.equal(parts.node, full.node)
    assert edges_of(parts) == pytest.approx(edges_of(full), abs=1e-12)
    torch.testing.assert_close(parts.influence, full.influence, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.remainder, full.remainder, atol=1e-12, rtol=0)
    assert parts.scores.completeness == pytest.approx(full.scores.completeness, abs=1e-12)


def test_rows_are_computed_for_reached_features_only_and_last_layer_first(tiny):
    linearized = make_linearized(tiny("gpt2"))
    reached = torch.zeros(len(source_columns(linearized)) + 5, dtype=torch.float64)
    wanted = [3, 50, 51, 110]
    assert linearized.features.layer[wanted].tolist() == [0, 1, 1, 2]
    seen = []
    for nodes, _ in graph_rows(linearized, make_roots(linearized))(reached):
        seen.append(nodes.tolist())
        # nodes become reached during iteration, as in influence()
        reached[wanted] = 1.0
    roots = list(range(len(source_columns(linearized)), len(source_columns(linearized)) + 5))
    assert seen == [roots, [110], [50, 51], [3]]


def test_a_prompt_of_one_token_is_explained_by_errors_and_its_embedding(tiny):
    linearized = make_linearized(tiny("gpt2"), token=PROMPT[:1])
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[10:12]
    position = torch.tensor([0, 0])
    roots = Roots(
        logit_targets(linearized, position, weights), torch.tensor([0.5, 0.25], dtype=torch.float64)
    )
    graph = trace_graph(linearized, roots, node_share=1.0, edge_share=1.0)
    assert len(linearized.features) == 0
    # three errors, embedding, position and constant; the roots
    assert graph.node.tolist() == list(range(8))
    assert graph.remainder.abs().max() < 1e-12
    expected = linearized.captured.logits()[0, 10:12]
    torch.testing.assert_close(graph.value[6:], expected, atol=1e-9, rtol=0)
