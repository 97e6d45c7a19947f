"""The page SQL, which runs one SELECT at a time in a sandbox. The sandbox can only read the catalogue."""

import threading
import time
from itertools import islice
from typing import Any

import dash_ag_grid as dag
from dash import Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from ...catalog.client import CatalogClient
from ...catalog.output import cell, rows_of
from ...catalog.queries import macros, questions
from ...catalog.questions_page import question_parameters
from ...catalog.sandbox import open_sandbox, run_statement
from ...core.formatting import format_value
from ..components import panel
from ..urls import Params

MAX_ROWS = 5_000
SECONDS = 60
"""Time limit of a statement in seconds."""
_EXACT = 2**53
"""JavaScript represents every integer up to this one exactly."""
EXAMPLE = "SELECT run, layer, l0, ce_recovered_zero\nFROM metric\nORDER BY run, layer"


def sql_page(client: CatalogClient, params: Params) -> Component:
    """Returns the page. A query in the URL runs at once."""
    query = params.get("query")
    options = [{"label": question.description, "value": str(i)} for i, question in enumerate(questions())]
    editor = dcc.Textarea(
        id="sql-text", value=query or EXAMPLE, className="editor", spellCheck=False, title="SQL"
    )
    return html.Div(
        [
            panel(
                "SQL",
                dcc.Dropdown(
                    options, None, id="sql-question", placeholder="example questions", className="select"
                ),
                editor,
                html.Div(
                    [
                        html.Button("Run", id="sql-run", n_clicks=int(query is not None), className="first"),
                        html.Span("or Ctrl+Enter. Read-only; stopped after a minute.", className="count"),
                    ],
                    className="controls",
                ),
                dcc.Store("sql-address"),
                dcc.Loading(html.Div(id="sql-result", className="soon"), delay_show=200),
            ),
            panel("Tables and macros", _tables(client)),
        ]
    )


def register_sql(app: Dash, client: CatalogClient) -> None:
    """Register the callbacks that run a query and that insert the SQL of an example question."""

    @app.callback(Output("sql-result", "children"), Input("sql-run", "n_clicks"), State("sql-text", "value"))
    def run(clicks: int, statement: str | None) -> Component | None:
        return _result(client, statement or "") if clicks else None

    @app.callback(Output("sql-text", "value"), Input("sql-question", "value"), prevent_initial_call=True)
    def question(place: str) -> str:
        chosen = questions()[int(place)]
        names = question_parameters(open_sandbox(client.folder), "the")
        return chosen.filled(**names)


def _result(client: CatalogClient, statement: str) -> Component:
    started = time.perf_counter()
    try:
        names, rows, more = execute(client, statement)
    except ValueError as error:
        return html.P(str(error), className="error", role="alert")
    seconds = time.perf_counter() - started
    note = ", and more that are not shown" if more else ""
    summary = f"{format_value(len(rows))} rows in {1000 * seconds:.0f} ms{note}"
    # fields have numbers as names, because the grid reads a dot in a name as a path and two columns may have one name
    columns = [
        {"field": str(i), "headerName": name, "tooltipField": str(i), "flex": 1, "minWidth": 110,
         "valueFormatter": {"function": "digits(params.value)"}}
        for i, name in enumerate(names)
    ]  # fmt: skip
    grid = dag.AgGrid(
        id="sql-grid",
        columnDefs=columns,
        rowData=[{str(i): value for i, value in enumerate(row)} for row in rows],
        defaultColDef={"resizable": True, "sortable": True},
        dashGridOptions={"rowHeight": 28, "enableCellTextSelection": True, "animateRows": False},
        className="ag-theme-alpine grid",
        style={"height": f"{min(60, 8 + 3 * len(rows))}vh"},
    )
    return html.Div([html.P(summary, className="count", role="status"), grid])


def execute(client: CatalogClient, statement: str) -> tuple[list[str], list[list[Any]], bool]:
    """Run a statement in the sandbox. Returns (column names, at most `MAX_ROWS` rows, whether more rows exist).

    Raises ValueError if the statement is not a read-only SELECT, if it fails, or if it takes too long.
    """
    with open_sandbox(client.folder) as connection:
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            connection.interrupt()

        timer = threading.Timer(SECONDS, stop)
        timer.start()
        try:
            result = run_statement(connection, statement)
            rows = [[_grid_value(value) for value in row] for row in islice(rows_of(result), MAX_ROWS + 1)]
        except ValueError:
            if timed_out.is_set():
                raise ValueError(
                    f"the statement was stopped after {SECONDS} s; narrow it, or use `circuitloom sql`"
                ) from None
            raise
        finally:
            timer.cancel()
        return list(result.schema.names), rows[:MAX_ROWS], len(rows) > MAX_ROWS


def _grid_value(value: Any) -> str | int | float | None:
    """Returns `value` as text, unless it is None or a number that JavaScript represents exactly."""
    exact = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _EXACT)
    return value if value is None or (exact and not isinstance(value, bool)) else cell(value)


def _tables(client: CatalogClient) -> Component:
    found = client.run(
        "SELECT table_name, list(column_name ORDER BY column_index) AS columns "
        "FROM duckdb_columns() WHERE NOT internal GROUP BY table_name ORDER BY table_name"
    )
    parts: list[Any] = [
        html.Details([html.Summary(html.Code(row["table_name"])), html.P(", ".join(row["columns"]))])
        for row in found.rows
    ]
    parts += [
        html.Details(
            [html.Summary(html.Code(f"{macro.name}({macro.parameters})")), html.P(macro.description)]
        )
        for macro in macros()
    ]
    return html.Div(parts, className="columns")
