"""The page Try: runs a prompt, and shows active features, feature edits, steered text and an attribution graph."""

from collections.abc import Callable
from typing import Any

import dash_ag_grid as dag
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from ...catalog.client import CatalogClient
from ...core.formatting import format_token, format_value
from .. import plots
from ..circuit_view import CircuitRows, circuit_view, effects_table
from ..components import aria, empty_note, notes_of, panel, shaded, signed, table
from ..prompt_service import (
    BackgroundJob,
    EditedPrediction,
    GeneratedTexts,
    PromptFeatures,
    PromptService,
    TracedPrompt,
)
from ..urls import Params, feature_link

KINDS = ("ablate", "scale", "clamp", "add", "keep")
"""Kinds of feature edits."""
WITH_STRENGTH = ("scale", "clamp", "add")
"""Kinds that take a number."""
GENERATE = {"positions": "all", "tokens": "40", "temperature": "0", "top_k": "", "seed": "0"}
"""Settings of generated text, with their defaults, as text."""
STRONG = 1.0
"""KL in nats from which a token has the full shade."""
TIMEOUT = 300
"""Maximum time in seconds to wait for a job."""
PATHS = 12
"""Maximum number of paths that are listed."""


def prompt_page(client: CatalogClient, params: Params) -> Component:
    """Returns the page with a form. A prompt in the URL runs at once."""
    runs = [row["run"] for row in client.ask("transcoders").rows]
    if not runs:
        return panel("Try a prompt", empty_note("There are no transcoders to trace through; train some."))
    run = params.get("run") or runs[0]
    if run not in runs:
        raise ValueError(f"there are no transcoders {run}; choose from {', '.join(runs)}")
    names = {"prompt": params.get("prompt", ""), "run": run, "target": params.get("target", "")}
    return html.Div(
        [
            panel("Try a prompt", _form(names, runs)),
            dcc.Store("prompt-names", data=names | {"params": dict(params)}),
            dcc.Store("prompt-shown", data=None),
            dcc.Store("prompt-address"),
            dcc.Store("prompt-defaults", data=GENERATE),
            dcc.Interval("prompt-tick", interval=250, disabled=not names["prompt"]),
            html.P(id="prompt-status", className="progress", role="status", **aria(live="polite")),
            html.Div(id="prompt-view"),
            html.Div(id="prompt-trace"),
        ]
    )


def _form(names: dict[str, str], runs: list[str]) -> Component:
    fields = [
        ("prompt", "prompt", "field wide", names["prompt"], "a text in words of the corpus"),
        ("target", "target to trace: logits, logit A vs B, feature 1/23; @5 at the end for a position", "field",
         names["target"], "none: trace nothing"),
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
            html.Button("Run", id="prompt-run", n_clicks=0, className="first"),
        ],
        className="controls",
    )  # fmt: skip


def features_view(found: PromptFeatures, params: Params) -> Component:
    """Returns the tokens of the prompt as buttons, and the controls of a feature edit."""
    last = len(found.tokens) - 1
    try:
        at = min(max(int(params.get("at", last)), 0), last)
    except ValueError:
        at = last
    counts = [0] * len(found.tokens)
    for row in found.active:
        counts[row["position"]] += 1
    tokens = [
        html.Button(
            [html.Span(format_token(token)), html.Sub(f"{counts[i]}")],
            id={"token": i},
            n_clicks=0,
            className="token",
            title=f"position {i}: {counts[i]} active features",
        )
        for i, token in enumerate(found.tokens)
    ]
    fields = [
        ("edit", "field", dcc.Dropdown(list(KINDS), params.get("kind", "ablate"), id="prompt-kind", clearable=False,
                                       searchable=False, className="select")),
        ("factor of scale, value of clamp or add", "field",
         dcc.Input(_strength(params), id="prompt-strength", type="number")),
        ("features, LAYER/NUMBER or LAYER/NUMBER@POSITION; click rows to add", "field wide",
         dcc.Input(params.get("features", ""), id="prompt-features", type="text")),
    ]  # fmt: skip
    controls = [html.Label([html.Span(label), control], className=kind) for label, kind, control in fields]
    button = html.Button(
        "Edit", id="prompt-edit", n_clicks=int(bool(params.get("features"))), className="first"
    )
    return html.Div(
        [
            dcc.Store("prompt-position", data=at),
            panel(
                "Tokens, with the number of active features",
                html.Div(tokens, className="buttons"),
                *notes_of(found.notes),
            ),
            html.Div(id="prompt-token", className="soon"),
            panel(
                "Edit features, with nothing frozen",
                html.Div([*controls, button], className="controls"),
                dcc.Loading(html.Div(id="prompt-edited", className="soon"), delay_show=200),
            ),
            _generate_panel(params),
        ]
    )


