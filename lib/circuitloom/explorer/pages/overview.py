"""What the study holds, and where to go from here."""

from itertools import groupby

from dash import dcc, html
from dash.development.base_component import Component

from ...core.formatting import shown
from ..asking import Asking, Row
from ..components import nothing, panel, table
from ..urls import Params, link


def overview(catalogue: Asking, _params: Params) -> Component:
    """The page."""
    return html.Div([_contents(catalogue), _model(catalogue), _studies(catalogue), _claims(catalogue)])


def _contents(catalogue: Asking) -> Component:
    answer = catalogue.ask("contents")
    counts = answer.first
    tiles = [
        ("dictionaries", counts["runs"], "runs of dictionaries"),
        ("features", counts["features"], "features and neurons tabulated"),
        ("sql", counts["activations"], "activations in SQL"),
        ("circuits", counts["traces"], "prompts traced"),
    ]
    made: list[Component] = [
        dcc.Link([html.Strong(shown(int(value))), html.Span(what)], href=link(page), className="tile")
        for page, value, what in tiles
    ]
    if counts["claims"]:
        held = [html.Strong(f"{counts['claims_that_hold']} of {counts['claims']}"), html.Span("claims hold")]
        made.append(html.A(held, href="#claims", className="tile"))
    return panel(f"Study {catalogue.folder.name}", html.Div(made, className="tiles"), answer=answer)


def _model(catalogue: Asking) -> Component | None:
    answer = catalogue.ask("model")
    if not answer.rows:
        return None
    rows = [
        [row["figure"].replace("_", " "), shown(row["value"]), row["unit"], row["meaning"]]
        for row in answer.rows
    ]
    return panel(
        "Language model", table(["figure", "value", "unit", "meaning"], rows, words=(0, 2, 3)), answer=answer
    )


def _studies(catalogue: Asking) -> Component:
    answer = catalogue.ask("traces")
    if not answer.rows:
        return panel("Circuits", nothing("No prompt was traced; name some under circuits.prompts."))
    rows = [
        [
            dcc.Link(row["trace"], href=link("circuits", trace=row["trace"])),
            row["prompt"],
            row["target"],
            shown(row["n_nodes"]),
            shown(row["replacement_score"], 3),
            shown(row["frozen_error"], 2),
            shown(row["free_correlation"], 3),
        ]
        for row in answer.rows
    ]
    head = ["circuit", "prompt", "target", "nodes", "replacement", "frozen error", "free correlation"]
    return panel("Circuits", table(head, rows, words=(0, 1, 2)), answer=answer)


def _claims(catalogue: Asking) -> Component | None:
    answer = catalogue.ask("claims")
    if not answer.rows:
        return None
    parts: list[Component] = []
    for case, group in groupby(answer.rows, key=lambda row: row["case_study"]):
        own = list(group)
        held = sum(row["holds"] for row in own)
        parts.append(
            html.Details(
                [
                    html.Summary(
                        [html.Strong(case.replace("_", " ")), f": {held} of {len(own)} claims hold"]
                    ),
                    table(
                        ["claim", "value", "interval", "asked", "verdict"],
                        [_claim(row) for row in own],
                        (0, 3, 4),
                    ),
                ]
            )
        )
    return panel("Case studies", *parts, answer=answer, id="claims")


def _claim(row: Row) -> list:
    interval = "" if row["low"] is None else f"{shown(row['low'], 3)} to {shown(row['high'], 3)}"
    verdict = html.Span("holds", className="holds") if row["holds"] else html.Span("fails", className="fails")
    asked = f"{row['relation']} {shown(row['bound'], 3)}"
    return [row["statement"], shown(row["value"], 3), interval, asked, verdict]
