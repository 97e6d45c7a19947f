"""What was found about a prompt that was tried: its tokens, what fires on one, changes, the circuit. Try a prompt:
what fires on each token, what a target is made of, what happens when features change."""

from typing import Any

import dash_ag_grid as dag
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from ...core.formatting import shown, token_text
from ..asking import Asking
from ..circuit_view import CircuitRows, circuit_view, effects_table, measured_plot
from ..components import aria, nothing, panel, signed, table
from ..prompt_service import BackgroundJob, EditedPrediction, PromptFeatures, PromptService, TracedPrompt
from ..urls import Params, feature_link

KINDS = ("ablate", "scale", "clamp", "keep")
"""What is done to features."""


def look_view(look: PromptFeatures, names: dict[str, Any]) -> Component:
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


def token_view(catalogue: Asking, look: PromptFeatures, at: int) -> Component:
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


def changed_view(result: EditedPrediction) -> Component:
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


def traced_view(traced: TracedPrompt, names: dict[str, Any]) -> Component:
    """The circuit behind the target, its effects and paths."""
    trace = traced.trace
    source = {name: names[name] for name in ("prompt", "run", "target")}
    said = (
        f"{trace['n_active']} features fire; sums add up to {shown(trace['identity_error'], 2)}, frozen ablations are "
        f"as predicted to {shown(trace['frozen_error'], 2)}; traced in {shown(trace['seconds'], 3)} s"
    )
    paths = [[path, signed(effect)] for path, effect in traced.paths[:12]]
    return html.Div(
        [
            panel(
                f"Circuit behind {trace['target']}",
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


WAIT = 300
"""Seconds that a change may take."""


def attempt(catalogue: Asking, params: Params) -> Component:
    """The page; a prompt in the address is run at once."""
    runs = [row["run"] for row in catalogue.ask("transcoders").rows]
    if not runs:
        return panel("Try a prompt", nothing("There are no transcoders to trace through; train some."))
    run = params.get("run") or runs[0]
    if run not in runs:
        raise ValueError(f"{run} is no run of transcoders; choose from {', '.join(runs)}")
    names = {"prompt": params.get("prompt", ""), "run": run, "target": params.get("target", "")}
    return html.Div(
        [
            panel("Try a prompt", _form(names, runs)),
            dcc.Store("try-names", data=names | {"params": dict(params)}),
            dcc.Store("try-state", data=None),
            dcc.Store("try-address"),
            dcc.Interval("try-tick", interval=250, disabled=not names["prompt"]),
            html.P(id="try-said", className="progress", role="status", **aria(live="polite")),
            html.Div(id="try-look"),
            html.Div(id="try-trace"),
        ]
    )


def _form(names: dict[str, str], runs: list[str]) -> Component:
    fields = [
        ("prompt", "prompt", "field wide", names["prompt"], "a text in the corpus' words"),
        ("target", "target to trace: logits, logit A vs B, feature 1/23, with @5 for a token", "field",
         names["target"], "none: only look"),
    ]  # fmt: skip
    return html.Div(
        [
            *(
                html.Label(
                    [html.Span(label), dcc.Input(value, id={"form": name}, type="text", placeholder=hint, n_submit=0)],
                    className=kind,
                )
                for name, label, kind, value, hint in fields
            ),
            html.Label(
                [html.Span("transcoders"), dcc.Dropdown(runs, names["run"], id={"form": "run"}, clearable=False,
                                                        className="select")],
                className="field",
            ),
            html.Button("Run", id="try-run", n_clicks=0, className="first"),
        ],
        className="controls",
    )  # fmt: skip


def traced_circuit(bench: PromptService, source: dict[str, Any]) -> CircuitRows:
    """The circuit of a trace that was made a moment ago. Raises ValueError where it is no longer kept."""
    job = bench.trace(source["prompt"], source["run"], source["target"], again=False)
    job.finished.wait(WAIT)
    if job.error or not job.done:
        raise ValueError(job.error or "the trace takes too long; try again")
    return job.result.circuit


def register_attempt(app: Dash, catalogue: Asking, bench: PromptService) -> None:
    """Jobs, and what is made of their results."""

    @app.callback(
        Output("try-look", "children"),
        Output("try-trace", "children"),
        Output("try-said", "children"),
        Output("try-tick", "disabled"),
        Output("try-state", "data"),
        Input("try-tick", "n_intervals"),
        State("try-names", "data"),
        State("try-state", "data"),
    )
    def progress(_tick: int | None, names: dict[str, Any], state: list[bool] | None):
        if not names["prompt"]:
            return no_update, no_update, None, True, no_update
        prompt, run, target = names["prompt"], names["run"], names["target"]
        first = state is None
        look = bench.look(prompt, run, first)
        trace = bench.trace(prompt, run, target, first) if target else None
        ready = [look.done, trace is not None and trace.done]
        before = state or [False, False]
        seen = (
            _outcome(look, lambda found: look_view(found, names)) if ready[0] and not before[0] else no_update
        )
        made = no_update
        if trace is not None and ready[1] and not before[1]:
            made = _outcome(trace, lambda found: traced_view(found, names))
        over = ready[0] and (trace is None or ready[1])
        waiting = next((job.said for job in (look, trace) if job is not None and not job.done), None)
        return seen, made, f"{waiting} …" if waiting else None, over, ready

    _register_choices(app, catalogue, bench)
    _register_address(app)


def _register_choices(app: Dash, catalogue: Asking, bench: PromptService) -> None:
    """A token, features of it, and what becomes of the next token when they change."""

    @app.callback(
        Output("try-token", "children"),
        Output("try-at", "data"),
        Input({"token": ALL}, "n_clicks"),
        State("try-names", "data"),
        State("try-at", "data"),
    )
    def token(_clicks: list[int], names: dict[str, Any], at: int):
        if isinstance(ctx.triggered_id, dict):
            at = ctx.triggered_id["token"]
        job = bench.look(names["prompt"], names["run"], again=False)
        return (token_view(catalogue, job.result, at), at) if job.result else (no_update, no_update)

    @app.callback(
        Output("try-features", "value"),
        Input("try-grid", "cellClicked"),
        State("try-features", "value"),
        prevent_initial_call=True,
    )
    def choose(cell: dict[str, Any] | None, chosen: str | None):
        if not cell or cell.get("colId") == "feature":
            return no_update
        listed = [each.strip() for each in (chosen or "").split(",") if each.strip()]
        name = cell["rowId"]
        kept = [each for each in listed if each != name]
        return ", ".join(kept if len(kept) < len(listed) else [*listed, name])

    @app.callback(
        Output("try-changed", "children"),
        Input("try-change", "n_clicks"),
        State("try-names", "data"),
        State("try-at", "data"),
        State("try-features", "value"),
        State("try-kind", "value"),
        State("try-strength", "value"),
    )
    def change(
        clicks: int, names: dict[str, Any], at: int, features: str | None, kind: str, strength: float | None
    ):
        if not clicks:
            return no_update
        listed = [each.strip() for each in (features or "").split(",") if each.strip()]
        wanted = {"kind": kind, "features": listed}
        if kind in ("scale", "clamp"):
            wanted["strength"] = strength
        job = bench.change(names["prompt"], names["run"], at, wanted)
        job.finished.wait(WAIT)
        return _outcome(job, changed_view)


def _register_address(app: Dash) -> None:
    """What is tried is in the address."""
    app.clientside_callback(
        ClientsideFunction("circuitloom", "submitPrompt"),
        Output("url", "href", allow_duplicate=True),
        Input("try-run", "n_clicks"),
        Input({"form": ALL}, "n_submit"),
        State({"form": ALL}, "value"),
        State({"form": ALL}, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("circuitloom", "rememberChange"),
        Output("try-address", "data"),
        Input("try-at", "data"),
        Input("try-change", "n_clicks"),
        State("try-features", "value"),
        State("try-kind", "value"),
        State("try-strength", "value"),
        prevent_initial_call=True,
    )


def _outcome(job: BackgroundJob, show: Any) -> Component:
    if job.error or not job.done:
        return html.P(job.error or "this takes too long; try again", className="error", role="alert")
    return show(job.result)