def _generate_panel(params: Params) -> Component:
    """Returns the controls of text that is generated while features are edited, and a place for the text."""
    edits = params.get("edits", "")
    names = {
        "positions": "positions: all, prompt, generated or 3,4",
        "tokens": "tokens",
        "temperature": "temperature; 0: most likely token",
        "top_k": "top-k",
        "seed": "seed",
    }
    fields = [
        html.Label(
            [html.Span("edits, such as set 2/887=30; ablate 1/12@4"),
             dcc.Input(edits, id="generate-edits", type="text")],
            className="field wide",
        ),
        *(
            html.Label(
                [html.Span(text), dcc.Input(params.get(name, GENERATE[name]), id={"generate": name}, type="text")],
                className="field",
            )
            for name, text in names.items()
        ),
    ]  # fmt: skip
    buttons = [
        html.Button("Add the edit above", id="generate-add", n_clicks=0),
        html.Button("Generate", id="generate-run", n_clicks=int(bool(edits)), className="first"),
    ]
    return panel(
        "Generate text while features are edited",
        html.Div([*fields, *buttons], className="controls"),
        dcc.Loading(html.Div(id="generate-texts", className="soon"), delay_show=200),
    )


def _strength(params: Params) -> float:
    try:
        return float(params.get("strength", 0))
    except ValueError:
        return 0.0


def token_view(client: CatalogClient, found: PromptFeatures, at: int) -> Component:
    """Returns the active features and the most likely next tokens at position `at`."""
    own = [row for row in found.active if row["position"] == at]
    places = [(row["layer"], row["feature"]) for row in own]
    fires, raises = client.words(found.run, places), client.promoted(found.run, places)
    labels = client.labels(found.run, places)
    rows = [
        {
            "feature": f"{row['layer']}/{row['feature']}",
            "href": feature_link(found.run, row["layer"], row["feature"]),
            "name": f"{row['layer']}/{row['feature']}@{at}",
            "activation": row["activation"],
            "label": labels[place].scored if place in labels else None,
            "fires_on": ", ".join(map(format_token, fires.get(place, ()))),
            "raises": ", ".join(map(format_token, raises.get(place, ()))),
        }
        for row, place in zip(own, places, strict=True)
    ]
    columns = [
        {"field": "feature", "headerName": "feature", "cellRenderer": "FeatureLink", "width": 110},
        {"field": "activation", "headerName": "activation", "width": 120, "type": "rightAligned",
         "valueFormatter": {"function": "short(params.value)"}},
        *([{"field": "label", "headerName": "label", "flex": 2, "tooltipField": "label"}] if labels else []),
        {"field": "fires_on", "headerName": "fires on", "flex": 1},
        {"field": "raises", "headerName": "raises", "flex": 1},
    ]  # fmt: skip
    grid = dag.AgGrid(
        id="prompt-grid",
        columnDefs=columns,
        rowData=rows,
        getRowId="params.data.name",
        defaultColDef={"sortable": True, "resizable": True},
        dashGridOptions={"rowHeight": 28, "animateRows": False},
        className="ag-theme-alpine grid",
        style={"height": "320px"},
    )
    title = f"{format_token(found.tokens[at])!r} at position {at}"
    next_tokens = [[format_token(token), format_value(p, 3)] for token, p in found.next_tokens[at]]
    return html.Div(
        [
            panel(
                f"Features active at {title}",
                grid if rows else empty_note("None: the transcoders do not replace the MLPs here."),
            ),
            panel("Next token", table(["token", "probability"], next_tokens, (0,))),
        ],
        className="pair",
    )


def edited_view(result: EditedPrediction) -> Component:
    """Returns a table of the next-token probabilities before and after a feature edit."""
    rows = [
        [
            format_token(token),
            format_value(before, 3),
            format_value(after, 3),
            signed(after - before),
            _bars(before, after),
        ]
        for token, before, after in result.rows
    ]
    head = ["next token", "before", "after", "difference", ""]
    summary = f"at position {result.position}; KL(before || after) {format_value(result.kl, 3)} nats"
    return html.Div([html.P(summary, className="count"), table(head, rows, (0, 4))])


def generated_view(result: GeneratedTexts) -> Component:
    """Returns the steered text, shaded by KL, next to the untouched one."""
    prompt = html.Span(result.prompt + result.spacing, className="given")
    silent = [0.0] * len(result.untouched)
    steered, untouched = (
        shaded({"tokens": tokens, "activations": kl, "place": None}, STRONG, result.spacing)
        for tokens, kl in ((result.steered, result.kl), (result.untouched, silent))
    )
    largest = max(range(len(result.kl)), key=result.kl.__getitem__)
    summary = (
        "KL(steered || untouched) per token, both after the same text: mean "
        f"{format_value(sum(result.kl) / len(result.kl), 3)} nats, largest {format_value(result.kl[largest], 3)} at "
        f"{format_token(result.steered[largest])!r}. The shade of a token is its KL, full from {STRONG:g} nat."
    )
    return html.Div(
        [
            *notes_of(result.notes),
            html.Div(
                [
                    html.Div([html.H3("steered"), html.P([prompt, steered], className="text")]),
                    html.Div([html.H3("untouched"), html.P([prompt, untouched], className="text")]),
                ],
                className="pair",
            ),
            html.P(summary, className="count"),
        ]
    )


