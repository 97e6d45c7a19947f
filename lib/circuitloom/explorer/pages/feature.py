"""The page of one feature: statistics, examples, effects, concepts, connections and similar features."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from dash import Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from ...catalog.client import CatalogClient, Row
from ...catalog.queries import named_queries
from ...core.formatting import format_token, format_value
from .. import plots
from ..components import (
    empty_note,
    feature_name,
    fires_on,
    panel,
    shaded,
    signed,
    table,
    to_feature,
    tokens_with_effects,
)
from ..urls import Params, feature_link, integer, link

EXAMPLES = 10
"""Number of top examples shown at first. Further top examples are folded."""
SCORES = {"f1": "F1", "balanced_accuracy": "balanced accuracy", "hard_accuracy": "against similar features",
          "fuzzing": "fuzzing", "output": "output"}  # fmt: skip
"""Maps scores of labels that have intervals to their headings."""


def feature_page(client: CatalogClient, params: Params) -> Component:
    """Returns the page. Callbacks add the slower parts: connections and similar features."""
    run = params.get("run")
    layer, number = integer(params, "layer"), integer(params, "feature")
    if run is None or layer is None or number is None:
        raise ValueError("the address of a feature needs run, layer and feature")
    names = {"run": run, "layer": layer, "feature": number}
    found = client.ask("feature", **names)
    if not found.rows:
        raise ValueError(
            f"{run} has no feature {number} on layer {layer}, or it is not tabulated; look under Features"
        )
    return html.Div(
        [
            _head(names, found.first),
            _labels(client, names),
            html.Div([_facts(found.first, found), _histogram(client, names)], className="pair"),
            _examples(client, names, found.first),
            html.Div([_logits(client, names), _deembedding(client, names)], className="pair"),
            html.Div([_concepts(client, names), _blind(client, names)], className="pair"),
            dcc.Store("feature-names", data=names),
            dcc.Loading(html.Div(id="feature-connections", className="soon"), delay_show=300),
            dcc.Loading(html.Div(id="feature-nearest", className="soon"), delay_show=300),
            html.Div(
                [
                    html.Button("Find similar features in all runs", id="feature-alike", n_clicks=0),
                    dcc.Loading(html.Div(id="feature-alike-found"), delay_show=200),
                ]
            ),
        ]
    )


def register_feature(app: Dash, client: CatalogClient) -> None:
    """Register the callbacks that add the slower parts of the page."""

    @app.callback(Output("feature-connections", "children"), Input("feature-names", "data"))
    def connections(names: dict[str, Any]) -> Component:
        return _connections(client, names)

    @app.callback(Output("feature-nearest", "children"), Input("feature-names", "data"))
    def nearest(names: dict[str, Any]) -> Component:
        return _nearest(client, names)

    @app.callback(
        Output("feature-alike-found", "children"),
        Input("feature-alike", "n_clicks"),
        State("feature-names", "data"),
        prevent_initial_call=True,
    )
    def alike(_clicks: int, names: dict[str, Any]) -> Component:
        answer = client.ask("alike", **names)
        rows = [
            [html.Span([row["run"], " ", to_feature(row["run"], row["layer"], row["feature"])]),
             format_value(row["cosine"], 3), format_value(row["n_both"])]
            for row in answer.rows
        ]  # fmt: skip
        return panel(
            "Similar features in all runs", table(["feature", "cosine", "common tokens"], rows, (0,)),
            answer=answer,
        )  # fmt: skip


def _head(names: dict[str, Any], row: Row) -> Component:
    run, layer, number = names["run"], names["layer"], names["feature"]

    def neighbour(number: int, text: str, key: str) -> Component:
        return dcc.Link(text, href=feature_link(run, layer, number), id=f"feature-{key}", title=key)

    return html.Div(
        [
            html.H1(f"Feature {feature_name(layer, number)}"),
            html.Span(["of ", dcc.Link(run, href=link("features", run=run, layer=layer))]),
            html.Span(
                [neighbour(number - 1, "← previous", "previous")] * (number > 0)
                + [neighbour(number + 1, "next →", "next")],
                className="steps",
            ),
            None if row["alive"] else html.Span("never fires on the held-out tokens", className="fails"),
        ],
        className="title",
    )


def _labels(client: CatalogClient, names: dict[str, Any]) -> Component | None:
    answer = client.ask("labels_of_feature", **names)
    if not answer.rows:
        return None
    rows = [
        [row["label"], row["source"], row["kind"], *(_score(row, name) for name in SCORES),
         format_value(row["precision"], 2), format_value(row["recall"], 2), format_value(row["n_tokens"])]
        for row in answer.rows
    ]  # fmt: skip
    head = ["label", "source", "kind", *SCORES.values(), "precision", "recall", "tokens"]
    note = "Scores with 95 % intervals, on documents from which no label was learned."
    return panel("Labels", table(head, rows, (0, 1, 2)), html.P(note, className="count"), answer=answer)


def _score(row: Row, name: str) -> str:
    value, low, high = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
    interval = "" if low is None or high is None else f" ({format_value(low, 2)} to {format_value(high, 2)})"
    return format_value(value, 2) + interval


def _facts(row: Row, answer: Any) -> Component:
    facts = [
        ("fires on", f"{format_value(row['n_tokens'])} tokens ({format_value(100 * row['density'], 3)} %)"),
        ("largest activation", format_value(row["max_activation"])),
        ("mean nonzero activation", format_value(row["mean_activation"])),
        ("encoder norm", format_value(row["encoder_norm"])),
        ("decoder norm", format_value(row["decoder_norm"])),
        ("encoder bias", format_value(row["bias"])),
    ]
    return panel("Statistics", table(["what", "value"], facts, (0,)), answer=answer)


def _histogram(client: CatalogClient, names: dict[str, Any]) -> Component:
    answer = client.ask("histogram", **names)
    view = plots.histogram(answer.rows) if answer.rows else empty_note("It never fires.")
    return panel("Activations", view, answer=answer)


def _examples(client: CatalogClient, names: dict[str, Any], facts: Row) -> Component:
    answer = client.ask("examples", **names)
    if not answer.rows:
        return panel("Examples", empty_note("It never fires on the held-out tokens."), answer=answer)
    largest, spacing = facts["max_activation"] or 0.0, client.spacing
    parts: list[Component] = []
    for band, group in groupby(answer.rows, key=lambda row: row["band"]):
        own = list(group)
        lines = [_example(row, largest, spacing) for row in own]
        if band == 0:
            parts += [html.Ol(lines[:EXAMPLES], className="examples")]
            if lines[EXAMPLES:]:
                more = html.Ol(lines[EXAMPLES:], className="examples", start=str(EXAMPLES + 1))
                parts.append(html.Details([html.Summary(f"{len(lines) - EXAMPLES} more"), more]))
        else:
            low, high, part = (own[0][name] for name in ("band_low", "band_high", "band_share"))
            percent = format_value(100 * part, 3)
            title = f"{format_value(low, 3)} to {format_value(high, 3)}: {percent} % of its activations"
            parts += [html.H3(title), html.Ol(lines, className="examples")]
    return panel("Examples: the largest activations, then samples per band", *parts, answer=answer)


def _example(row: Row, largest: float, spacing: str) -> Component:
    place = f"sequence {row['sequence']}, position {row['position']}"
    value = html.Span(format_value(row["activation"], 3), className="value", title=place)
    return html.Li([value, shaded(row, largest, spacing)])


def _logits(client: CatalogClient, names: dict[str, Any]) -> Component:
    answer = client.ask("logits", **names)
    if not answer.rows:
        return panel("Logits", empty_note("Not tabulated."), answer=answer)
    both = [
        html.Div([html.H3(title), tokens_with_effects(answer.rows, sign)])
        for sign, title in ((1, "raises"), (-1, "lowers"))
    ]
    return panel("Direct logit effects", html.Div(both, className="pair"), answer=answer)


def _deembedding(client: CatalogClient, names: dict[str, Any]) -> Component:
    answer = client.ask("deembedding", **names)
    if not answer.rows:
        return panel(
            "De-embedding", empty_note("Only the traced run has weight-based analyses."), answer=answer
        )
    parts = []
    for via, group in groupby(answer.rows, key=lambda row: row["via"]):
        own = list(group)
        both = [tokens_with_effects(own, sign) for sign in (1, -1)]
        way = {"direct": "directly", "layer0": "through layer 0's features"}.get(via, f"through {via}")
        parts.append(
            html.Details([html.Summary(way), html.Div(both, className="pair")], open=via == "direct")
        )
    return panel("Tokens whose embeddings activate it", *parts, answer=answer)


def _concepts(client: CatalogClient, names: dict[str, Any]) -> Component | None:
    answer = client.ask("concepts", **names)
    if not answer.rows:
        return None
    rows = [
        [
            dcc.Link(
                row["concept"].replace("_", " "),
                href=link("sql", query=named_queries()["of_concept"].filled(concept=row["concept"])),
            ),
            *(format_value(row[name], 3) for name in ("f1", "precision", "recall", "threshold")),
        ]
        for row in answer.rows
    ]
    head = ["concept", "F1", "precision", "recall", "threshold"]
    return panel("Concepts for which it is among the best features", table(head, rows, (0,)), answer=answer)


def _blind(client: CatalogClient, names: dict[str, Any]) -> Component | None:
    answer = client.ask("blind", **names)
    if not answer.rows:
        return None
    rows = [
        [
            row["protocol"],
            row["place"],
            ", ".join(map(format_token, row["tokens"][:8])),
            format_value(row["f1"], 3),
        ]
        for row in answer.rows
    ]
    return panel(
        "Blind prediction from weights",
        table(["protocol", "place", "tokens", "F1"], rows, (0, 1, 2)),
        answer=answer,
    )


def _connections(client: CatalogClient, names: dict[str, Any]) -> Component:
    both = []
    answers = {
        title: client.ask(name, **names)
        for name, title in (("upstream", "Upstream features"), ("downstream", "Downstream features"))
    }
    rows = [row for answer in answers.values() for row in answer.rows]
    texts = fires_on(client, names["run"], [(row["layer"], row["feature"]) for row in rows])
    for title, answer in answers.items():
        rows = [_connection(names["run"], row, texts) for row in answer.rows]
        head = ["feature", "fires on", "via", "weight", "mean effect", "mean effect when active"]
        part = table(head, rows, (0, 1, 2)) if rows else empty_note("Nothing is tabulated.")
        both.append(panel(title, part, answer=answer))
    return html.Div(both, className="pair")


def _connection(run: str, row: Row, texts: Mapping[tuple[int, int], str]) -> list:
    place = (row["layer"], row["feature"])
    effects = (signed(row[name]) for name in ("weight", "mean_effect", "mean_effect_when_active"))
    return [to_feature(run, *place), texts.get(place, ""), row["via"], *effects]


def _nearest(client: CatalogClient, names: dict[str, Any]) -> Component:
    answer = client.ask("nearest", **names)
    texts = fires_on(client, names["run"], [(row["layer"], row["feature"]) for row in answer.rows])
    rows = [
        [to_feature(names["run"], row["layer"], row["feature"]),
         texts.get((row["layer"], row["feature"]), ""),
         format_value(row["overlap"], 3), format_value(row["n_both"]), format_value(row["lift"], 3)]
        for row in answer.rows
    ]  # fmt: skip
    head = ["feature", "fires on", "overlap", "common tokens", "lift"]
    part = table(head, rows, (0, 1)) if rows else empty_note("No other feature fires on its tokens.")
    return panel("Features that fire on the same tokens", part, answer=answer)
