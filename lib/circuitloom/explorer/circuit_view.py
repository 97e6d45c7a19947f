"""A circuit as elements of a graph that is drawn in the browser: pruned further, nodes grouped. A circuit to look
around in: the graph, how much of it is kept, groups, what is known of a node."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dash_cytoscape as cyto
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from ..attribution.drawing import place_nodes
from ..core.formatting import shown, token_text, visible
from ..core.plotting import LOWERS, ORANGE, PURPLE, RAISES
from . import plots as figures
from .asking import Asking, Row
from .components import aria, nothing, shaded, signed, table, to_feature
from .urls import Params, share

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
class CircuitRows:
    """Nodes (rows of `circuit_nodes`) and edges (rows of `circuit_edges`) of one trace."""

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
class PrunedCircuit:
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


def prune(circuit: CircuitRows, share: float, groups: Groups) -> PrunedCircuit:
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
    return PrunedCircuit(nodes, edges[:EDGES], max(0, len(edges) - EDGES))


def elements(circuit: CircuitRows, shown_part: PrunedCircuit, groups: Groups) -> list[dict[str, Any]]:
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


def _places(circuit: CircuitRows) -> dict[int, tuple[float, float]]:
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


def style(circuit: CircuitRows) -> list[dict[str, Any]]:
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


STRONGEST = 8
"""Edges named of a node, each way."""
Find = Callable[[dict[str, Any]], CircuitRows]
"""A circuit by what the page says it is: a trace of the catalogue, or a trace made a moment ago."""


def circuit_view(circuit: CircuitRows, source: dict[str, Any], params: Params) -> Component:
    """The graph with its controls; `source` is what `Find` is asked with."""
    kept, groups = share(params, "share", 0.6), params.get("groups", "")
    node = params.get("node")
    parsed = parse_groups(groups)
    options = [
        {"label": describe(row, circuit.words), "value": str(row["node"])}
        for row in circuit.nodes
        if row["kind"] != "constant"
    ]
    known = {option["value"] for option in options}
    graph = cyto.Cytoscape(
        id="circuit-graph",
        elements=elements(circuit, prune(circuit, kept, parsed), parsed),
        layout={"name": "preset", "fit": True, "padding": 24},
        stylesheet=style(circuit),
        style={"width": "100%", "height": "560px"},
        boxSelectionEnabled=True,
        autoRefreshLayout=False,
        wheelSensitivity=1,
        minZoom=0.15,
        maxZoom=4,
    )
    chosen = dcc.Dropdown(
        options, node if node in known else None, id="circuit-node", placeholder="a node: type to find one",
        className="select", optionHeight=44,
    )  # fmt: skip
    return html.Div(
        [
            dcc.Store("circuit-source", data=source),
            dcc.Store("circuit-groups", data=groups),
            dcc.Store("circuit-address"),
            _controls(kept),
            html.P(_note(circuit, prune(circuit, kept, parsed)), id="circuit-note", className="count",
                   **aria(live="polite")),
            html.Div(
                [
                    html.Div(graph, className="graph"),
                    html.Div(
                        [
                            html.Label([html.Span("node (click one, or choose here)"), chosen], className="field"),
                            html.Div(id="circuit-about"),
                        ],
                        className="about",
                    ),
                ],
                className="circuit",
            ),
            html.P(
                [
                    html.Span("blue", className="raises"), " raises, ", html.Span("vermilion", className="lowers"),
                    " lowers; an edge is as wide as its effect beside its target's largest. "
                    "Circles are features, diamonds errors of transcoders, triangles what is explained.",
                ],
                className="legend",
            ),
        ]
    )  # fmt: skip


def _controls(kept: float) -> Component:
    """How much is kept, and groups."""
    return html.Div(
        [
            html.Label(
                [
                    html.Span("keep the nodes that hold this share of the influence"),
                    dcc.Slider(
                        0, 1, 0.01, value=kept, id="circuit-share", updatemode="drag",
                        marks={0: "0", 0.5: "50 %", 1: "100 %"}, tooltip={"placement": "bottom"},
                    ),
                ],
                className="field wide",
            ),
            html.Label(
                [html.Span("name of a group"), dcc.Input("", id="circuit-group-name", type="text", maxLength=40)],
                className="field",
            ),
            html.Button("Group selected", id="circuit-group", n_clicks=0, title="shift-click or shift-drag selects"),
            html.Button("Ungroup all", id="circuit-ungroup", n_clicks=0),
        ],
        className="controls",
    )  # fmt: skip


def register_circuit_view(app: Dash, catalogue: Asking, find: Find) -> None:
    """Pruning, grouping, and what is known of a node."""

    @app.callback(
        Output("circuit-graph", "elements"),
        Output("circuit-note", "children"),
        Input("circuit-share", "value"),
        Input("circuit-groups", "data"),
        State("circuit-source", "data"),
        prevent_initial_call=True,
    )
    def draw(kept: float, groups: str, source: dict[str, Any]):
        circuit, parsed = find(source), parse_groups(groups or "")
        part = prune(circuit, kept, parsed)
        return elements(circuit, part, parsed), _note(circuit, part)

    @app.callback(
        Output("circuit-groups", "data"),
        Input("circuit-group", "n_clicks"),
        Input("circuit-ungroup", "n_clicks"),
        State("circuit-graph", "selectedNodeData"),
        State("circuit-group-name", "value"),
        State("circuit-groups", "data"),
        prevent_initial_call=True,
    )
    def group(_group: int, _ungroup: int, selected: list[dict] | None, name: str | None, groups: str):
        if ctx.triggered_id == "circuit-ungroup":
            return ""
        members = [node["node"] for node in selected or [] if "node" in node]
        if len(members) < 2:
            return no_update
        parsed = parse_groups(groups or "")
        free = next(f"group {i}" for i in range(1, 99) if f"group {i}" not in parsed)
        wanted = "".join(c for c in (name or "").strip() if c not in ":;,") or free
        parsed[wanted] = [*parsed.get(wanted, []), *members]
        return write_groups(parsed)

    @app.callback(
        Output("circuit-node", "value"), Input("circuit-graph", "tapNodeData"), prevent_initial_call=True
    )
    def tapped(node: dict[str, Any] | None):
        return no_update if not node or "node" not in node else str(node["node"])

    @app.callback(
        Output("circuit-about", "children"), Input("circuit-node", "value"), State("circuit-source", "data")
    )
    def about(node: str | None, source: dict[str, Any]):
        return None if node is None else about_node(catalogue, find(source), int(node))

    app.clientside_callback(
        ClientsideFunction("circuitloom", "rememberCircuit"),
        Output("circuit-address", "data"),
        Input("circuit-share", "value"),
        Input("circuit-groups", "data"),
        Input("circuit-node", "value"),
        prevent_initial_call=True,
    )


def _note(circuit: CircuitRows, part: PrunedCircuit) -> str:
    note = f"{len(part.nodes)} of {len(circuit.nodes)} nodes, {len(part.edges) + part.left_out} edges"
    if part.left_out:
        note += f", of which the {len(part.edges)} largest beside their target's largest are drawn"
    return note


def about_node(catalogue: Asking, circuit: CircuitRows, node: int) -> Component:
    """What is known of a node."""
    row = circuit.node(node)
    facts = [
        (name, shown(row[column]))
        for name, column in (
            ("activation", "activation"),
            ("value, the sum of its sources", "value"),
            ("influence on what is explained", "influence"),
            ("probability", "probability"),
            ("not made up by edges shown", "remainder"),
        )
        if row[column] is not None
    ]
    title = html.H3(visible(row["label"]))
    parts: list[Any] = [title, table(["what", "value"], facts, (0,))]
    if row["kind"] == "feature":
        parts += _about_feature(catalogue, row)
    for column, other, name in (
        ("target_node", "source", "is made of"),
        ("source_node", "target", "acts on"),
    ):
        own = [edge for edge in circuit.edges if edge[column] == node][:STRONGEST]
        if own:
            rows = [
                [edge[other], *(signed(edge[e]) for e in ("effect", "effect_frozen", "effect_free"))]
                for edge in own
            ]
            parts.append(table([name, "predicted", "held", "free"], rows, (0,), caption=f"what it {name}"))
    return html.Div(parts)


def _about_feature(catalogue: Asking, row: Row) -> list[Any]:
    names = {"run": row["run"], "layer": row["layer"], "feature": row["feature"]}
    raises = catalogue.promoted(row["run"], [(row["layer"], row["feature"])])
    found = catalogue.ask("examples", **names).rows[:3]
    largest = max((example["activation"] for example in found), default=0.0)
    examples = [html.Li(shaded(example, largest, catalogue.spacing)) for example in found]
    promoted = ", ".join(map(token_text, next(iter(raises.values()), [])))
    return [
        html.P(["its page: ", to_feature(**names)]),
        html.P(f"raises {promoted}") if promoted else None,
        html.Ol(examples, className="examples") if examples else nothing("Its examples are not tabulated."),
    ]


def effects_table(edges: Sequence[Row], most: int = 12) -> Component:
    """The strongest edges from what can be taken away, predicted and measured."""
    edges = [edge for edge in edges if edge["effect_frozen"] is not None]
    rows = [
        [
            edge["source"],
            edge["target"],
            *(signed(edge[e]) for e in ("effect", "effect_frozen", "effect_free")),
        ]
        for edge in edges[:most]
    ]
    return table(["source", "target", "predicted", "all else held", "nothing held"], rows, (0, 1))


def measured_plot(edges: Sequence[Row]) -> Component:
    """Predicted against measured effects."""
    return figures.measured(edges)
