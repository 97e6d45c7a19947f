"""The view of one circuit: its attribution graph, its supernodes, and a panel about the selected node.

In the browser, graph.js draws and prunes the graph. explorer.js connects graph.js to the components of this module.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, set_props
from dash.development.base_component import Component

from ..attribution.grouped_graph import HELD, graph_flow, summarize
from ..attribution.supernodes import LEAST_COSINE, Groups, parse_groups, save_groups, write_groups
from ..catalog.client import CatalogClient, Row
from ..core.feature_labels import FeatureLabel
from ..core.formatting import escape_invisible, format_token, format_value
from ..core.layout import Layout
from ..report.graph import graph_markup, group_nodes, lay_out, node_text, readable_share
from .components import aria, empty_note, shaded, signed, table, to_feature
from .urls import Params, share

STRONGEST = 8
"""Maximum number of edges listed per node and direction."""
EFFECTS = {"effect": "predicted", "effect_frozen": "frozen", "effect_free": "free"}
"""Maps the columns of an edge's effects to their headings. Measured effects are null in graphs of others."""


@dataclass(frozen=True)
class CircuitRows:
    """Nodes and edges of one trace, as rows of the macros `circuit_nodes` and `circuit_edges`."""

    nodes: Sequence[Row]
    edges: Sequence[Row]
    tokens: Sequence[str] = ()
    """Tokens of the prompt."""
    words: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    """Maps (layer, feature) to the tokens on which the feature fires most."""

    @property
    def texts(self) -> dict[int, str]:
        """Name of each node, with the label of a feature."""
        return {row["node"]: node_text(row) for row in self.nodes}

    def node(self, number: int) -> Row:
        """Returns the row of node `number`. Raises ValueError if the graph has no such node."""
        for row in self.nodes:
            if row["node"] == number:
                return row
        raise ValueError(f"node {number} is not in this graph; choose one from the list")


FindCircuit = Callable[[dict[str, Any]], CircuitRows]
"""Returns the circuit named in the Dash store `circuit-source`: a trace of the study, or a prompt of this session."""


def add_group(groups: Groups, marked: Sequence[int], name: str) -> dict[str, list[int]]:
    """Returns `groups` with the `marked` nodes added to the group `name`, which may be new.

    A negative number marks a supernode. The supernode's members join the group `name`, and the supernode is removed. An
    empty `name` becomes "group 1", "group 2" and so on.
    """
    names = list(groups)
    merged = [names[-1 - number] for number in marked if number < 0]
    kept = {each: list(members) for each, members in groups.items() if each not in merged}
    members = [member for each in merged for member in groups[each]] + [
        number for number in marked if number >= 0
    ]
    default = next(f"group {i}" for i in range(1, len(kept) + 2) if f"group {i}" not in kept)
    name = name.strip() or default
    return kept | {name: [*kept.get(name, []), *members]}


def circuit_view(
    circuit: CircuitRows,
    source: dict[str, Any],
    params: Params,
    default: Groups | None = None,
    stored: bool = False,
) -> Component:
    """Returns the graph of a circuit with its controls. `source` is the argument of `FindCircuit`.

    `default` are the supernodes that are shown if the URL names none. `stored` says whether the circuit is a trace of
    the study, whose supernodes can be saved, and made by the rule.
    """
    shown_share = share(params, "share", min(0.6, readable_share(circuit.nodes)))
    groups = params.get("groups") or write_groups(default or {})
    parsed = parse_groups(groups)
    options = _options(circuit, parsed)
    node = params.get("node")
    dropdown = dcc.Dropdown(
        options, node if node in {option["value"] for option in options} else None, id="circuit-node",
        placeholder="a node: type to find one", className="select", optionHeight=44,
    )  # fmt: skip
    return html.Div(
        [
            dcc.Store("circuit-source", data=source),
            dcc.Store("circuit-groups", data=write_groups(parsed)),
            dcc.Store("circuit-default", data=write_groups(default or {})),
            dcc.Store("circuit-share", data=shown_share),
            dcc.Store("circuit-markup", data=_markup(circuit, source, parsed, shown_share)),
            dcc.Store("circuit-marked", data=[]),
            dcc.Store("circuit-address"),
            html.Div(
                [
                    html.Div(
                        [
                            html.Div(id="circuit-graph"),
                            html.P(grouping_summary(circuit, parsed), id="circuit-summary", className="count"),
                        ],
                        className="drawn",
                    ),
                    html.Div(
                        [
                            html.Label([html.Span("node (click one, or choose here)"), dropdown], className="field"),
                            html.Div(id="circuit-about", **aria(live="polite")),
                        ],
                        className="about",
                    ),
                ],
                className="circuit",
            ),
            _supernode_controls(stored),
        ]
    )  # fmt: skip


