"""The page Circuits: graph, effects, paths and interventions of one trace."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from ...attribution.supernodes import saved_groups
from ...catalog.client import CatalogClient, Row
from ...core.feature_labels import FeatureLabel
from ...core.formatting import escape_invisible, format_token, format_value
from ...core.layout import Layout
from .. import plots
from ..circuit_view import CircuitRows, circuit_view, effects_table
from ..components import empty_note, notes_of, panel, select, signed, sql_button, table, to_feature
from ..urls import Params, link

FEATURES = 20
"""Maximum number of features that are listed with their labels."""


def circuits_page(client: CatalogClient, params: Params) -> Component:
    """Returns the page. The URL parameter `trace` chooses the trace."""
    traces = [row["trace"] for row in client.ask("traces").rows]
    if not traces:
        return panel(
            "Circuits",
            empty_note(
                "No prompt was traced; name some under circuits.prompts, or trace one on the page Try."
            ),
        )
    name = params.get("trace", traces[0])
    if name not in traces:
        raise ValueError(f"this study has no circuit {name}; choose from {', '.join(traces)}")
    answer, edges = client.ask("trace", trace=name), client.ask("edges", trace=name)
    circuit = trace_circuit(client, name)
    saved, missing = saved_groups(Layout(client.folder), name, circuit.nodes)
    trace = answer.first
    edit_link = link("try", prompt=trace["prompt"], target=trace["target"], run=trace["run"])
    tokens = [html.Span([format_token(token), html.Sub(i)]) for i, token in enumerate(trace["tokens"])]
    return html.Div(
        [
            panel(
                f"Circuit {name}",
                html.Div(select("trace", traces, name, "circuit"), className="controls"),
                html.P(tokens, className="prompt"),
                *notes_of(trace["notes"]),
                html.P(
                    [
                        "target ", html.Strong(trace["target"]), f", traced through {trace['run']}: ",
                        _scores(trace), " ", dcc.Link("edit its features", href=edit_link),
                    ]
                ),
                *notes_of([f"not in the graph any more, of saved supernodes: {', '.join(missing)}"] if missing else []),
                circuit_view(circuit, {"trace": name}, params, saved, stored=True),
                sql_button(client.ask("graph_nodes", trace=name), "SQL of the nodes"),
                sql_button(edges, "SQL of the edges"),
                answer=answer,
            ),
            _labelled_features(circuit),
            panel(
                "Effects, predicted and measured",
                plots.effects(edges.rows),
                effects_table(circuit),
                answer=edges,
            ),
            html.Div([_paths(client, name), _interventions(client, name)], className="pair"),
            _attention(client, name, trace["tokens"], params),
        ]
    )  # fmt: skip


def trace_circuit(client: CatalogClient, trace: str) -> CircuitRows:
    """Returns the graph of a trace, with the tokens on which each feature fires most."""
    return _circuit(client, trace, client.edition)


@lru_cache(maxsize=8)
def _circuit(client: CatalogClient, trace: str, _edition: Any) -> CircuitRows:
    tokens = client.ask("trace", trace=trace).first["tokens"] or []
    nodes, edges = client.ask("graph_nodes", trace=trace).rows, client.ask("edges", trace=trace).rows
    features = [row for row in nodes if row["kind"] == "feature"]
    places = [(row["layer"], row["feature"]) for row in features]
    words = client.words(features[0]["run"], places) if features else {}
    return CircuitRows(nodes, edges, tokens, words)


def _labelled_features(circuit: CircuitRows) -> Component | None:
    """Returns a table of the most influential features, if features have labels."""
    features = [row for row in circuit.nodes if row["kind"] == "feature"]
    if not any(map(FeatureLabel.of, features)):
        return None
    rows = []
    for row in features[:FEATURES]:
        place, label = (row["layer"], row["feature"]), FeatureLabel.of(row)
        words = ", ".join(map(format_token, circuit.words.get(place, ())))
        cells = [f"{format_token(row['token'])} @{row['position']}", label.text if label else words]
        numbers = [format_value(value, 2) for value in (label.f1 if label else None, row["influence"])]
        rows.append([to_feature(row["run"], *place), *cells, *numbers])
    head = ["feature", "token", "fires on", "F1 of the label", "influence"]
    return panel("Features, the most influential first", table(head, rows, (0, 1, 2)))


def _scores(row: Row) -> str:
    return (
        f"replacement score {format_value(row['replacement_score'], 3)}, "
        f"completeness score {format_value(row['completeness_score'], 3)}; "
        f"relative error of the sums {format_value(row['identity_error'], 2)}, "
        f"of predicted frozen ablations {format_value(row['frozen_error'], 2)}; "
        f"correlation with free ablations {format_value(row['free_correlation'], 3)}."
    )


def _paths(client: CatalogClient, trace: str) -> Component:
    answer = client.ask("paths", trace=trace)
    rows = [[row["path"], signed(row["effect"])] for row in answer.rows]
    part = table(["path", "contribution"], rows, (0,)) if rows else empty_note("No path was found.")
    return panel("Strongest paths", part, answer=answer)


def _attention(client: CatalogClient, trace: str, tokens: Sequence[str], params: Params) -> Component:
    """Returns why heads of the circuit read what they read. The URL parameter `head`, LAYER.HEAD.QUERY.KEY, chooses a
    head edge. Raises ValueError if the circuit has no such edge."""
    title = "Why heads read what they read"
    edges = client.ask("head_edges", trace=trace)
    if not edges.rows:
        return panel(title, empty_note("No head is on a path of this circuit, or no score was attributed."))
    names = [".".join(str(row[part]) for part in ("layer", "head", "query", "key")) for row in edges.rows]
    chosen = params.get("head", names[0])
    if chosen not in names:
        raise ValueError(f"circuit {trace} has no head edge {chosen}; choose from {', '.join(names)}")

    def token(position: int) -> list[Any]:
        return [format_token(tokens[position]), html.Sub(position)]

    rows = []
    for name, row in zip(names, edges.rows, strict=True):
        text = f"{row['layer']}.{row['head']}"
        opened = (
            html.Strong(text)
            if name == chosen
            else dcc.Link(text, href=link("circuits", trace=trace, head=name))
        )
        numbers = [format_value(row[column], 3) for column in ("pattern", "score", "mean_score")]
        rows.append([opened, token(row["query"]), token(row["key"]), *numbers, signed(row["contribution"])])
    head = ["head", "at", "reads", "attention", "score", "mean score", "passes to the root"]
    own = edges.rows[names.index(chosen)]
    place = {part: own[part] for part in ("layer", "head", "query", "key")}
    answer = client.ask("attended", trace=trace, **place)
    where = ["Head ", html.Strong(f"{own['layer']}.{own['head']}"), " at ", *token(own["query"]), " reads "]
    return panel(
        title,
        table(head, rows, (0, 1, 2)),
        html.P([*where, *token(own["key"]), ". Its score is a sum over pairs of sources:"]),
        _pairs([row for row in answer.rows if row["kind"] == "pair"]),
        *(_sources(side, [row for row in answer.rows if row["kind"] == side]) for side in ("query", "key")),
        sql_button(answer, "SQL of the pairs and sources"),
        answer=edges,
    )


def _pairs(rows: Sequence[Row]) -> Component:
    head = ["source of the query", "source of the key", "adds to the score"]
    cells = [[_source(row, "query"), _source(row, "key"), signed(row["effect"])] for row in rows]
    return table(head, cells, (0, 1), "Strongest pairs")


def _source(row: Row, side: str) -> Any:
    """Returns the name of a source of a score, with the label of a feature below it."""
    name = escape_invisible(row[f"{side}_source"])
    text = row[f"{side}_label"]
    if text is None:
        return name
    label = FeatureLabel(escape_invisible(text), row[f"{side}_label_f1"])
    return [name, html.Div(label.scored, className="label")]


def _sources(side: str, rows: Sequence[Row]) -> Component:
    columns = {
        "effect": "adds to the score",
        "relative_effect_plain": "less the mean over keys",
        "effect_frozen": "ablated, frozen",
        "effect_free": "ablated, free",
        "pattern_free": "attention, free",
        "root_free": "target, free",
    }
    cells = [
        [_source(row, side), *(None if row[name] is None else signed(row[name]) for name in columns)]
        for row in rows
    ]
    return table([f"source of the {side}", *columns.values()], cells, (0,), f"Sources of the {side} alone")


def _interventions(client: CatalogClient, trace: str) -> Component:
    answer = client.ask("group_interventions", trace=trace)
    rows = [
        [row["label"], row["n_features"], row["token"], format_value(row["before"], 4),
         format_value(row["after"], 4), "frozen" if row["frozen"] else "free"]
        for row in answer.rows
    ]  # fmt: skip
    head = ["edit", "features", "metric", "before", "after", "rest of the model"]
    part = table(head, rows, (0, 2, 5)) if rows else empty_note("No intervention was measured.")
    return panel("Interventions on several features", part, answer=answer)
