"""Draw pruned attribution graphs.

Nodes are placed by position and layer. The width of an edge grows with |effect|, relative to the largest |effect| on
the same target. Of a large graph, only what has the most influence is drawn, and the title says how much that is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..core.plotting import NEGATIVE, POSITIVE, escape_mathtext, styled
from .placement import place_nodes
from .trace_tables import Row, TraceRows

MAX_NODES = 80
"""Largest number of nodes in a drawing. Of a larger graph, the roots and the features and token embeddings with the
most influence are drawn. Errors are left out, because a real model has one per layer and token."""
MAX_EDGES = 150
"""Largest number of edges in a drawing, in addition to the strongest edge from each node."""
MARKERS = {"feature": "o", "error": "D", "embedding": "s", "position": "s", "logit": "^", "difference": "^"}


def draw_graph(rows: TraceRows, path: Path | str) -> None:
    """Draw the pruned graph of a trace and save the figure. The constant node is left out."""
    graph_figure([rows]).savefig(path, dpi=150)


@styled
def graph_figure(rows_of_traces: Sequence[TraceRows]) -> Figure:
    """Returns a figure of several pruned graphs, one below the other. Constant nodes are left out."""
    nodes = [drawn_nodes(rows.nodes()) for rows in rows_of_traces]
    places = [
        place_nodes(own, rows.trace.model.layers) for own, rows in zip(nodes, rows_of_traces, strict=True)
    ]
    width = max(x for own, _ in places for x, _ in own.values()) + 1
    height = sum(1.4 * rows.trace.model.layers + 2.5 for rows in rows_of_traces)
    figure = Figure(figsize=(max(7, 0.9 * width), height), layout="constrained")
    axes = figure.subplots(len(rows_of_traces), squeeze=False)[:, 0]
    for rows, own, (where, centers), panel in zip(rows_of_traces, nodes, places, axes, strict=True):
        _draw_edges(panel, rows.edges(), own, where)
        _draw_nodes(panel, own, where)
        _frame(panel, rows, len(own), centers)
    return figure


def drawn_nodes(nodes: Sequence[Row]) -> list[Row]:
    """Returns the nodes of the pruned graph that are drawn, in the order of `nodes`, which are rows of the table
    `node`."""
    graph = _graph_nodes(nodes)
    if len(graph) <= MAX_NODES:
        return graph
    roots = {row["node"] for row in graph if row["is_root"]}
    ranked = sorted(
        (row for row in graph if row["node"] not in roots and row["kind"] in ("feature", "embedding")),
        key=lambda row: -row["influence"],
    )
    kept = roots | {row["node"] for row in ranked[: max(0, MAX_NODES - len(roots))]}
    return [row for row in graph if row["node"] in kept]


def _graph_nodes(nodes: Sequence[Row]) -> list[Row]:
    return [row for row in nodes if row["in_graph"] and row["kind"] != "constant"]


def drawn_edges(edges: Sequence[Row], nodes: Sequence[Row]) -> list[Row]:
    """Returns the `MAX_EDGES` edges between `nodes` through which the most influence passes, and the strongest edge
    from each node.

    The influence of an edge is that of its target times the share of |effect| among all `edges` to this target. Roots
    have an influence of 1.
    """
    influence = {row["node"]: 1.0 if row["is_root"] else row["influence"] for row in nodes}
    total: dict[int, float] = {}
    for edge in edges:
        total[edge["target"]] = total.get(edge["target"], 0.0) + abs(edge["effect"])

    def passed(edge: Row) -> float:
        effects = total[edge["target"]]
        return influence[edge["target"]] * abs(edge["effect"]) / effects if effects else 0.0

    between = [edge for edge in edges if edge["source"] in influence and edge["target"] in influence]
    ranked = sorted(between, key=passed, reverse=True)
    strongest: dict[int, Row] = {}
    for edge in ranked:
        strongest.setdefault(edge["source"], edge)
    others = [edge for edge in ranked[MAX_EDGES:] if strongest[edge["source"]] is edge]
    return ranked[:MAX_EDGES] + others


def _draw_edges(
    axes: Any, edges: Sequence[Row], nodes: Sequence[Row], places: dict[int, tuple[float, float]]
) -> None:
    edges = drawn_edges(edges, nodes)
    strongest: dict[int, float] = {}
    for edge in edges:
        strongest[edge["target"]] = max(strongest.get(edge["target"], 0.0), abs(edge["effect"]))
    for edge in edges:
        (x0, y0), (x1, y1) = places[edge["source"]], places[edge["target"]]
        size = abs(edge["effect"]) / (strongest[edge["target"]] or 1.0)
        color = POSITIVE if edge["effect"] > 0 else NEGATIVE
        axes.plot([x0, x1], [y0, y1], color=color, linewidth=0.3 + 3 * size, alpha=0.2 + 0.6 * size, zorder=1)


def _draw_nodes(axes: Any, nodes: list[Row], places: dict[int, tuple[float, float]]) -> None:
    for row in nodes:
        x, y = places[row["node"]]
        marker = MARKERS.get("logit" if row["is_root"] else row["kind"], "o")
        face = "black" if row["is_root"] else "lightgrey" if row["kind"] == "error" else "white"
        axes.scatter([x], [y], marker=marker, s=40, c=face, edgecolors="black", linewidths=0.8, zorder=2)
        axes.annotate(_node_text(row), (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=6)


def _node_text(row: Row) -> str:
    if row["kind"] == "feature":
        return f"{row['layer']}/{row['feature']}"
    if row["kind"] in ("logit", "difference"):
        return escape_mathtext(str(row["token"]).strip()) or repr(row["token"])
    return {"error": "error", "position": "position"}.get(row["kind"]) or ""


def _frame(axes: Any, rows: TraceRows, n_drawn: int, centers: dict[int, float]) -> None:
    layers = rows.trace.model.layers
    names = [f"{escape_mathtext(rows.tokens[place])}\n{place}" for place in centers]
    axes.set_xticks(list(centers.values()), names)
    axes.set_yticks(
        range(layers + 2), ["embedding", *(f"layer {layer}" for layer in range(layers)), "logits"]
    )
    axes.set_xlabel("token and its position")
    title = escape_mathtext(f"{rows.name}: {rows.trace.prompt.target}, {rows.trace.run}")
    n_nodes = len(_graph_nodes(rows.nodes()))
    if n_drawn < n_nodes:
        title += f"\nthe {n_drawn} features, tokens and logits with the most influence, of {n_nodes:,} nodes"
    axes.set_title(title, fontsize=9)
    handles = [
        axes.plot([], [], color=color, label=label)[0]
        for color, label in ((POSITIVE, "raises"), (NEGATIVE, "lowers"))
    ]
    axes.legend(handles=handles, loc="upper left", fontsize=7)
    # positions of nodes have no numeric meaning
    axes.grid(False)
