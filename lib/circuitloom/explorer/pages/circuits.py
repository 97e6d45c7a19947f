"""The page Circuits: graph, effects, paths and interventions of one trace."""

from functools import lru_cache
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from ...attribution.supernodes import saved_groups
from ...catalog.client import CatalogClient, Row
from ...core.feature_labels import FeatureLabel
from ...core.formatting import format_token, format_value
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