def _supernode_controls(stored: bool) -> Component:
    name = dcc.Input("", id="circuit-group-name", type="text", maxLength=40)
    cosine = dcc.Input(LEAST_COSINE, id="circuit-cosine", type="number", min=0, max=1, step=0.05)
    rule = [
        html.Label([html.Span("smallest cosine of activations"), cosine], className="field narrow"),
        html.Button(
            "Group by rule", id="circuit-rule", n_clicks=0,
            title="groups features of one position with equal labels, or similar activations over held-out text",
        ),
        html.Button("Save", id="circuit-save", n_clicks=0, title="saves the supernodes with the trace"),
    ]  # fmt: skip
    return html.Div(
        [
            html.Label([html.Span("name of a supernode"), name], className="field"),
            html.Button("Group marked nodes", id="circuit-group", n_clicks=0),
            html.Button("Ungroup all", id="circuit-ungroup", n_clicks=0),
            html.Div(rule, className="controls inner", hidden=not stored),
            html.Span(
                "Shift+click or Shift+Enter marks a node.",
                id="circuit-saved",
                className="count",
                role="status",
            ),
        ],
        className="controls",
    )


def grouping_summary(circuit: CircuitRows, groups: Groups) -> str | None:
    """Says how supernodes change the size and the scores of a graph. Returns None without supernodes."""
    if not groups:
        return None
    flow = graph_flow(circuit.nodes, circuit.edges)
    before, after = (summarize(flow, circuit.nodes, each) for each in ({}, groups))
    completeness = " instead of ".join(format_value(each.completeness, 3) for each in (after, before))
    return (
        f"Grouped: {after.n_nodes:,} nodes instead of {before.n_nodes:,}, {after.n_edges:,} edges instead of "
        f"{before.n_edges:,}; {100 * HELD:.0f} % of the influence in {after.n_holding:,} nodes instead of "
        f"{before.n_holding:,}. "
        f"Scores of the pruned graph: replacement {format_value(after.replacement, 3)}, unchanged; completeness "
        f"{completeness}."
    )


