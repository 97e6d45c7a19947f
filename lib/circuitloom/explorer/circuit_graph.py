"""A circuit as elements of a graph that is drawn in the browser: pruned further, nodes grouped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..circuits.layout import place_nodes
from ..colours import LOWERS, ORANGE, PURPLE, RAISES
from ..wording import shown, token_text, visible
from .asking import Row

EDGES = 400
"""Edges drawn at most, the largest beside their target's largest."""
ACROSS = 84
"""Units between neighbouring tokens."""
SHAPE = 0.62
"""Height of a picture beside its width."""
WINDOW = 900
"""Units that a window shows at about their size; a wider picture has larger letters."""
LETTERS = 14
"""Of a token that a node shows, at most."""
ALWAYS = ("embedding", "logit", "difference")
"""Kinds of nodes that pruning never takes away."""
Groups = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Circuit:
    """Nodes (rows of `circuit_nodes`) and edges (rows of `circuit_edges`) of one study."""

    nodes: Sequence[Row]
    edges: Sequence[Row]
    words: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    """Layer and number of features to what they fire on."""

    def node(self, number: int) -> Row:
        """One node; ValueError where it is not there."""
        for row in self.nodes:
            if row["node"] == number:
                return row
        raise ValueError(f"node {number} is not in this graph")


@dataclass(frozen=True)
class Shown:
    """What is left of a circuit."""

    nodes: list[Row]
    edges: list[Row]
    """Between groups and nodes outside of any; their `effect` is the sum of what it joins."""
    left_out: int
    """Edges between nodes that are shown, beyond those drawn."""


def parse_groups(text: str) -> dict[str, list[int]]:
    """Groups as addresses have them: `name:1,2;other:3,4`. Raises ValueError where it is none such."""
    groups: dict[str, list[int]] = {}
    for part in filter(None, text.split(";")):
        name, _, members = part.rpartition(":")
        try:
            groups[name or "group"] = [int(member) for member in members.split(",")]
        except ValueError:
            raise ValueError(
                f"groups={part!r} in the address are no groups; write name:1,2;other:3"
            ) from None
    return groups


def write_groups(groups: Groups) -> str:
    """Groups for an address."""
    return ";".join(f"{name}:{','.join(map(str, members))}" for name, members in groups.items())


def prune(circuit: Circuit, share: float, groups: Groups) -> Shown:
    """Nodes that together hold `share` of the influence, with the edges between them, members of a group as one.

    Roots, embeddings and what is in a group stay. An edge to or from a group has the sum of its members' effects;
    edges inside a group are left out. Of a target's edges the largest are kept where there are too many.
    """
    grouped = {member: name for name, members in groups.items() for member in members}
    nodes = [
        row
        for row in circuit.nodes
        if row["kind"] != "constant"
        and (row["is_root"] or row["kind"] in ALWAYS or row["node"] in grouped or _within(row, share))
    ]
    kept = {row["node"] for row in nodes}
    joined: dict[tuple[str, str], Row] = {}
    for row in circuit.edges:
        source, target = row["source_node"], row["target_node"]
        if source not in kept or target not in kept:
            continue
        ends = (_end(source, grouped), _end(target, grouped))
        if ends[0] == ends[1]:
            continue
        edge = joined.setdefault(ends, {"source": ends[0], "target": ends[1], "effect": 0.0, "n": 0})
        edge["effect"] += row["effect"]
        edge["n"] += 1
    strongest: dict[str, float] = {}
    for edge in joined.values():
        strongest[edge["target"]] = max(strongest.get(edge["target"], 0.0), abs(edge["effect"]))
    for edge in joined.values():
        edge["size"] = abs(edge["effect"]) / (strongest[edge["target"]] or 1.0)
    edges = sorted(joined.values(), key=lambda edge: -edge["size"])
    return Shown(nodes, edges[:EDGES], max(0, len(edges) - EDGES))


