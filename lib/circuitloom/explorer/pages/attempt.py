"""Try a prompt: what fires on each token, what a target is made of, what happens when features change."""

from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from ..asking import Asking
from ..circuit_graph import Circuit
from ..jobs import Job
from ..parts import aria, nothing, panel
from ..tried import changed_view, look_view, token_view, traced_view
from ..urls import Params
from ..workbench import Workbench

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


def traced_circuit(bench: Workbench, source: dict[str, Any]) -> Circuit:
    """The circuit of a trace that was made a moment ago. Raises ValueError where it is no longer kept."""
    job = bench.trace(source["prompt"], source["run"], source["target"], again=False)
    job.finished.wait(WAIT)
    if job.error or not job.done:
        raise ValueError(job.error or "the trace takes too long; try again")
    return job.result.circuit


def register_attempt(app: Dash, catalogue: Asking, bench: Workbench) -> None:
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


def _register_choices(app: Dash, catalogue: Asking, bench: Workbench) -> None:
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


def _outcome(job: Job, show: Any) -> Component:
    if job.error or not job.done:
        return html.P(job.error or "this takes too long; try again", className="error", role="alert")
    return show(job.result)
