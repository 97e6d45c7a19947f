from pathlib import Path

from circuitloom.attribution import drawing
from circuitloom.attribution.drawing import (
    GraphDrawing,
    draw_graph,
    drawn_edges,
    drawn_nodes,
    graph_figure,
    node_text,
)
from circuitloom.core.feature_labels import FeatureLabel
from circuitloom.core.tables import EDGE, NODE, TRACE, write_table


def node(number, kind="feature", influence=0.0, is_root=False, in_graph=True):
    return {"node": number, "kind": kind, "influence": influence, "is_root": is_root, "in_graph": in_graph}


def edge(source, target, effect):
    return {"source": source, "target": target, "effect": effect}


NODES = [
    node(0, "embedding", 0.3),
    node(1, influence=0.2),
    node(2, "error", 0.9),
    node(3, influence=0.5),
    node(4, "constant", 0.8),
    node(5, "logit", float("nan"), is_root=True),
    # on paths only
    node(6, influence=0.7, in_graph=False),
]


def test_a_small_graph_is_drawn_whole_without_constants():
    assert [row["node"] for row in drawn_nodes(NODES)] == [0, 1, 2, 3, 5]


def test_of_a_large_graph_roots_features_and_tokens_with_the_most_influence_are_drawn(monkeypatch):
    monkeypatch.setattr(drawing, "MAX_NODES", 3)
    assert [row["node"] for row in drawn_nodes(NODES)] == [0, 3, 5]


def test_edges_are_ranked_by_the_influence_that_passes_through_them(monkeypatch):
    # 3 has an influence of 0.5, and 0 contributes 1 of 4 to it: 0.125; from 0 to the root, 0.1 of 2 pass: 0.05
    edges = [edge(0, 3, 1.0), edge(1, 3, -3.0), edge(0, 5, 0.1), edge(3, 5, -1.9), edge(2, 1, 1.0)]
    nodes = [row for row in NODES if row["node"] in (0, 1, 3, 5)]
    monkeypatch.setattr(drawing, "MAX_EDGES", 3)
    assert drawn_edges(edges, nodes) == [edge(3, 5, -1.9), edge(1, 3, -3.0), edge(0, 3, 1.0)]
    # the strongest edge from each node is drawn too
    monkeypatch.setattr(drawing, "MAX_EDGES", 1)
    assert drawn_edges(edges, nodes) == [edge(3, 5, -1.9), edge(1, 3, -3.0), edge(0, 3, 1.0)]
    monkeypatch.setattr(drawing, "MAX_EDGES", 9)
    assert drawn_edges(edges, nodes)[3:] == [edge(0, 5, 0.1)]


def test_a_target_whose_effects_are_all_zero_has_edges_without_influence():
    assert drawn_edges([edge(0, 3, 0.0)], [NODES[0], NODES[3]]) == [edge(0, 3, 0.0)]


LABELS = {(0, 7): FeatureLabel("`$x` after `he`, `she`, `it` and many other words", 0.5)}
FEATURE = node(1) | {"layer": 0, "feature": 7, "position": 1}


def test_the_text_of_a_feature_is_its_label_in_short_lines_or_its_number():
    assert node_text(FEATURE, LABELS) == "`\\$x` after\n`he`, `she`,\n`it` and many…"
    assert node_text(FEATURE | {"feature": 8}, LABELS) == "0/8"
    assert node_text(FEATURE, {}) == "0/7"


def test_a_drawing_is_read_from_the_tables_of_a_trace(tmp_path: Path):
    trace = {"trace": "war", "run": "tc", "target": "logits", "tokens": ["<bos>", "a"]}
    rows = [
        FEATURE,
        {"node": 2, "kind": "logit", "is_root": True, "in_graph": True, "token": "b", "position": 1},
    ]
    edges = [{"source": 1, "target": 2, "effect": 0.5}]
    for table, content in ((TRACE, [trace]), (NODE, rows), (EDGE, edges)):
        write_table(table, [{"trace": "war", **row} for row in content], tmp_path / f"{table.name}.parquet")
    graph = GraphDrawing.read(tmp_path, 2, {"tc": LABELS, "other": {}})
    assert (graph.name, graph.run, graph.target, graph.tokens, graph.layers) == (
        "war",
        "tc",
        "logits",
        ["<bos>", "a"],
        2,
    )
    assert graph.labels == LABELS and [row["node"] for row in graph.nodes] == [1, 2]
    (axes,) = graph_figure([graph]).axes
    assert {text.get_text() for text in axes.texts} == {node_text(FEATURE, LABELS), "b"}
    draw_graph(graph, tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes()[:4] == b"\x89PNG"