def elements(circuit: Circuit, shown_part: Shown, groups: Groups) -> list[dict[str, Any]]:
    """Nodes and edges as cytoscape takes them, laid out by position and layer."""
    grouped = {member: name for name, members in groups.items() for member in members}
    places = _places(circuit)
    parts: list[dict[str, Any]] = []
    for name, members in groups.items():
        own = [places[member] for member in members if member in places]
        if own:
            x, y = (sum(place[i] for place in own) / len(own) for i in (0, 1))
            data = {"id": f"group {name}", "label": f"{name} ({len(own)})", "kind": "group", "group": name}
            parts.append({"data": data, "position": {"x": x, "y": y}, "classes": "group"})
    for row in shown_part.nodes:
        if row["node"] not in grouped:
            data = {"id": str(row["node"]), "label": _label(row), "kind": _kind(row), "node": row["node"]}
            x, y = places[row["node"]]
            parts.append({"data": data, "position": {"x": x, "y": y}, "classes": data["kind"]})
    for edge in shown_part.edges:
        data = {
            "id": f"{edge['source']} > {edge['target']}",
            "source": edge["source"],
            "target": edge["target"],
            "width": 0.5 + 3.5 * edge["size"],
            "opacity": 0.15 + 0.7 * edge["size"],
            "colour": RAISES if edge["effect"] > 0 else LOWERS,
            "effect": edge["effect"],
        }
        parts.append({"data": data})
    return parts


def describe(row: Row, words: Mapping[tuple[int, int], Sequence[str]]) -> str:
    """A node in a line."""
    known = words.get((row["layer"], row["feature"]), ()) if row["kind"] == "feature" else ()
    about = f" fires on {', '.join(map(token_text, known))}" if known else ""
    return f"{visible(row['label'])}{about}, influence {shown(row['influence'], 2)}"


def _within(row: Row, share: float) -> bool:
    # rounding leaves the last node's share a little above 1
    return row["cumulative"] is not None and row["cumulative"] <= share + 1e-9


def _end(node: int, grouped: Mapping[int, str]) -> str:
    return f"group {grouped[node]}" if node in grouped else str(node)


def _places(circuit: Circuit) -> dict[int, tuple[float, float]]:
    layers = 1 + max((row["layer"] for row in circuit.nodes if row["layer"] is not None), default=0)
    places, _ = place_nodes([row for row in circuit.nodes if row["kind"] != "constant"], layers)
    up = SHAPE * _width(places) / (layers + 1.5)
    return {node: (ACROSS * x, -up * y) for node, (x, y) in places.items()}


def _width(places: Mapping[int, tuple[float, float]]) -> float:
    return max(WINDOW, ACROSS * max((x for x, _ in places.values()), default=0))


def _kind(row: Row) -> str:
    return "root" if row["is_root"] else row["kind"]


def _label(row: Row) -> str:
    if row["kind"] == "feature":
        return f"{row['layer']}/{row['feature']}"
    if row["kind"] == "error":
        return "error"
    if row["kind"] == "position":
        return f"position {row['position']}"
    text = token_text(row["token"]).strip()
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def style(circuit: Circuit) -> list[dict[str, Any]]:
    """How nodes and edges look; letters grow with the width of the picture."""
    places, _ = place_nodes([row for row in circuit.nodes if row["kind"] != "constant"], 1)
    scale = min(2.0, _width(places) / WINDOW)
    letters = {"font-size": 11 * scale, "width": 16 * scale, "height": 16 * scale}
    return [{"selector": "node", "style": letters}, *STYLE]


STYLE: list[dict[str, Any]] = [
    {
        "selector": "node",
        "style": {
            "label": "data(label)", "background-color": "white", "border-width": 1.5, "border-color": "#222",
            "text-valign": "top", "text-margin-y": -3, "text-background-color": "white",
            "text-background-opacity": 0.75, "text-background-padding": "1px",
        },
    },
    {"selector": ".error", "style": {"shape": "diamond", "background-color": "#ccc"}},
    {"selector": ".embedding, .position", "style": {"shape": "round-rectangle", "text-valign": "bottom",
                                                     "text-margin-y": 4, "background-color": "#f2f2f2"}},
    {"selector": ".root", "style": {"shape": "triangle", "background-color": "#222", "font-weight": "bold"}},
    {"selector": ".group", "style": {"shape": "round-rectangle", "background-color": ORANGE,
                                      "font-weight": "bold"}},
    {
        "selector": "edge",
        "style": {"width": "data(width)", "line-color": "data(colour)", "opacity": "data(opacity)",
                  "curve-style": "straight"},
    },
    {"selector": "node:selected", "style": {"border-width": 4, "border-color": PURPLE}},
]  # fmt: skip
