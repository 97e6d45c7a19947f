"""Draws an attribution graph as an interactive SVG, for the report and the explorer.

`group_nodes` replaces groups of nodes by supernodes. `lay_out` places nodes and edges in pixels. `graph_markup` returns
the graph as HTML. The page also needs templates/graph.js and templates/graph.css.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..attribution.placement import label_lines, place_nodes
from ..attribution.supernodes import Groups
from ..core.feature_labels import FeatureLabel
from ..core.formatting import escape_invisible, format_number, format_token, format_value
from .templates import environment

Row = Mapping[str, Any]
ASSETS = ("graph.js", "graph.css")
"""Names of the files in templates/ that a page with a graph needs."""
EDGES = 1200
"""Maximum number of edges drawn."""
READABLE_NODES = 80
"""Maximum number of nodes that are shown at first, in addition to targets, embeddings and supernodes."""
TOKEN_WIDTH = 76
"""Width of a token's column in pixels."""
LABELLED_WIDTH = 128
"""The same, in graphs with labels. A node has half of it."""
LABEL_LETTERS = 14
"""Maximum length in characters of a line of a label."""
TITLE_MEMBERS = 8
"""Maximum number of members that the title of a supernode lists."""
TOKEN_LETTERS = 14
"""Maximum length in characters of a token below the graph. Longer tokens are cut."""
LEFT_MARGIN = 84
"""Space in pixels for the names of the layers, left of the first token."""
TOP_MARGIN = 44
_SHAPES = {
    "feature": "circle",
    "error": "diamond",
    "embedding": "square",
    "position": "bar",
    "supernode": "capsule",
}


@dataclass(frozen=True)
class PlacedNode:
    """A node and its position in pixels."""

    number: int
    kind: str
    shape: str
    x: float
    y: float
    column: int | None
    """Position in the prompt."""
    row: str
    """Name of the row. Nodes of one column and row are side by side."""
    name: str
    """Text next to the node."""
    lines: tuple[str, ...]
    """`name`, broken into lines."""
    title: str
    """Text that a mouse over the node shows: the label with its score, or the members of a supernode."""
    description: str
    """Text that screen readers speak."""
    is_root: bool
    always_shown: bool
    """Whether the pruning slider never hides the node."""
    cumulative: float
    """Influence of this node and of all more influential nodes, as a fraction of all influence."""


@dataclass(frozen=True)
class PlacedEdge:
    """An edge and the curve that draws it."""

    source: int
    target: int
    curve: str
    """SVG path data of the curve from the source to the target."""
    width: float
    opacity: float
    raises: bool


@dataclass(frozen=True)
class AxisLabel:
    """The name of a token or layer on an axis, with its position in pixels."""

    x: float
    y: float
    text: str
    column: int | None = None
    """Position in the prompt of a token."""


@dataclass(frozen=True)
class GraphLayout:
    """All nodes, edges and labels of a graph. Positions and sizes are in pixels."""

    width: float
    height: float
    nodes: tuple[PlacedNode, ...]
    edges: tuple[PlacedEdge, ...]
    """Edges, weakest first, because SVG draws later elements on top."""
    tokens: tuple[AxisLabel, ...]
    layers: tuple[AxisLabel, ...]
    n_hidden: int
    """Number of edges that are not drawn because of the edge limit."""
    unit: float
    """Width of two nodes in graphs with labels, whose nodes graph.js moves together after pruning. Otherwise 0."""


def group_nodes(nodes: Sequence[Row], edges: Sequence[Row], groups: Groups) -> tuple[list[Row], list[Row]]:
    """Returns the nodes and edges of the graph, with each group replaced by one supernode.

    Group i, counted from 0, becomes supernode number -1 - i. A supernode has the position of its most influential
    member. The influence of a supernode is the sum over its members. Parallel edges are joined, and their effects are
    summed. Edges inside a supernode are dropped. A node in two groups belongs to the later group.
    """
    supernode = {member: -1 - i for i, members in enumerate(groups.values()) for member in members}
    kept = [row for row in nodes if row["node"] not in supernode]
    for i, name in enumerate(groups):
        members = [row for row in nodes if supernode.get(row["node"]) == -1 - i]
        if members:
            kept.append(_supernode(-1 - i, name, members))

    def end(number: int) -> int:
        return supernode.get(number, number)

    joined: dict[tuple[int, int], dict[str, Any]] = {}
    for row in edges:
        source, target = end(row["source_node"]), end(row["target_node"])
        if source != target:
            edge = joined.setdefault(
                (source, target), {"source_node": source, "target_node": target, "effect": 0.0}
            )
            edge["effect"] += row["effect"]
    return kept, list(joined.values())