def register_circuit_view(app: Dash, client: CatalogClient | None, find: FindCircuit) -> None:
    """Register the callbacks that draw the graph, group its nodes, save groups, and fill the panel about a node.

    `client` is None for a graph without a study.
    """

    @app.callback(
        Output("circuit-markup", "data"),
        Output("circuit-node", "options"),
        Output("circuit-node", "value"),
        Output("circuit-summary", "children"),
        Input("circuit-groups", "data"),
        State("circuit-source", "data"),
        State("circuit-share", "data"),
        State("circuit-node", "value"),
        prevent_initial_call=True,
    )
    def draw(groups: str, source: dict[str, Any], shown_share: float, node: str | None):
        circuit, parsed = find(source), parse_groups(groups or "")
        options = _options(circuit, parsed)
        selected = node if node in {option["value"] for option in options} else None
        summary = grouping_summary(circuit, parsed)
        return _markup(circuit, source, parsed, shown_share), options, selected, summary

    @app.callback(
        Output("circuit-groups", "data"),
        Input("circuit-group", "n_clicks"),
        Input("circuit-ungroup", "n_clicks"),
        Input("circuit-rule", "n_clicks"),
        State("circuit-marked", "data"),
        State("circuit-group-name", "value"),
        State("circuit-groups", "data"),
        State("circuit-cosine", "value"),
        State("circuit-source", "data"),
        prevent_initial_call=True,
    )
    def group(
        _group: int, _ungroup: int, _rule: int, marked: list[int] | None, name: str | None, groups: str,
        cosine: float | None, source: dict[str, Any],
    ):  # fmt: skip
        if ctx.triggered_id == "circuit-ungroup":
            return ""
        if ctx.triggered_id == "circuit-rule":
            return write_groups(_by_rule(client, source, cosine))
        if not marked or len(marked) < 2:
            raise ValueError("mark at least two nodes, by Shift+click or Shift+Enter, to group them")
        set_props("callback-error", {"children": None})
        return write_groups(add_group(parse_groups(groups or ""), marked, name or ""))

    @app.callback(
        Output("circuit-saved", "children"),
        Output("circuit-default", "data"),
        Input("circuit-save", "n_clicks"),
        State("circuit-source", "data"),
        State("circuit-groups", "data"),
        prevent_initial_call=True,
    )
    def save(_save: int, source: dict[str, Any], groups: str):
        if client is None or "trace" not in source:
            raise ValueError("only supernodes of a trace of the study can be saved")
        parsed = parse_groups(groups or "")
        file = save_groups(Layout(client.folder), source["trace"], parsed, find(source).nodes)
        note = (
            f"saved {len(parsed)} supernodes in {file}"
            if parsed
            else f"no supernodes are left; removed {file}"
        )
        return note, write_groups(parsed)

    @app.callback(
        Output("circuit-about", "children"),
        Input("circuit-node", "value"),
        State("circuit-source", "data"),
        State("circuit-groups", "data"),
    )
    def about(node: str | None, source: dict[str, Any], groups: str):
        if node is None:
            return None
        circuit, number = find(source), int(node)
        if number < 0:
            return supernode_panel(circuit, parse_groups(groups or ""), number)
        return node_panel(client, circuit, number)

    app.clientside_callback(
        ClientsideFunction("circuitloom", "drawGraph"),
        Output("circuit-marked", "data"),
        Input("circuit-markup", "data"),
        State("circuit-node", "value"),
    )
    app.clientside_callback(
        ClientsideFunction("circuitloom", "rememberCircuit"),
        Output("circuit-address", "data"),
        Input("circuit-share", "data"),
        Input("circuit-groups", "data"),
        Input("circuit-node", "value"),
        Input("circuit-default", "data"),
        prevent_initial_call=True,
    )


def _by_rule(client: CatalogClient | None, source: dict[str, Any], cosine: float | None) -> Groups:
    """Returns the supernodes of a trace by the rule. Raises ValueError if there is none, or no trace of the study."""
    if client is None or "trace" not in source:
        raise ValueError("only features of a trace of the study can be grouped by the rule")
    if cosine is None or not 0 <= cosine <= 1:
        raise ValueError("the smallest cosine must be a number from 0 to 1")
    set_props("callback-error", {"children": None})
    if groups := client.supernodes(source["trace"], cosine):
        return groups
    raise ValueError(
        "no two features of one position have equal labels or activations as similar; lower the cosine"
    )


def _markup(circuit: CircuitRows, source: dict[str, Any], groups: Groups, shown_share: float) -> str:
    name = source.get("trace") or source["target"]
    return graph_markup(
        lay_out(*group_nodes(circuit.nodes, circuit.edges, groups), circuit.tokens), name, shown_share
    )


def _options(circuit: CircuitRows, groups: Groups) -> list[dict[str, str]]:
    supernodes = [
        {"label": f"supernode {escape_invisible(name)}", "value": str(-1 - i)}
        for i, name in enumerate(groups)
    ]
    nodes = [
        {"label": describe(row, circuit.words), "value": str(row["node"])}
        for row in circuit.nodes
        if row["kind"] != "constant"
    ]
    return supernodes + nodes


def describe(row: Row, words: Mapping[tuple[int, int], Sequence[str]]) -> str:
    """Describes a node in one line: with the label of a feature, or without one with tokens on which it fires.

    `words` maps (layer, feature) to these tokens.
    """
    known = words.get((row["layer"], row["feature"]), ()) if row["kind"] == "feature" else ()
    fires_on = (
        f" fires on {', '.join(map(format_token, known))}" if known and not FeatureLabel.of(row) else ""
    )
    return f"{node_text(row)}{fires_on}, influence {format_value(row['influence'], 2)}"


