"""A circuit to look around in: the graph, how much of it is kept, groups, what is known of a node."""

from collections.abc import Callable, Sequence
from typing import Any

import dash_cytoscape as cyto
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from ..wording import shown, token_text, visible
from . import figures
from .asking import Asking, Row
from .circuit_graph import Circuit, Shown, describe, elements, parse_groups, prune, style, write_groups
from .parts import aria, nothing, shaded, signed, table, to_feature
from .urls import Params, share

STRONGEST = 8
"""Edges named of a node, each way."""
Find = Callable[[dict[str, Any]], Circuit]
"""A circuit by what the page says it is: a study of the catalogue, or a trace made a moment ago."""


def circuit_view(circuit: Circuit, source: dict[str, Any], params: Params) -> Component:
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


def _note(circuit: Circuit, part: Shown) -> str:
    note = f"{len(part.nodes)} of {len(circuit.nodes)} nodes, {len(part.edges) + part.left_out} edges"
    if part.left_out:
        note += f", of which the {len(part.edges)} largest beside their target's largest are drawn"
    return note


def about_node(catalogue: Asking, circuit: Circuit, node: int) -> Component:
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