def _supernode(number: int, name: str, members: Sequence[Row]) -> Row:
    first = max(members, key=lambda row: (row["is_root"], row["influence"] or 0.0))
    return {
        **first,
        "node": number,
        "kind": "supernode",
        "label": name,
        "members": [node_text(row) for row in sorted(members, key=lambda row: -(row["influence"] or 0.0))],
        "feature_label": None,
        # token and position embeddings have no layer; they are drawn one level below layer 0
        "layer": -1 if first["layer"] is None else first["layer"],
        "influence": sum(row["influence"] or 0.0 for row in members),
    }


def lay_out(
    nodes: Sequence[Row], edges: Sequence[Row], tokens: Sequence[str], max_edges: int = EDGES
) -> GraphLayout:
    """Returns the layout of a graph above the `tokens` of its prompt. The constant node is left out.

    `nodes` and `edges` are rows of the macros `circuit_nodes` and `circuit_edges`. Only the `max_edges` strongest edges
    are drawn. Strength is |effect| divided by the largest |effect| on the same target.
    """
    drawn = [row for row in nodes if row["kind"] != "constant"]
    layers = 1 + max((row["layer"] for row in drawn if row["layer"] is not None), default=-1)
    places, centres = place_nodes(drawn, layers)
    labelled = any(len(_lines(row, _name(row))) > 1 or FeatureLabel.of(row) for row in drawn)
    layer_height = 96 if layers <= 4 or labelled else 64
    token_width = LABELLED_WIDTH if labelled else TOKEN_WIDTH
    # logits are drawn one level above the last layer
    top = layers + 1 if any(level > layers + 0.9 for _, level in places.values()) else layers + 0.5
    right = max((x for x, _ in places.values()), default=0.0)

    def pixels(x: float, level: float) -> tuple[float, float]:
        return round(LEFT_MARGIN + token_width * x, 1), round(TOP_MARGIN + layer_height * (top - level), 1)

    where = {node: pixels(*place) for node, place in places.items()}
    drawn_edges, n_hidden = _edges(edges, where, max_edges)
    bottom = pixels(0, -0.62)[1]
    levels = ["tokens", *(f"layer {layer}" for layer in range(layers))] + ["target"] * (top > layers + 0.5)
    return GraphLayout(
        width=round(LEFT_MARGIN + token_width * (max(right, *centres.values(), 0.0) + 0.7), 1),
        height=bottom + 12,
        nodes=tuple(_node(row, *where[row["node"]]) for row in drawn),
        edges=tuple(drawn_edges),
        unit=token_width if labelled else 0.0,
        tokens=tuple(
            AxisLabel(pixels(x, 0)[0], bottom, _shortened(format_token(tokens[position])), position)
            for position, x in centres.items()
            if position is not None and position < len(tokens)
        ),
        layers=tuple(AxisLabel(4, pixels(0, level)[1] + 3, name) for level, name in enumerate(levels)),
        n_hidden=n_hidden,
    )


def readable_share(nodes: Sequence[Row]) -> float:
    """Returns the largest share of the influence, in whole percent, at which pruning shows at most `READABLE_NODES`
    nodes. 1 if the graph has no more. `nodes` are those of `lay_out`."""
    cumulative = sorted(
        _cumulative(row) for row in nodes if row["kind"] != "constant" and not _is_always_shown(row)
    )
    if len(cumulative) <= READABLE_NODES:
        return 1.0
    # the first node that is not shown
    return max(0, math.ceil(100 * cumulative[READABLE_NODES]) - 1) / 100


def _shortened(text: str) -> str:
    return text if len(text) <= TOKEN_LETTERS else text[: TOKEN_LETTERS - 1] + "…"


def graph_markup(graph: GraphLayout, name: str, share: float = 1.0) -> Markup:
    """Returns `graph` as an HTML figure with escaped text. Screen readers call it "attribution graph of NAME".

    `share` is the initial value of the pruning slider. The figure shows the most influential nodes that together have
    this fraction of all influence.
    """
    macros: Any = environment().get_template("graph.html").module
    return macros.draw(graph, name, graph.n_hidden, share)


