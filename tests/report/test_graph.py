"""Layout of an attribution graph: nodes by token and layer, the strongest edges on top, supernodes; and its markup."""

import pytest

from circuitloom.report.graph import graph_markup, group_nodes, lay_out, readable_share

TOKENS = ["<bos>", " was", "by\n"]
COMMON = {"is_root": False, "layer": None, "feature": None, "influence": 0.5, "cumulative": 0.5}
NODES = [
    {**COMMON, "node": 7, "kind": "logit", "is_root": True, "position": 2, "token": "by\n"},
    {**COMMON, "node": 1, "kind": "feature", "layer": 1, "feature": 40, "position": 2, "token": "by\n"},
    {**COMMON, "node": 2, "kind": "feature", "layer": 0, "feature": 3, "position": 1, "token": " was"},
    {**COMMON, "node": 3, "kind": "embedding", "position": 1, "token": " was"},
    {**COMMON, "node": 4, "kind": "constant", "position": None, "token": None},
]


def edge(source: int, target: int, effect: float) -> dict:
    return {"source_node": source, "target_node": target, "effect": effect}


EDGES = [edge(1, 7, 2.0), edge(2, 7, -1.0), edge(4, 7, 0.5)]


@pytest.fixture
def graph():
    return lay_out(NODES, EDGES, TOKENS)


def ends(graph) -> list[tuple[int, int]]:
    return [(edge.source, edge.target) for edge in graph.edges]


def test_later_tokens_are_further_right_and_later_layers_higher(graph) -> None:
    place = {node.number: (node.x, node.y) for node in graph.nodes}
    assert set(place) == {7, 1, 2, 3}
    assert place[1][0] > place[2][0] == place[3][0]
    assert place[7][1] < place[1][1] < place[2][1] < place[3][1]
    assert all(0 < x < graph.width and 0 < y < graph.height for x, y in place.values())
    assert all(0 < label.y < graph.height for label in (*graph.tokens, *graph.layers))


def test_tokens_are_below_their_nodes_and_their_blanks_are_visible(graph) -> None:
    where = {node.number: node.x for node in graph.nodes}
    assert [(label.text, label.x) for label in graph.tokens] == [("␣was", where[3]), ("by↵", where[1])]


def test_long_tokens_are_shortened_below_the_graph() -> None:
    long = lay_out(NODES, [], ["<bos>", "internationalization", "by"])
    assert [label.text for label in long.tokens] == ["international…", "by"]


def test_edges_end_at_their_nodes_and_the_strongest_is_drawn_last(graph) -> None:
    place = {node.number: (node.x, node.y) for node in graph.nodes}
    assert [(edge.source, edge.raises) for edge in graph.edges] == [(2, False), (1, True)]
    for edge in graph.edges:
        start, end = place[edge.source], place[edge.target]
        assert edge.curve.startswith(f"M{start[0]:g} {start[1]:g}C")
        assert edge.curve.endswith(f" {end[0]:g} {end[1]:g}")
    assert [edge.width for edge in graph.edges] == [1.7, 3.0]


def test_beyond_the_limit_only_the_edges_strongest_relative_to_their_target_are_drawn() -> None:
    few = lay_out(NODES, [*EDGES, edge(3, 1, 1e-9), edge(3, 2, 1e-12)], TOKENS, max_edges=3)
    # the only edge of its target, however small
    assert sorted(ends(few)) == [(1, 7), (3, 1), (3, 2)]
    assert few.n_hidden == 1
    assert "The 1 edges with the smallest shares are not drawn." in graph_markup(few, "war")


def test_pruning_keeps_roots_and_embeddings(graph) -> None:
    assert {node.number for node in graph.nodes if node.always_shown} == {7, 3}


def test_a_target_feature_is_drawn_in_its_own_layer() -> None:
    rooted = [row | {"is_root": row["node"] == 1} for row in NODES[1:]]
    graph = lay_out(rooted, [], TOKENS)
    assert [label.text for label in graph.layers] == ["tokens", "layer 0", "layer 1"]


def test_an_empty_graph_is_drawn() -> None:
    assert lay_out([], [], TOKENS).nodes == ()


def test_an_edge_of_a_supernode_is_the_sum_over_its_members_and_inner_edges_are_dropped() -> None:
    edges = [*EDGES, edge(2, 1, 8.0), edge(3, 1, 0.25), edge(3, 2, 0.5)]
    _, joined = group_nodes(NODES, edges, {"both": [1, 2], "start": [3]})
    found = {(row["source_node"], row["target_node"]): row["effect"] for row in joined}
    assert found == {(-1, 7): 1.0, (4, 7): 0.5, (-2, -1): 0.75}


def test_a_supernode_is_drawn_once_where_its_most_influential_member_is() -> None:
    nodes = [row | {"influence": 0.75 if row["node"] == 1 else 0.25} for row in NODES]
    grouped = lay_out(*group_nodes(nodes, EDGES, {"both": [1, 2], "nothing": [99]}), TOKENS)
    (supernode,) = (node for node in grouped.nodes if node.kind == "supernode")
    assert {node.number for node in grouped.nodes} == {7, 3, -1}
    assert (supernode.name, supernode.description) == ("both (2)", "supernode both of 2 nodes; influence 1")
    assert supernode.always_shown
    alone = {node.number: node.y for node in lay_out(nodes, EDGES, TOKENS).nodes}
    assert supernode.y == alone[1]


@pytest.mark.parametrize("members", [[3], [3, 7], [1, 2, 3, 7]])
def test_supernodes_may_hold_embeddings_and_targets(members) -> None:
    nodes, edges = group_nodes(NODES, EDGES, {"any": members})
    assert -1 in {node.number for node in lay_out(nodes, edges, TOKENS).nodes}


def test_markup_escapes_names_and_marks_the_initial_share(graph) -> None:
    grouped = lay_out(*group_nodes(NODES, EDGES, {"<b>bold": [1, 2]}), TOKENS)
    markup = graph_markup(grouped, "<script>", 0.6)
    assert "<b>" not in markup and "<script>" not in markup
    assert "&lt;b&gt;bold (2)" in markup
    assert 'value="60"' in markup
    assert "not drawn" not in markup


def test_the_report_says_how_many_edges_are_not_drawn(tmp_path, monkeypatch) -> None:
    from tests.report.conftest import write

    from circuitloom.report import sections

    monkeypatch.setattr(sections, "EDGES", 3)
    monkeypatch.setattr(sections, "inline_svg", lambda figure, name, label: "<svg></svg>")
    report = write(tmp_path)
    assert len(report.page.rows["graph_edges:war"]) == 3
    assert "The 4 edges with the smallest shares are not drawn." in report.page.text


def test_at_first_a_large_graph_shows_at_most_80_nodes_besides_those_always_shown() -> None:
    def features(n: int) -> list[dict]:
        return [NODES[1] | {"node": 10 + i, "cumulative": (i + 1) / 200} for i in range(n)]

    # a hundredth of the influence is two features; the root, the embedding and the constant do not count
    assert readable_share([*NODES[:1], *NODES[3:], *features(200)]) == 0.40
    assert readable_share([*NODES[:1], *NODES[3:], *features(80)]) == 1.0
    # no whole percentage lies between the 80th and the 81st node
    tied = [row | {"cumulative": 0.305} for row in features(200)]
    assert readable_share(tied) == 0.30
