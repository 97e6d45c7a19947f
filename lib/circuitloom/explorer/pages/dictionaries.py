"""The page Dictionaries: a Pareto plot, the metrics of all runs, and the training of one run."""

from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from ...catalog.client import CatalogClient, Row
from ...core.formatting import format_value
from .. import plots
from ..components import empty_note, panel, select, table
from ..urls import Params, integer, link, parse

ALL_LAYERS = -1
"""Value of the column `layer` for metrics measured with all layers replaced at once."""
MEASURES = {
    "ce": "cross-entropy (nats per token)",
    "ce_recovered_zero": "fraction of cross-entropy recovered",
    "fvu": "fraction of variance unexplained",
}


def dictionaries_page(client: CatalogClient, params: Params) -> Component:
    """Returns the page for one layer. If the URL has the parameter `run`, the page shows the training of this run."""
    metrics = client.ask("metrics")
    if not metrics.rows:
        return panel("Dictionaries", empty_note("No dictionary was scored; run `snakemake evaluation`."))
    layers = sorted({row["layer"] for row in metrics.rows})
    layer = integer(params, "layer")
    layer = layer if layer is not None and layer in layers else layers[0]
    measure = params.get("measure", "ce")
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r} in the address must be one of {', '.join(MEASURES)}")
    points = client.ask("pareto", layers=[layer])
    controls = html.Div(
        [
            select("layer", {str(each): _layer_text(each) for each in layers}, str(layer), "layer"),
            select("measure", MEASURES, measure, "against L0"),
        ],
        className="controls",
    )
    plot = plots.pareto(points.rows, measure, MEASURES[measure])
    view = plot if points.rows else empty_note("No run reconstructs the MLP's output at this layer.")
    return html.Div(
        [
            panel("Sparsity against reconstruction", controls, view, answer=points),
            _training(client, params["run"]) if params.get("run") else None,
            panel("All runs", _metrics(metrics.rows, layer), answer=metrics),
        ]
    )


def _layer_text(layer: int) -> str:
    return "all at once" if layer == ALL_LAYERS else str(layer)


def register_dictionaries(app: Dash) -> None:
    """Register the callback for clicks in the Pareto plot. A click opens the features of the clicked run."""

    @app.callback(
        Output("url", "href", allow_duplicate=True),
        Input("pareto", "clickData"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def open_features(click: dict | None, search: str | None):
        if not click or "customdata" not in click["points"][0]:
            return no_update
        layer = parse(search).get("layer")
        one_layer = layer if layer not in (None, "", str(ALL_LAYERS)) else None
        return link("features", run=click["points"][0]["customdata"], layer=one_layer)


def _metrics(rows: list[Row], layer: int) -> Component:
    head = [
        "run",
        "kind",
        "act",
        "F",
        "L0",
        "FVU",
        "median FVU",
        "CE recovered",
        "delta CE",
        "KL",
        "alive",
        "over 1 %",
    ]
    cells = []
    for row in rows:
        if row["layer"] != layer:
            continue
        values = (row[n] for n in ("l0", "fvu", "fvu_median", "ce_recovered_zero", "delta_ce", "kl", "alive"))
        cells.append(
            [
                dcc.Link(row["run"], href=link("dictionaries", run=row["run"], layer=layer)),
                row["kind"],
                row["act"],
                format_value(row["width"]),
                *map(format_value, values),
                format_value(row["density_over_1_percent"]),
            ]
        )
    return table(head, cells, text_columns=(0, 1, 2))


def _training(client: CatalogClient, run: str) -> Component:
    history, densities = client.ask("run_history", run=run), client.ask("run_density", run=run)
    if not history.rows and not densities.rows:
        return panel(run, empty_note(f"There is no run {run}, or its training is not recorded."))
    features = dcc.Link(f"features of {run}", href=link("features", run=run))
    parts: list[Component] = [html.P(features)]
    if history.rows:
        parts.append(plots.curves(history.rows, "fvu", "fraction of variance unexplained"))
    return html.Div(
        [
            panel(f"Training of {run}", *parts, answer=history),
            panel(f"Densities of {run}", plots.densities(densities.rows), answer=densities),
        ],
        className="pair",
    )