def _node(row: Row, x: float, y: float) -> PlacedNode:
    is_root = bool(row["is_root"])
    return PlacedNode(
        number=row["node"],
        kind=row["kind"],
        shape="triangle" if is_root and row["kind"] != "supernode" else _SHAPES.get(row["kind"], "circle"),
        x=x,
        y=y,
        column=row["position"],
        row=_row_name(row),
        name=(name := _name(row)),
        lines=tuple(_lines(row, name)),
        title=_title(row),
        description=_description(row),
        is_root=is_root,
        always_shown=_is_always_shown(row),
        cumulative=_cumulative(row),
    )


def _row_name(row: Row) -> str:
    """Returns a name of the row in which `place_nodes` puts a node."""
    if row["is_root"] and row["kind"] != "feature":
        return "target"
    if row["kind"] in ("embedding", "position"):
        return row["kind"]
    return f"{'error' if row['kind'] == 'error' else 'layer'} {row['layer']}"


def _is_always_shown(row: Row) -> bool:
    return bool(row["is_root"]) or row["kind"] in ("embedding", "position", "supernode")


def _cumulative(row: Row) -> float:
    return 1.0 if row["cumulative"] is None else row["cumulative"]


def node_text(row: Row) -> str:
    """Returns the name of a node, with the label of a feature and its F1."""
    label = FeatureLabel.of(row)
    return escape_invisible(row["label"]) + (f" {label.scored}" if label else "")


def _name(row: Row) -> str:
    match row["kind"]:
        case "feature":
            label = FeatureLabel.of(row)
            return label.text if label else f"{row['layer']}/{row['feature']}"
        case "supernode":
            return f"{escape_invisible(row['label'])} ({len(row['members'])})"
    return format_token(row["token"] or "") if row["is_root"] else ""


def _lines(row: Row, name: str) -> list[str]:
    return (
        label_lines(name, LABEL_LETTERS) if row["kind"] in ("feature", "supernode") else [name][: len(name)]
    )


def _title(row: Row) -> str:
    if row["kind"] == "supernode":
        more = len(row["members"]) - TITLE_MEMBERS
        return "\n".join(row["members"][:TITLE_MEMBERS] + [f"and {more} more"] * (more > 0))
    return node_text(row) if FeatureLabel.of(row) else ""


def _description(row: Row) -> str:
    """Returns the text for screen readers, such as "feature 1/17 at caught, position 4; influence 0.2"."""
    influence = f"influence {format_number(row['influence'])}"
    if row["kind"] == "supernode":
        return f"supernode {escape_invisible(row['label'])} of {len(row['members'])} nodes; {influence}"
    kind = f"{row['kind']} {row['layer']}/{row['feature']}" if row["kind"] == "feature" else row["kind"]
    if label := FeatureLabel.of(row):
        kind += f", {label.scored},"
    return (
        f"{kind} at {format_token(row['token'] or '')}, position {format_value(row['position'])}; {influence}"
    )


def _edges(
    edges: Sequence[Row], where: Mapping[int, tuple[float, float]], limit: int
) -> tuple[list[PlacedEdge], int]:
    """Returns the `limit` strongest edges, weakest first, and the number of edges left out.

    `where` maps each drawn node to its position. Edges of other nodes are ignored.
    """
    largest: dict[int, float] = {}
    for row in edges:
        largest[row["target_node"]] = max(largest.get(row["target_node"], 0.0), abs(row["effect"]))

    def strength(row: Row) -> float:
        return abs(row["effect"]) / (largest[row["target_node"]] or 1.0)

    placed = [row for row in edges if row["source_node"] in where and row["target_node"] in where]
    placed.sort(key=lambda row: (-strength(row), row["target_node"], row["source_node"]))
    strongest = placed[:limit]
    return [_edge(row, strength(row), where) for row in reversed(strongest)], len(placed) - len(strongest)


def _edge(row: Row, strength: float, where: Mapping[int, tuple[float, float]]) -> PlacedEdge:
    source, target = row["source_node"], row["target_node"]
    (x0, y0), (x1, y1) = where[source], where[target]
    bend = round((y0 - y1) * 0.45, 1)
    curve = f"M{x0:g} {y0:g}C{x0:g} {y0 - bend:g} {x1:g} {y1 + bend:g} {x1:g} {y1:g}"
    width, opacity = round(0.4 + 2.6 * strength, 2), round(0.15 + 0.55 * strength, 2)
    return PlacedEdge(source, target, curve, width, opacity, row["effect"] > 0)
