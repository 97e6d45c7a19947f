"""The circuits of the study's prompts: graph, effects predicted and measured, paths, interventions."""

from functools import lru_cache
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from ...core.formatting import shown, token_text
from ..asking import Asking, Row
from ..circuit_view import CircuitRows, circuit_view, effects_table, measured_plot
from ..components import behind, nothing, panel, select, signed, table
from ..urls import Params, link


def circuits(catalogue: Asking, params: Params) -> Component:
    """The page."""
    traces = [row["trace"] for row in catalogue.ask("traces").rows]
    if not traces:
        return panel(
            "Circuits", nothing("No prompt was traced; name some under circuits.prompts, or try one.")
        )
    name = params.get("trace", traces[0])
    if name not in traces:
        raise ValueError(f"{name} is no circuit of this study; choose from {', '.join(traces)}")
    answer, edges = catalogue.ask("trace", trace=name), catalogue.ask("edges", trace=name)
    circuit = trace_circuit(catalogue, name)
    about = answer.first
    again = link("try", prompt=about["prompt"], target=about["target"], run=about["run"])
    tokens = [html.Span([token_text(token), html.Sub(i)]) for i, token in enumerate(about["tokens"])]
    return html.Div(
        [
            panel(
                f"Circuit {name}",
                html.Div(select("trace", traces, name, "circuit"), className="controls"),
                html.P(tokens, className="prompt"),
                html.P(["explains ", html.Strong(about["target"]), f" through {about['run']}: ", _scores(about), " ",
                        dcc.Link("try it with changes", href=again)]),
                circuit_view(circuit, {"trace": name}, params),
                behind(catalogue.ask("nodes", trace=name), "SQL of the nodes"),
                behind(edges, "SQL of the edges"),
                answer=answer,
            ),
            panel(
                "Effects, predicted and measured",
                measured_plot(edges.rows),
                effects_table(edges.rows),
                answer=edges,
            ),
            html.Div([_paths(catalogue, name), _interventions(catalogue, name)], className="pair"),
        ]
    )  # fmt: skip


def trace_circuit(catalogue: Asking, trace: str) -> CircuitRows:
    """A trace's graph, with what its features fire on."""
    return _circuit(catalogue, trace, catalogue.edition)


@lru_cache(maxsize=8)
def _circuit(catalogue: Asking, trace: str, _edition: Any) -> CircuitRows:
    nodes, edges = catalogue.ask("nodes", trace=trace).rows, catalogue.ask("edges", trace=trace).rows
    features = [row for row in nodes if row["kind"] == "feature"]
    places = [(row["layer"], row["feature"]) for row in features]
    words = catalogue.words(features[0]["run"], places) if features else {}
    return CircuitRows(nodes, edges, words)


def _scores(row: Row) -> str:
    return (
        f"replacement {shown(row['replacement_score'], 3)}, completeness {shown(row['completeness_score'], 3)}; "
        f"sums add up to {shown(row['identity_error'], 2)}, frozen ablations are as predicted to "
        f"{shown(row['frozen_error'], 2)}, free ones correlate by {shown(row['free_correlation'], 3)}."
    )


def _paths(catalogue: Asking, trace: str) -> Component:
    answer = catalogue.ask("paths", trace=trace)
    rows = [[row["path"], signed(row["effect"])] for row in answer.rows]
    part = table(["path", "contribution"], rows, (0,)) if rows else nothing("No path was found.")
    return panel("Strongest paths", part, answer=answer)


def _interventions(catalogue: Asking, trace: str) -> Component:
    answer = catalogue.ask("interventions", trace=trace)
    rows = [
        [row["label"], row["n_features"], row["token"], shown(row["before"], 4),
         shown(row["after"], 4), "all else held" if row["frozen"] else "nothing held"]
        for row in answer.rows
    ]  # fmt: skip
    head = ["change", "features", "of", "before", "after", "how"]
    part = table(head, rows, (0, 2, 5)) if rows else nothing("Nothing was changed.")
    return panel("Features changed together", part, answer=answer)
