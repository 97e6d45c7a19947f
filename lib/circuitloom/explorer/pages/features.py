"""The page Features: a grid of the features of one run and layer.

Each request of the grid becomes one SQL query, which filters, sorts and searches the features.
"""

import json
from collections.abc import Mapping
from typing import Any

import dash_ag_grid as dag
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from ...catalog.client import Answer, CatalogClient, Row
from ...catalog.queries import named_queries, quoted
from ...core.formatting import escape_invisible, format_token, format_value
from ..components import aria, choice, empty_note, panel, select, sql_button, table, to_feature
from ..urls import Params, feature_link, integer

COLUMNS = {
    "feature": "number",
    "label": "text",
    "label_f1": "number",
    "density": "number",
    "n_tokens": "number",
    "max_activation": "number",
    "mean_activation": "number",
    "encoder_norm": "number",
    "bias": "number",
    "concept": "text",
    "f1": "number",
    "match": "number",
}
"""Type of each column that can be filtered and sorted."""
SEARCHES = {"fires on": "firing_on", "raises": "raising", "label": "labelled"}
"""Maps each kind of search to its named query."""
ROWS = 50
"""Number of rows that the grid requests at a time."""
FOUND = 20
"""Maximum number of features of other layers and runs that a search for a label lists."""
_OF_LABELS = ("label", "label_f1")
"""Columns that only runs with labels have."""
_HEADS = {
    "feature": "feature",
    "label": "label",
    "label_f1": "F1 of the label",
    "fires_on": "fires on",
    "raises": "raises",
    "density": "density",
    "n_tokens": "tokens",
    "max_activation": "maximum",
    "mean_activation": "mean",
    "concept": "best concept",
    "f1": "F1",
    "encoder_norm": "encoder norm",
    "bias": "bias",
}
_COMPARISONS = {
    "equals": "=",
    "notEqual": "<>",
    "lessThan": "<",
    "lessThanOrEqual": "<=",
    "greaterThan": ">",
    "greaterThanOrEqual": ">=",
}
_TEXT_MATCHES = {
    "contains": "contains(lower({column}), lower({value}))",
    "notContains": "NOT contains(lower({column}), lower({value}))",
    "startsWith": "starts_with(lower({column}), lower({value}))",
    "endsWith": "ends_with(lower({column}), lower({value}))",
    "equals": "lower({column}) = lower({value})",
    "notEqual": "lower({column}) <> lower({value})",
}


def rows_sql(run: str, layer: int, search: str, by: str, request: Mapping[str, Any]) -> str:
    """Returns the SQL query for the rows that the grid requests.

    `request` contains the grid's filterModel, sortModel, startRow and endRow. `search` is the text to search for. `by`
    is a key of `SEARCHES`. The query's column `n_matching` is the number of all matching rows. Raises ValueError if a
    column or filter is unknown.
    """
    names = {"run": run, "layer": layer, "pattern": search}
    tables = f"(\n{_indented(named_queries()['features'].filled(**names))}\n)"
    if search:
        if by not in SEARCHES:
            raise ValueError(f"by={by!r} in the address must be one of {', '.join(SEARCHES)}")
        tables += f"\nJOIN (\n{_indented(named_queries()[SEARCHES[by]].filled(**names))}\n) USING (feature)"
    conditions = [_condition(name, model) for name, model in (request.get("filterModel") or {}).items()]
    where = f"\nWHERE {' AND '.join(conditions)}" if conditions else ""
    start, end = int(request.get("startRow") or 0), int(request.get("endRow") or 100)
    order = [_order(part) for part in request.get("sortModel") or []]
    default = ["match DESC"] if search else []
    return (
        f"SELECT *, count(*) OVER () AS n_matching\nFROM {tables}{where}\n"
        f"ORDER BY {', '.join([*(order or default), 'feature'])}\nLIMIT {end - start} OFFSET {start}"
    )


def fetch_rows(client: CatalogClient, run: str, layer: int, sql: str) -> tuple[Answer, list[Row]]:
    """Run a query of `rows_sql`. Returns the answer, and the rows with two more columns.

    `fires_on` lists the tokens on which a feature fires most. `raises` lists the tokens whose logits a feature raises
    most.
    """
    answer = client.run(sql)
    places = [(layer, row["feature"]) for row in answer.rows]
    fires, raises = client.words(run, places), client.promoted(run, places)
    rows = [
        {
            **row,
            "label": None if row["label"] is None else escape_invisible(row["label"]),
            "fires_on": ", ".join(map(format_token, fires.get(place, ()))),
            "raises": ", ".join(map(format_token, raises.get(place, ()))),
        }
        for row, place in zip(answer.rows, places, strict=True)
    ]
    return answer, rows