def node_panel(client: CatalogClient | None, circuit: CircuitRows, node: int) -> Component:
    """Returns a panel with a node's values and strongest edges. With a `client`, a feature also has examples."""
    row = circuit.node(node)
    facts = [
        (name, format_value(row[column]))
        for name, column in (
            ("activation", "activation"),
            ("value, the sum of its sources", "value"),
            ("influence on the target", "influence"),
            ("probability", "probability"),
            ("remainder, not explained by edges shown", "remainder"),
        )
        if row[column] is not None
    ]
    parts: list[Any] = [html.H3(node_text(row)), table(["what", "value"], facts, (0,))]
    if client is not None and row["kind"] == "feature":
        parts += _feature_summary(client, row)
    measured = any(edge["effect_frozen"] is not None for edge in circuit.edges)
    effects, texts = EFFECTS if measured else {"effect": "weight"}, circuit.texts
    for end, other, title in (("target_node", "source_node", "from"), ("source_node", "target_node", "to")):
        rows = [
            [texts[edge[other]], *(signed(edge[effect]) for effect in effects)]
            for edge in circuit.edges
            if edge[end] == node
        ]
        parts += _edge_table(title, list(effects.values()), rows)
    return html.Div(parts)


def supernode_panel(circuit: CircuitRows, groups: Groups, number: int) -> Component:
    """Returns a panel with the members and the strongest edges of a supernode."""
    nodes, edges = group_nodes(circuit.nodes, circuit.edges, groups)
    names = list(groups)
    if not -len(names) <= number < 0:
        raise ValueError(f"there is no supernode {number}; choose a node from the list")
    name = names[-1 - number]
    members = [row for row in circuit.nodes if row["node"] in groups[name]]
    rows = [[node_text(row), format_value(row["influence"], 2)] for row in members]
    parts: list[Any] = [html.H3(escape_invisible(name)), table(["member", "influence"], rows, (0,))]
    labels = {row["node"]: node_text(row) for row in nodes}
    for end, other, title in (("target_node", "source_node", "from"), ("source_node", "target_node", "to")):
        own = sorted((edge for edge in edges if edge[end] == number), key=lambda edge: -abs(edge["effect"]))
        found = [[labels[edge[other]], signed(edge["effect"])] for edge in own if edge[other] in labels]
        parts += _edge_table(title, ["predicted"], found)
    return html.Div(parts)


def _edge_table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Component]:
    caption = {"from": "strongest incoming edges", "to": "strongest outgoing edges"}[title]
    return [table([title, *head], rows[:STRONGEST], (0,), caption=caption)] if rows else []


def _feature_summary(client: CatalogClient, row: Row) -> list[Any]:
    names = {"run": row["run"], "layer": row["layer"], "feature": row["feature"]}
    promoted = client.promoted(row["run"], [(row["layer"], row["feature"])])
    found = client.ask("examples", **names).rows[:3]
    largest = max((example["activation"] for example in found), default=0.0)
    examples = [html.Li(shaded(example, largest, client.spacing)) for example in found]
    tokens = ", ".join(map(format_token, next(iter(promoted.values()), [])))
    return [
        html.P(["feature page: ", to_feature(**names)]),
        html.P(f"raises the logits of {tokens}") if tokens else None,
        html.Ol(examples, className="examples") if examples else empty_note("No examples are tabulated."),
    ]


def effects_table(circuit: CircuitRows, n: int = 12) -> Component:
    """Returns a table of predicted and measured effects of the first `n` edges with an ablated source."""
    texts = circuit.texts
    rows = [
        [
            texts[edge["source_node"]],
            texts[edge["target_node"]],
            *(signed(edge[effect]) for effect in EFFECTS),
        ]
        for edge in circuit.edges
        if edge["effect_frozen"] is not None
    ]
    return table(["source", "target", "predicted", "frozen", "free"], rows[:n], (0, 1))