def read_settings(values: dict[str, str | None]) -> dict[str, Any]:
    """Returns the settings of generated text from the text of their fields. Raises ValueError if one is no number."""
    kinds: dict[str, type] = {"tokens": int, "temperature": float, "top_k": int, "seed": int}
    read: dict[str, Any] = {"positions": (values["positions"] or GENERATE["positions"]).replace(" ", "")}
    for name, kind in kinds.items():
        text = (values[name] or GENERATE[name]).strip()
        try:
            read[name] = kind(text) if text else None
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name.replace('_', '-')} {text!r}: {wanted} is needed") from None
    return read


def _bars(before: float, after: float) -> Component:
    bars = [(before, "bar before"), (after, "bar after")]
    return html.Span(
        [html.Span(className=kind, style={"width": f"{10 * value:.2f}em"}) for value, kind in bars],
        className="bars",
    )


def traced_view(traced: TracedPrompt, names: dict[str, Any]) -> Component:
    """Returns the circuit, the effects and the paths of a traced prompt."""
    trace = traced.trace
    source = {name: names[name] for name in ("prompt", "run", "target")}
    summary = (
        f"{trace['n_active']} active features; relative error of the sums {format_value(trace['identity_error'], 2)}, "
        f"of predicted frozen ablations {format_value(trace['frozen_error'], 2)}; "
        f"traced in {format_value(trace['seconds'], 3)} s"
    )
    paths = [[path, signed(effect)] for path, effect in traced.paths[:PATHS]]
    return html.Div(
        [
            panel(
                f"Circuit of {trace['target']}",
                html.P(summary, className="count"),
                *notes_of(trace["notes"]),
                circuit_view(traced.circuit, source, names["params"]),
            ),
            html.Div(
                [
                    panel(
                        "Effects, predicted and measured",
                        plots.effects(traced.circuit.edges),
                        effects_table(traced.circuit),
                    ),
                    panel("Strongest paths", table(["path", "contribution"], paths, (0,))),
                ],
                className="pair",
            ),
        ]
    )


def traced_circuit(service: PromptService, source: dict[str, Any]) -> CircuitRows:
    """Returns the circuit of a prompt of this session. Waits until tracing is done.

    Raises ValueError if tracing failed or takes too long.
    """
    job = service.trace(source["prompt"], source["run"], source["target"], retry=False)
    job.finished.wait(TIMEOUT)
    if job.error or not job.done:
        raise ValueError(job.error or "tracing takes too long; try again")
    return job.result.circuit


def register_prompt(app: Dash, client: CatalogClient, service: PromptService) -> None:
    """Register the callbacks that start jobs and show results."""

    @app.callback(
        Output("prompt-view", "children"),
        Output("prompt-trace", "children"),
        Output("prompt-status", "children"),
        Output("prompt-tick", "disabled"),
        Output("prompt-shown", "data"),
        Input("prompt-tick", "n_intervals"),
        State("prompt-names", "data"),
        State("prompt-shown", "data"),
    )
    def poll(_tick: int | None, names: dict[str, Any], shown: list[bool] | None):
        if not names["prompt"]:
            return no_update, no_update, None, True, no_update
        prompt, run, target = names["prompt"], names["run"], names["target"]
        first = shown is None
        features = service.features(prompt, run, first)
        trace = service.trace(prompt, run, target, first) if target else None
        ready = [features.done, trace is not None and trace.done]
        before = shown or [False, False]
        view = trace_part = no_update
        if ready[0] and not before[0]:
            view = _outcome(features, lambda found: features_view(found, names["params"]))
        if trace is not None and ready[1] and not before[1]:
            trace_part = _outcome(trace, lambda found: traced_view(found, names))
        all_done = ready[0] and (trace is None or ready[1])
        status = next((job.status for job in (features, trace) if job is not None and not job.done), None)
        return view, trace_part, f"{status} …" if status else None, all_done, ready

    _register_edits(app, client, service)
    _register_generation(app, service)
    _register_address(app)