def _condition(column: str, model: Mapping[str, Any]) -> str:
    kind = COLUMNS.get(column)
    if kind is None:
        raise ValueError(f"{column!r} cannot be filtered; choose from {', '.join(COLUMNS)}")
    if "conditions" in model:
        operator = "OR" if model.get("operator") == "OR" else "AND"
        return "(" + f" {operator} ".join(_condition(column, part) for part in model["conditions"]) + ")"
    how = model.get("type")
    if how in ("blank", "notBlank"):
        return f"{column} IS {'NOT ' if how == 'notBlank' else ''}NULL"
    if kind == "text" and how in _TEXT_MATCHES:
        return _TEXT_MATCHES[how].format(column=column, value=quoted(str(model.get("filter", ""))))
    if kind == "number" and how == "inRange":
        return f"{column} BETWEEN {_number(model.get('filter'))} AND {_number(model.get('filterTo'))}"
    if kind == "number" and how in _COMPARISONS:
        return f"{column} {_COMPARISONS[how]} {_number(model.get('filter'))}"
    raise ValueError(f"{how!r} is no filter of {column}; choose from its menu")


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number to compare with")
    return repr(value)


def _order(part: Mapping[str, Any]) -> str:
    column = part.get("colId")
    if column not in COLUMNS:
        raise ValueError(f"{column!r} cannot be sorted; choose from {', '.join(COLUMNS)}")
    return f"{column} {'DESC' if part.get('sort') == 'desc' else 'ASC'} NULLS LAST"


def _indented(sql: str) -> str:
    return "\n".join(f"    {line}" for line in sql.splitlines())


def features_page(client: CatalogClient, params: Params) -> Component:
    """Returns the page with an empty grid. The grid requests its rows through a callback."""
    answer = client.ask("tabulated")
    if not answer.rows:
        return panel("Features", empty_note("No feature is tabulated; run `snakemake features`."))
    runs = list(dict.fromkeys(row["run"] for row in answer.rows))
    dictionaries = [run for run in runs if run != "neurons"]
    run = params.get("run") or (sorted(dictionaries, reverse=True) or runs)[0]
    if run not in runs:
        raise ValueError(f"{run} has no features here; choose from {', '.join(runs)}")
    layers = [row["layer"] for row in answer.rows if row["run"] == run]
    chosen = integer(params, "layer")
    layer: int = layers[0] if chosen is None or chosen not in layers else chosen
    search, by = params.get("search", ""), params.get("by", "fires on")
    labelled = client.ask("has_labels", run=run, layer=layer).first["labelled"]
    controls = html.Div(
        [
            select("run", runs, run, "run"),
            select("layer", [str(each) for each in layers], str(layer), "layer"),
            select(
                "by",
                [each for each in SEARCHES if labelled or each in ("fires on", "raises", by)],
                by,
                "search for",
            ),
            html.Label(
                [
                    html.Span("text, or a regular expression"),
                    dcc.Input(
                        search,
                        id=choice("search", search),
                        debounce=True,
                        type="search",
                        placeholder="press / to search",
                    ),
                ],
                className="field wide",
            ),
        ],
        className="controls",
    )
    names = {"run": run, "layer": layer, "search": search, "by": by}
    return html.Div(
        [
            panel(
                f"Features of {run}, layer {layer}",
                controls,
                html.P(id="features-count", className="count", **aria(live="polite")),
                dcc.Store("features-names", data=names),
                dcc.Store("features-address"),
                _grid(params, bool(search), labelled),
                html.Div(id="features-sql"),
            ),
            _labelled_elsewhere(client, run, layer, search) if search and by == "label" else None,
        ]
    )


def _labelled_elsewhere(client: CatalogClient, run: str, layer: int, search: str) -> Component | None:
    """Returns a panel of the features of other layers and runs whose label contains `search`."""
    answer = client.ask("labelled_elsewhere", pattern=search, run=run, layer=layer, rows=FOUND)
    if not answer.rows:
        return None
    rows = [
        [
            row["run"],
            to_feature(row["run"], row["layer"], row["feature"]),
            row["label"],
            format_value(row["f1"], 3),
        ]
        for row in answer.rows
    ]
    title = f"Labels with {search!r} in other layers and runs, the best described first"
    return panel(title, table(["run", "feature", "label", "F1"], rows, (0, 1, 2)), answer=answer)


