"""The aggregate graph of several prompts, and the roles of their tokens."""

import numpy as np
import pytest
import torch
from tests.attribution.inputs import PROMPT, make_linearized
from tests.models import VOCABULARY

from circuitloom.attribution.aggregate_graph import (
    PromptGraph,
    RoleFeature,
    aggregate_graphs,
    firing_counts,
    role_nodes,
)
from circuitloom.attribution.direct_effects import logit_targets, source_columns
from circuitloom.attribution.graph import Roots, trace_graph
from circuitloom.corpus.templates import slot_roles

ROLES = list(range(len(PROMPT)))


def make_graph(model, token) -> PromptGraph:
    local = make_linearized(model, token=token)
    weights = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    weights[0, 12], weights[0, 20] = 1, -1
    roots = Roots(logit_targets(local, torch.tensor([len(token) - 1]), weights), torch.ones(1).double())
    return PromptGraph(local, trace_graph(local, roots), ROLES)


@pytest.fixture(scope="module")
def graphs(tiny):
    """Graphs of three prompts that differ in two tokens."""
    prompts = [PROMPT.clone() for _ in range(3)]
    for number, prompt in enumerate(prompts):
        prompt[3], prompt[8] = 30 + number, 40 + number
    return [make_graph(tiny("llama"), prompt) for prompt in prompts]


def test_of_one_prompt_the_aggregate_is_its_graph_without_constant(graphs):
    own = graphs[0]
    found = aggregate_graphs([own, own])
    columns = source_columns(own.model)
    is_node = (own.graph.node < columns.embeddings.stop) | (own.graph.node >= len(columns))
    edges = is_node[own.graph.source] & is_node[own.graph.target]
    assert len(found.nodes) == int(is_node.sum()) and len(found.edges) == int(edges.sum()) > 20
    assert all(found.share(part) == 1 for part in [*found.nodes, *found.edges])
    assert sorted(each.effect for each in found.edges) == pytest.approx(
        sorted(own.graph.effect[edges].tolist())
    )
    assert all(each.deviation == each.half_width == 0 for each in found.edges)
    total = sum(each.influence for each in found.nodes)
    assert total == pytest.approx(float(own.graph.influence[is_node].sum()))


def test_nodes_and_edges_are_counted_and_averaged_over_the_prompts_that_have_them(graphs):
    found = aggregate_graphs(graphs)
    assert {each.n_prompts for each in found.nodes} == {1, 2, 3}
    effects: dict = {}
    for own in graphs:
        nodes = role_nodes(own)
        for source, target, effect in zip(own.graph.source, own.graph.target, own.graph.effect, strict=True):
            effects.setdefault((nodes[source], nodes[target]), []).append(float(effect))
    for edge in found.edges:
        values = effects[found.nodes[edge.source].node, found.nodes[edge.target].node]
        assert edge.n_prompts == len(values) and edge.effect == pytest.approx(np.mean(values))
        if len(values) > 1:
            deviation = np.std(values, ddof=1)
            assert edge.deviation == pytest.approx(deviation)
            assert edge.half_width == pytest.approx(1.959964 * deviation / len(values) ** 0.5)
        else:
            assert edge.deviation is None and edge.half_width is None
    assert len([edge for edge in found.edges if edge.n_prompts == 3]) > 5


def test_common_features_are_in_enough_graphs(graphs):
    found = aggregate_graphs(graphs)
    counts = {}
    for own in graphs:
        for node in role_nodes(own):
            if node is not None and node.kind == "feature":
                key = RoleFeature(node.layer, node.role, node.feature)
                counts[key] = counts.get(key, 0) + 1
    for share, least in ((1.0, 3), (0.6, 2), (0.0, 1)):
        assert set(found.common_features(share)) == {key for key, n in counts.items() if n >= least}


def test_firing_counts_are_over_prompts(graphs):
    counts = firing_counts([(own.model, own.roles) for own in graphs])
    assert sum(counts.values()) == sum(len(own.model.features) for own in graphs)
    assert set(counts.values()) == {1, 2, 3}


def test_roles_count_from_the_start_of_a_literal_and_from_the_end_of_a_slot():
    # `when ` Timmy ` met ` Jo, of which Timmy is two tokens and Jo one
    parts = [(0, 5, False), (5, 10, True), (10, 15, False), (15, 17, True)]
    offsets = np.array([(0, 4), (4, 8), (8, 10), (10, 14), (14, 17)])
    assert slot_roles(parts, offsets) == [(0, 0), (1, -2), (1, -1), (2, 0), (3, -1)]
    shorter = [(0, 5, False), (5, 8, True), (8, 13, False), (13, 15, True)]
    offsets = np.array([(0, 4), (4, 8), (8, 12), (12, 15)])
    assert slot_roles(shorter, offsets) == [(0, 0), (1, -1), (2, 0), (3, -1)]
