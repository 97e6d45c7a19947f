"""Draw pruned attribution graphs.

Nodes are placed by position and layer. The width of an edge grows with |effect|, relative to the largest |effect| on
the same target. Of a large graph, only what has the most influence is drawn, and the title says how much that is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..core.feature_labels import LabelsByFeature
from ..core.plotting import NEGATIVE, POSITIVE, escape_mathtext, styled
from ..core.tables import read_table
from .placement import label_lines, place_nodes

if TYPE_CHECKING:
    from .trace_tables import TraceRows

Row = Mapping[str, Any]

MAX_NODES = 80
"""Largest number of nodes in a drawing. Of a larger graph, the roots and the features and token embeddings with the
most influence are drawn. Errors are left out, because a real model has one per layer and token."""
MAX_EDGES = 150
"""Largest number of edges in a drawing, in addition to the strongest edge from each node."""
UNIT, LABELLED_UNIT = 0.9, 1.4
"""Width in inches of two nodes side by side, in graphs without and with labels."""
LABEL_LETTERS = 15
"""Maximum length in characters of a line of a label."""
MARKERS = {"feature": "o", "error": "D", "embedding": "s", "position": "s", "logit": "^", "difference": "^"}


@dataclass(frozen=True)
class GraphDrawing:
    """What the drawing of a trace shows."""

    name: str
    run: str
    target: str
    tokens: Sequence[str]
    layers: int
    """Number of layers of the model."""
    nodes: Sequence[Row]
    edges: Sequence[Row]
    """Rows of the tables `node` and `edge`."""
    labels: LabelsByFeature = field(default_factory=dict)

    @classmethod
    def of(cls, rows: "TraceRows") -> "GraphDrawing":
        """Returns the drawing of a trace, without labels."""
        trace = rows.trace
        return cls(
            rows.name,
            trace.run,
            trace.prompt.target,
            rows.tokens,
            trace.model.layers,
            rows.nodes(),
            rows.edges(),
        )

    @classmethod
    def read(cls, folder: Path, layers: int, labels: Mapping[str, LabelsByFeature]) -> "GraphDrawing":
        """Returns the drawing of the trace in `folder`. `labels` are those of each run."""
        trace, nodes, edges = (
            read_table(folder / f"{name}.parquet").to_pylist() for name in ("trace", "node", "edge")
        )
        ((name, run, target, tokens),) = (
            (row["trace"], row["run"], row["target"], row["tokens"]) for row in trace
        )
        return cls(name, run, target, tokens, layers, nodes, edges, labels.get(run, {}))

    @classmethod
    def common(
        cls,
        nodes: Sequence[Row],
        edges: Sequence[Row],
        layers: int,
        labels: Mapping[str, LabelsByFeature] | None = None,
    ) -> "GraphDrawing":
        """Returns the drawing of what is common to the prompts of a template. `nodes` and `edges` are the template's
        rows of the tables `aggregate_node` and `aggregate_edge`. Positions are roles. `labels` are those of each
        run."""
        (root,) = (row for row in nodes if row["kind"] == "root")
        run = next((row["run"] for row in nodes if row["run"]), "")
        tokens = [""] * (1 + max(row["role"] for row in nodes))
        for row in nodes:
            tokens[row["role"]] = row["token"]
        own = [
            {
                **row,
                "kind": "difference" if row is root else row["kind"],
                "is_root": row is root,
                "in_graph": True,
                "position": row["role"],
                "token": root["target"].removeprefix("logit ") if row is root else row["token"],
            }
            for row in nodes
            if row["is_common"]
        ]
        kept = {row["node"] for row in own}
        between = [row for row in edges if row["is_common"] and {row["source"], row["target"]} <= kept]
        name = f"common to the graphs of {root['n_prompts']} prompts"
        return cls(name, run, root["target"], tokens, layers, own, between, (labels or {}).get(run, {}))


def draw_graph(graph: GraphDrawing, path: Path | str) -> None:
    """Draw the pruned graph of a trace and save the figure. The constant node is left out."""
    graph_figure([graph]).savefig(path, dpi=150)


@styled
def graph_figure(graphs: Sequence[GraphDrawing]) -> Figure:
    """Returns a figure of several pruned graphs, one below the other. Constant nodes are left out."""
    nodes = [drawn_nodes(graph.nodes) for graph in graphs]
    places = [place_nodes(own, graph.layers) for own, graph in zip(nodes, graphs, strict=True)]
    width = max(x for own, _ in places for x, _ in own.values()) + 1
    height = sum(1.4 * graph.layers + 2.5 for graph in graphs)
    unit = LABELLED_UNIT if any(graph.labels for graph in graphs) else UNIT
    figure = Figure(figsize=(max(7, unit * width), height), layout="constrained")
    axes = figure.subplots(len(graphs), squeeze=False)[:, 0]
    for graph, own, (where, centers), panel in zip(graphs, nodes, places, axes, strict=True):
        _draw_edges(panel, graph.edges, own, where)
        _draw_nodes(panel, own, where, graph.labels)
        _frame(panel, graph, len(own), centers)
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


def _draw_nodes(
    axes: Any, nodes: list[Row], places: dict[int, tuple[float, float]], labels: LabelsByFeature
) -> None:
    for row in nodes:
        x, y = places[row["node"]]
        marker = MARKERS.get("logit" if row["is_root"] else row["kind"], "o")
        face = "black" if row["is_root"] else "lightgrey" if row["kind"] == "error" else "white"
        axes.scatter([x], [y], marker=marker, s=40, c=face, edgecolors="black", linewidths=0.8, zorder=2)
        text = axes.annotate(
            node_text(row, labels), (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=6
        )
        if labels:
            # lines of text would be hard to read on edges
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def node_text(row: Row, labels: LabelsByFeature) -> str:
    """Returns the text next to a node: the label of a feature in short lines, or its number."""
    if row["kind"] == "feature":
        place = (row["layer"], row["feature"])
        if place in labels:
            return "\n".join(map(escape_mathtext, label_lines(labels[place].text, LABEL_LETTERS)))
        return f"{row['layer']}/{row['feature']}"
    if row["kind"] in ("logit", "difference"):
        return escape_mathtext(str(row["token"]).strip()) or repr(row["token"])
    return {"error": "error", "position": "position"}.get(row["kind"]) or ""


def _frame(axes: Any, graph: GraphDrawing, n_drawn: int, centers: dict[int, float]) -> None:
    layers = graph.layers
    names = [f"{escape_mathtext(graph.tokens[place])}\n{place}" for place in centers]
    axes.set_xticks(list(centers.values()), names)
    axes.set_yticks(
        range(layers + 2), ["embedding", *(f"layer {layer}" for layer in range(layers)), "logits"]
    )
    axes.set_xlabel("token and its position")
    title = escape_mathtext(f"{graph.name}: {graph.target}, {graph.run}")
    n_nodes = len(_graph_nodes(graph.nodes))
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
