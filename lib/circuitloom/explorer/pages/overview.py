"""The page Overview: contents, language model, circuits and claims of the study."""

from itertools import groupby

from dash import dcc, html
from dash.development.base_component import Component

from ...catalog.client import CatalogClient, Row
from ...core.formatting import format_value
from ..components import empty_note, panel, table
from ..urls import Params, link


def overview_page(client: CatalogClient, _params: Params) -> Component:
    """Returns the page."""
    return html.Div([_contents(client), _model(client), _circuits(client), _claims(client)])


def _contents(client: CatalogClient) -> Component:
    answer = client.ask("contents")
    counts = answer.first
    tiles = [
        ("dictionaries", counts["runs"], "dictionary runs"),
        ("features", counts["features"], "features and neurons tabulated"),
        ("sql", counts["activations"], "activations to query"),
        ("circuits", counts["traces"], "prompts traced"),
    ]
    links: list[Component] = [
        dcc.Link([html.Strong(format_value(int(value))), html.Span(what)], href=link(page), className="tile")
        for page, value, what in tiles
    ]
    if counts["claims"]:
        holding = [
            html.Strong(f"{counts['claims_that_hold']} of {counts['claims']}"),
            html.Span("claims hold"),
        ]
        links.append(html.A(holding, href="#claims", className="tile"))
    return panel(f"Study {client.folder.name}", html.Div(links, className="tiles"), answer=answer)


def _model(client: CatalogClient) -> Component | None:
    answer = client.ask("language_model")
    if not answer.rows:
        return None
    rows = [
        [row["figure"].replace("_", " "), format_value(row["value"]), row["unit"], row["meaning"]]
        for row in answer.rows
    ]
    return panel(
        "Language model",
        table(["figure", "value", "unit", "meaning"], rows, text_columns=(0, 2, 3)),
        answer=answer,
    )


def _circuits(client: CatalogClient) -> Component:
    answer = client.ask("traces")
    if not answer.rows:
        return panel("Circuits", empty_note("No prompt was traced; name some under circuits.prompts."))
    rows = [
        [
            dcc.Link(row["trace"], href=link("circuits", trace=row["trace"])),
            row["prompt"],
            row["target"],
            format_value(row["n_nodes"]),
            format_value(row["replacement_score"], 3),
            format_value(row["frozen_error"], 2),
            format_value(row["free_correlation"], 3),
        ]
        for row in answer.rows
    ]
    head = ["circuit", "prompt", "target", "nodes", "replacement", "frozen error", "free correlation"]
    return panel("Circuits", table(head, rows, text_columns=(0, 1, 2)), answer=answer)


def _claims(client: CatalogClient) -> Component | None:
    answer = client.ask("claims")
    if not answer.rows:
        return None
    parts: list[Component] = []
    for case, group in groupby(answer.rows, key=lambda row: row["case_study"]):
        own = list(group)
        n_holding = sum(row["holds"] for row in own)
        parts.append(
            html.Details(
                [
                    html.Summary(
                        [html.Strong(case.replace("_", " ")), f": {n_holding} of {len(own)} claims hold"]
                    ),
                    table(
                        ["claim", "value", "interval", "condition", "verdict"],
                        [_claim(row) for row in own],
                        (0, 3, 4),
                    ),
                ]
            )
        )
    return panel("Case studies", *parts, answer=answer, id="claims")


def _claim(row: Row) -> list:
    interval = (
        "" if row["low"] is None else f"{format_value(row['low'], 3)} to {format_value(row['high'], 3)}"
    )
    verdict = html.Span("holds", className="holds") if row["holds"] else html.Span("fails", className="fails")
    condition = f"{row['relation']} {format_value(row['bound'], 3)}"
    return [row["statement"], format_value(row["value"], 3), interval, condition, verdict]
