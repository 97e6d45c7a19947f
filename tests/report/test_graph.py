"""How a graph is laid out: nodes over their tokens and layers, edges between them, the strongest on top."""

import pytest

from circuitloom.report.graph import lay_out

TOKENS = ["<bos>", " was", "by\n"]
COMMON = {"is_root": False, "layer": None, "feature": None, "influence": 0.5, "cumulative": 0.5}
NODES = [
    {**COMMON, "node": 7, "kind": "logit", "is_root": True, "position": 2, "token": "by\n"},
    {**COMMON, "node": 1, "kind": "feature", "layer": 1, "feature": 40, "position": 2, "token": "by\n"},
    {**COMMON, "node": 2, "kind": "feature", "layer": 0, "feature": 3, "position": 1, "token": " was"},
    {**COMMON, "node": 3, "kind": "embedding", "position": 1, "token": " was"},
    {**COMMON, "node": 4, "kind": "constant", "position": None, "token": None},
]
EDGES = [
    {"source_node": 1, "target_node": 7, "effect": 2.0, "strength": 1.0},
    {"source_node": 2, "target_node": 7, "effect": -1.0, "strength": 0.5},
    {"source_node": 4, "target_node": 7, "effect": 0.5, "strength": 0.25},
]


@pytest.fixture
def graph():
    return lay_out(NODES, EDGES, TOKENS)


def test_later_tokens_lie_further_right_and_later_layers_higher(graph) -> None:
    place = {node.number: (node.x, node.y) for node in graph.nodes}
    assert set(place) == {7, 1, 2, 3}
    assert place[1][0] > place[2][0] == place[3][0]
    assert place[7][1] < place[1][1] < place[2][1] < place[3][1]
    assert all(0 < x < graph.width and 0 < y < graph.height for x, y in place.values())
    assert all(0 < text.y < graph.height for text in (*graph.tokens, *graph.layers))


def test_tokens_stand_below_their_nodes_with_their_blanks_shown(graph) -> None:
    where = {node.number: node.x for node in graph.nodes}
    assert [(text.text, text.x) for text in graph.tokens] == [("␣was", where[3]), ("by↵", where[1])]


def test_edges_end_where_their_nodes_lie_and_the_strongest_is_drawn_last(graph) -> None:
    place = {node.number: (node.x, node.y) for node in graph.nodes}
    assert [(edge.source, edge.raises) for edge in graph.edges] == [(2, False), (1, True)]
    for edge in graph.edges:
        start, end = place[edge.source], place[edge.target]
        assert edge.course.startswith(f"M{start[0]:g} {start[1]:g}C")
        assert edge.course.endswith(f" {end[0]:g} {end[1]:g}")
    assert graph.edges[0].width < graph.edges[1].width


def test_what_begins_and_what_ends_stays_when_nodes_are_pruned(graph) -> None:
    assert {node.number for node in graph.nodes if node.stays} == {7, 3}


def test_a_feature_that_is_explained_lies_in_its_own_layer() -> None:
    rooted = [row | {"is_root": row["node"] == 1} for row in NODES[1:]]
    graph = lay_out(rooted, [], TOKENS)
    assert [text.text for text in graph.layers] == ["tokens", "layer 0", "layer 1"]


def test_a_graph_of_nothing_is_drawn() -> None:
    assert lay_out([], [], TOKENS).nodes == ()


def test_only_so_many_edges_are_drawn_and_the_page_says_so(tmp_path, monkeypatch) -> None:
    from tests.report.conftest import write

    from circuitloom.report import sections

    monkeypatch.setattr(sections, "EDGES", 3)
    report = write(tmp_path)
    assert len(report.page.rows["graph_edges:war"]) == 3
    assert "Of 7 edges the 3 strongest in that sense are drawn." in report.page.text