def _register_edits(app: Dash, client: CatalogClient, service: PromptService) -> None:
    """Register the callbacks that show the selected token, choose features in the grid, and run the edit."""

    @app.callback(
        Output("prompt-token", "children"),
        Output("prompt-position", "data"),
        Input({"token": ALL}, "n_clicks"),
        State("prompt-names", "data"),
        State("prompt-position", "data"),
    )
    def token(_clicks: list[int], names: dict[str, Any], at: int):
        if isinstance(ctx.triggered_id, dict):
            at = ctx.triggered_id["token"]
        job = service.features(names["prompt"], names["run"], retry=False)
        return (token_view(client, job.result, at), at) if job.result else (no_update, no_update)

    @app.callback(
        Output("prompt-features", "value"),
        Input("prompt-grid", "cellClicked"),
        State("prompt-features", "value"),
        prevent_initial_call=True,
    )
    def toggle(cell: dict[str, Any] | None, features: str | None):
        if not cell or cell.get("colId") == "feature":
            return no_update
        listed, name = _listed(features), cell["rowId"]
        return ", ".join([each for each in listed if each != name] if name in listed else [*listed, name])

    @app.callback(
        Output("prompt-edited", "children"),
        Input("prompt-edit", "n_clicks"),
        State("prompt-names", "data"),
        State("prompt-position", "data"),
        State("prompt-features", "value"),
        State("prompt-kind", "value"),
        State("prompt-strength", "value"),
    )
    def edit(
        clicks: int, names: dict[str, Any], at: int, features: str | None, kind: str, strength: float | None
    ):
        if not clicks:
            return no_update
        change: dict[str, Any] = {"kind": kind, "features": _listed(features)}
        if kind in WITH_STRENGTH:
            change["strength"] = strength
        job = service.edit(names["prompt"], names["run"], at, change)
        job.finished.wait(TIMEOUT)
        return _outcome(job, edited_view)


def _register_generation(app: Dash, service: PromptService) -> None:
    """Register the callbacks that collect edits and generate text."""

    @app.callback(
        Output("generate-edits", "value"),
        Input("generate-add", "n_clicks"),
        State("generate-edits", "value"),
        State("prompt-features", "value"),
        State("prompt-kind", "value"),
        State("prompt-strength", "value"),
        prevent_initial_call=True,
    )
    def add(_clicks: int, edits: str | None, features: str | None, kind: str, strength: float | None):
        value = f"={0 if strength is None else strength:g}" if kind in WITH_STRENGTH else ""
        known = [each.strip() for each in (edits or "").split(";") if each.strip()]
        chosen = ",".join(_listed(features))
        return "; ".join([*known, f"{kind} {chosen}{value}"] if chosen else known)

    @app.callback(
        Output("generate-texts", "children"),
        Input("generate-run", "n_clicks"),
        State("prompt-names", "data"),
        State("generate-edits", "value"),
        State({"generate": ALL}, "value"),
        State({"generate": ALL}, "id"),
    )
    def generate(
        clicks: int, names: dict[str, Any], edits: str | None, values: list[str], ids: list[dict[str, str]]
    ):
        if not clicks:
            return no_update
        try:
            settings = read_settings({key["generate"]: value for key, value in zip(ids, values, strict=True)})
        except ValueError as error:
            return html.P(str(error), className="error", role="alert")
        job = service.generate(names["prompt"], names["run"], edits or "", settings)
        job.finished.wait(TIMEOUT)
        return _outcome(job, generated_view)


def _listed(features: str | None) -> list[str]:
    return [each.strip() for each in (features or "").split(",") if each.strip()]


def _register_address(app: Dash) -> None:
    """Register the callbacks that keep the prompt and the edit in the URL."""
    app.clientside_callback(
        ClientsideFunction("circuitloom", "submitPrompt"),
        Output("url", "href", allow_duplicate=True),
        Input("prompt-run", "n_clicks"),
        Input({"form": ALL}, "n_submit"),
        State({"form": ALL}, "value"),
        State({"form": ALL}, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("circuitloom", "rememberEdit"),
        Output("prompt-address", "data"),
        Input("prompt-position", "data"),
        Input("prompt-edit", "n_clicks"),
        State("prompt-features", "value"),
        State("prompt-kind", "value"),
        State("prompt-strength", "value"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("circuitloom", "rememberGeneration"),
        Output("prompt-address", "data", allow_duplicate=True),
        Input("generate-run", "n_clicks"),
        State("generate-edits", "value"),
        State({"generate": ALL}, "value"),
        State({"generate": ALL}, "id"),
        State("prompt-defaults", "data"),
        prevent_initial_call=True,
    )


def _outcome(job: BackgroundJob, view: Callable[[Any], Component]) -> Component:
    """Returns `view(result)`, or an error message if the job failed or takes too long."""
    if job.error or not job.done:
        return html.P(job.error or "this takes too long; try again", className="error", role="alert")
    return view(job.result)
