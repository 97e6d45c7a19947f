"""Flow of influence along edges, and scores of a graph before and after grouping, computed by hand."""

import numpy as np
import pytest

from circuitloom.attribution.grouped_graph import GraphSummary, graph_flow, summarize


def node(number: int, kind: str, layer: int | None = None, **rest):
    return {
        "node": number,
        "kind": kind,
        "layer": layer,
        "is_root": kind == "logit",
        "probability": None,
        **rest,
    }


def edge(source: int, target: int, effect: float):
    return {"source_node": source, "target_node": target, "effect": effect}


# numbers of nodes are not their places in the list
NODES = [
    node(10, "logit", probability=0.5),
    node(11, "feature", 1),
    node(12, "feature", 0),
    node(13, "feature", 0),
    node(14, "error", 0),
    node(15, "embedding"),
    node(16, "constant"),
    node(17, "position"),
]
EDGES = [
    # of the logit's 0.5, 3/4 flow to 11 and 1/4 to 13
    edge(11, 10, -3.0), edge(13, 10, 1.0),
    # of 11's 0.375, 4/8 flow to 12, 2/8 to 13 and 2/8 to the error
    edge(12, 11, 4.0), edge(13, 11, 2.0), edge(14, 11, -2.0),
    edge(15, 12, 9.0), edge(15, 13, 0.1),
    # not counted
    edge(16, 10, 100.0), edge(17, 12, 100.0), edge(99, 10, 100.0),
]  # fmt: skip
INFLUENCE = [0, 0.375, 0.1875, 0.21875, 0.09375, 0.40625, 0, 0]
# flow along all edges: 0.5 into the logit, 0.375 into 11, 0.1875 + 0.21875 into 12 and 13; and the logit's weight
TOTAL = 0.5 + 0.375 + 0.40625 + 0.5


def test_influence_flows_back_in_proportion_to_absolute_effects() -> None:
    flow = graph_flow(NODES, EDGES)
    assert flow.influence == pytest.approx(INFLUENCE)
    assert flow.flow.sum() == pytest.approx(TOTAL - 0.5)


def test_edges_in_any_order_give_the_same_influence() -> None:
    assert np.allclose(graph_flow(NODES, EDGES[::-1]).influence, INFLUENCE)


def test_roots_without_probabilities_count_equally() -> None:
    nodes = [row | {"probability": None} for row in NODES]
    assert graph_flow(nodes, EDGES).influence == pytest.approx([2 * each for each in INFLUENCE])


def test_a_graph_without_groups_has_the_scores_of_its_nodes() -> None:
    found = summarize(graph_flow(NODES, EDGES), NODES, {})
    # 0.40625 + 0.375 + 0.21875 of 1.28125 are 78 %, so 80 % take four of the five nodes
    assert (found.n_nodes, found.n_edges, found.n_holding) == (5, 7, 4)
    assert found.replacement == pytest.approx(0.40625 / 0.5)
    assert found.completeness == pytest.approx(1 - 0.09375 / TOTAL)


def test_flow_within_a_supernode_no_longer_counts_and_the_replacement_score_stays() -> None:
    flow = graph_flow(NODES, EDGES)
    # of 11 and 12 the flow of 0.1875 is inside, so 0.375 leaves both; the three nodes hold 0.375, 0.21875, 0.40625, and
    # the error 0.09375 of 1.09375
    found = summarize(flow, NODES, {"both": [11, 12]})
    assert (found.n_nodes, found.n_edges, found.n_holding) == (4, 6, 3)
    assert found.replacement == summarize(flow, NODES, {}).replacement
    assert found.completeness == pytest.approx(1 - 0.09375 / (TOTAL - 0.1875))


def test_parallel_edges_of_a_supernode_are_one_edge() -> None:
    found = summarize(graph_flow(NODES, EDGES), NODES, {"both": [12, 13]})
    assert (found.n_nodes, found.n_edges) == (4, 5)


def test_a_node_in_two_groups_belongs_to_the_later_and_unknown_nodes_are_ignored() -> None:
    flow = graph_flow(NODES, EDGES)
    one = summarize(flow, NODES, {"first": [11, 12], "second": [12, 13, 77]})
    assert one == summarize(flow, NODES, {"second": [12, 13]})


def test_a_graph_of_a_root_alone_has_no_influence() -> None:
    nodes = NODES[:1]
    assert summarize(graph_flow(nodes, []), nodes, {}) == GraphSummary(0, 0, 0, 0.0, 1.0)