def register_features(app: Dash, client: CatalogClient) -> None:
    """Register the callbacks that send rows to the grid, keep the grid's state in the URL, and open a feature."""

    @app.callback(
        Output("features-grid", "getRowsResponse"),
        Output("features-count", "children"),
        Output("features-sql", "children"),
        Input("features-grid", "getRowsRequest"),
        State("features-names", "data"),
    )
    def rows(request: dict[str, Any] | None, names: dict[str, Any]):
        if request is None:
            return no_update, no_update, no_update
        run, layer = names["run"], names["layer"]
        try:
            sql = rows_sql(run, layer, names["search"], names["by"], request)
            answer, found = fetch_rows(client, run, layer, sql)
        except ValueError as error:
            return {"rowData": [], "rowCount": 0}, html.Span(str(error), className="error"), None
        for row in found:
            row["id"] = str(row["feature"])
            row["href"] = feature_link(run, layer, row["feature"])
        total = _total(answer, request)
        response = {"rowData": found, "rowCount": total}
        return response, f"{format_value(total)} features", sql_button(answer)

    app.clientside_callback(
        ClientsideFunction("circuitloom", "rememberGrid"),
        Output("features-address", "data"),
        Input("features-grid", "filterModel"),
        Input("features-grid", "columnState"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("url", "href", allow_duplicate=True),
        Input("features-grid", "cellDoubleClicked"),
        State("features-names", "data"),
        prevent_initial_call=True,
    )
    def open_feature(cell: dict[str, Any] | None, names: dict[str, Any]):
        row = (cell or {}).get("rowId")
        return no_update if row is None else feature_link(names["run"], names["layer"], int(row))


def _total(answer: Answer, request: dict[str, Any]) -> int:
    """Returns the number of all matching rows. If the answer is empty, returns `startRow` of the request."""
    return answer.first["n_matching"] if answer.rows else int(request.get("startRow") or 0)


def _grid_state(params: Params) -> dict[str, Any]:
    """Returns the grid's filterModel and sortModel from the URL. Raises ValueError if parsing fails."""
    try:
        filters, order = (json.loads(params.get(name) or "null") for name in ("filter", "sort"))
    except json.JSONDecodeError:
        raise ValueError("filter or sort in the address cannot be parsed; remove them") from None
    return {"filterModel": filters or {}, "sortModel": order or []}


def _grid(params: Params, searched: bool, labelled: bool) -> Component:
    state = _grid_state(params)
    order = {part["colId"]: (part["sort"], i) for i, part in enumerate(state["sortModel"])}
    columns = []
    for name, head in {**({"match": "match"} if searched else {}), **_HEADS}.items():
        if name in _OF_LABELS and not labelled:
            continue
        kind = COLUMNS.get(name)
        column: dict[str, Any] = {"field": name, "headerName": head, "sortable": kind is not None}
        if name == "feature":
            column |= {"cellRenderer": "FeatureLink", "pinned": "left", "width": 110}
        if kind == "number":
            column |= {"filter": "agNumberColumnFilter", "type": "rightAligned", "width": 125}
            column |= (
                {}
                if name in ("feature", "n_tokens")
                else {"valueFormatter": {"function": "short(params.value)"}}
            )
        elif kind == "text":
            column |= {
                "filter": "agTextColumnFilter",
                "width": 240 if name == "label" else 180,
                "tooltipField": name,
            }
        else:
            column |= {"flex": 1, "minWidth": 190}
        if name in order:
            column |= {"sort": order[name][0], "sortIndex": order[name][1]}
        columns.append(column)
    return dag.AgGrid(
        id="features-grid",
        columnDefs=columns,
        rowModelType="infinite",
        filterModel=state["filterModel"],
        defaultColDef={"resizable": True, "floatingFilter": True, "suppressHeaderMenuButton": True},
        getRowId="params.data.id",
        dashGridOptions={
            "cacheBlockSize": ROWS,
            "maxBlocksInCache": 20,
            "rowHeight": 30,
            "animateRows": False,
        },
        className="ag-theme-alpine grid",
        style={"height": "62vh"},
    )
