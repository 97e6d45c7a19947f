"""What was found about a prompt that was tried: its tokens, what fires on one, changes, the circuit."""

from typing import Any

import dash_ag_grid as dag
from dash import dcc, html
from dash.development.base_component import Component

from ..wording import shown, token_text
from .asking import Asking
from .circuit_view import circuit_view, effects_table, measured_plot
from .parts import nothing, panel, signed, table
from .urls import Params, feature_link
from .workbench import Changed, Look, Traced

KINDS = ("ablate", "scale", "clamp", "keep")
"""What is done to features."""


def look_view(look: Look, names: dict[str, Any]) -> Component:
    """Tokens to choose from, and what may be done to features; `names` say what the address asked for."""
    params = names["params"]
    last = len(look.tokens) - 1
    try:
        at = min(max(int(params.get("at", last)), 0), last)
    except ValueError:
        at = last
    counts = [0] * len(look.tokens)
    for row in look.active:
        counts[row["position"]] += 1
    tokens = [
        html.Button(
            [html.Span(token_text(token)), html.Sub(f"{counts[i]}")],
            id={"token": i},
            n_clicks=0,
            className="token",
            title=f"position {i}: {counts[i]} features fire",
        )
        for i, token in enumerate(look.tokens)
    ]
    fields = [
        ("what", "field", dcc.Dropdown(list(KINDS), params.get("kind", "ablate"), id="try-kind", clearable=False,
                                       searchable=False, className="select")),
        ("times, or to (scale, clamp)", "field", dcc.Input(_strength(params), id="try-strength", type="number")),
        ("features, LAYER/NUMBER or with @POSITION; click rows to add", "field wide",
         dcc.Input(params.get("features", ""), id="try-features", type="text")),
    ]  # fmt: skip
    controls = [html.Label([html.Span(label), control], className=kind) for label, kind, control in fields]
    button = html.Button(
        "Change", id="try-change", n_clicks=int(bool(params.get("features"))), className="first"
    )
    return html.Div(
        [
            dcc.Store("try-at", data=at),
            panel("Tokens, and how many features fire on each", html.Div(tokens, className="buttons")),
            html.Div(id="try-token", className="soon"),
            panel(
                "Change features, nothing else held",
                html.Div([*controls, button], className="controls"),
                dcc.Loading(html.Div(id="try-changed", className="soon"), delay_show=200),
            ),
        ]
    )


def _strength(params: Params) -> float:
    try:
        return float(params.get("strength", 0))
    except ValueError:
        return 0.0


def token_view(catalogue: Asking, look: Look, at: int) -> Component:
    """The features of a token, and what comes next."""
    own = [row for row in look.active if row["position"] == at]
    places = [(row["layer"], row["feature"]) for row in own]
    fires, raises = catalogue.words(look.run, places), catalogue.promoted(look.run, places)
    rows = [
        {
            "feature": f"{row['layer']}/{row['feature']}",
            "href": feature_link(look.run, row["layer"], row["feature"]),
            "name": f"{row['layer']}/{row['feature']}@{at}",
            "activation": row["activation"],
            "fires_on": ", ".join(map(token_text, fires.get(place, ()))),
            "raises": ", ".join(map(token_text, raises.get(place, ()))),
        }
        for row, place in zip(own, places, strict=True)
    ]
    columns = [
        {"field": "feature", "headerName": "feature", "cellRenderer": "FeatureLink", "width": 110},
        {"field": "activation", "headerName": "activation", "width": 120, "type": "rightAligned", "sort": "desc",
         "valueFormatter": {"function": "short(params.value)"}},
        {"field": "fires_on", "headerName": "fires on", "flex": 1},
        {"field": "raises", "headerName": "raises", "flex": 1},
    ]  # fmt: skip
    grid = dag.AgGrid(
        id="try-grid",
        columnDefs=columns,
        rowData=rows,
        getRowId="params.data.name",
        defaultColDef={"sortable": True, "resizable": True},
        dashGridOptions={"rowHeight": 28, "animateRows": False},
        className="ag-theme-alpine grid",
        style={"height": "320px"},
    )
    title = f"{token_text(look.tokens[at])!r} at position {at}"
    following = [[token_text(token), shown(chance, 3)] for token, chance in look.following[at]]
    return html.Div(
        [
            panel(
                f"Features that fire on {title}",
                grid if rows else nothing("None: it is left to the model itself."),
            ),
            panel("Next token", table(["token", "probability"], following, (0,))),
        ],
        className="pair",
    )


def changed_view(result: Changed) -> Component:
    """Next tokens before and after."""
    rows = [
        [token_text(token), shown(before, 3), shown(after, 3), signed(after - before), _bars(before, after)]
        for token, before, after in result.rows
    ]
    head = ["next token", "before", "after", "change", ""]
    said = f"behind position {result.position}; KL(before || after) {shown(result.kl, 3)} nats"
    return html.Div([html.P(said, className="count"), table(head, rows, (0, 4))])


def _bars(before: float, after: float) -> Component:
    bars = [(before, "bar before"), (after, "bar after")]
    return html.Span(
        [html.Span(className=kind, style={"width": f"{10 * value:.2f}em"}) for value, kind in bars],
        className="bars",
    )


def traced_view(traced: Traced, names: dict[str, Any]) -> Component:
    """The circuit behind the target, its effects and paths."""
    study = traced.study
    source = {name: names[name] for name in ("prompt", "run", "target")}
    said = (
        f"{study['n_active']} features fire; sums add up to {shown(study['identity_error'], 2)}, frozen ablations are "
        f"as predicted to {shown(study['frozen_error'], 2)}; traced in {shown(study['seconds'], 3)} s"
    )
    paths = [[path, signed(effect)] for path, effect in traced.paths[:12]]
    return html.Div(
        [
            panel(
                f"Circuit behind {study['target']}",
                html.P(said, className="count"),
                circuit_view(traced.circuit, source, names["params"]),
            ),
            html.Div(
                [
                    panel(
                        "Effects, predicted and measured",
                        measured_plot(traced.circuit.edges),
                        effects_table(traced.circuit.edges),
                    ),
                    panel("Strongest paths", table(["path", "contribution"], paths, (0,))),
                ],
                className="pair",
            ),
        ]
    )
