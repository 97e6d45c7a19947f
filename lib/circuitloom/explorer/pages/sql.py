"""A console: one SELECT at a time, in a sandbox that writes nothing and reads no other file."""

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
from ...catalog.questions_page import names_of
from ...catalog.sandbox import open_sandbox, run_statement
from ...core.formatting import format_value
from ..components import panel
from ..urls import Params

MOST = 5_000
"""Rows shown."""
SECONDS = 60
"""After which a statement is ended."""
_EXACT = 2**53
"""Up to here a browser's numbers are whole."""
EXAMPLE = "SELECT run, layer, l0, ce_recovered_zero\nFROM metric\nORDER BY run, layer"


def sql_page(client: CatalogClient, params: Params) -> Component:
    """The page; a statement in the address is run at once."""
    given = params.get("query")
    asked = [{"label": question.description, "value": str(i)} for i, question in enumerate(questions())]
    editor = dcc.Textarea(
        id="sql-text", value=given or EXAMPLE, className="editor", spellCheck=False, title="SQL"
    )
    return html.Div(
        [
            panel(
                "SQL",
                dcc.Dropdown(
                    asked, None, id="sql-question", placeholder="questions to begin with", className="select"
                ),
                editor,
                html.Div(
                    [
                        html.Button("Run", id="sql-run", n_clicks=int(given is not None), className="first"),
                        html.Span("or Ctrl+Enter. Only reads; ends after a minute.", className="count"),
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
    """Statements and what they give."""

    @app.callback(Output("sql-result", "children"), Input("sql-run", "n_clicks"), State("sql-text", "value"))
    def run(clicks: int, statement: str | None) -> Component | None:
        return _result(client, statement or "") if clicks else None

    @app.callback(Output("sql-text", "value"), Input("sql-question", "value"), prevent_initial_call=True)
    def question(place: str) -> str:
        chosen = questions()[int(place)]
        names = names_of(open_sandbox(client.folder), "the")
        return chosen.filled(**names)


def _result(client: CatalogClient, statement: str) -> Component:
    began = time.perf_counter()
    try:
        names, rows, more = execute(client, statement)
    except ValueError as error:
        return html.P(str(error), className="error", role="alert")
    seconds = time.perf_counter() - began
    said = (
        f"{format_value(len(rows))} rows" + (", the first of more" if more else "") + f" in {1000 * seconds:.0f} ms"
    )
    # fields are numbered: a name with a dot would be taken for a path, and two columns may have one name
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
    return html.Div([html.P(said, className="count", role="status"), grid])


def execute(client: CatalogClient, statement: str) -> tuple[list[str], list[list[Any]], bool]:
    """Names of columns, at most `MOST` rows, and whether there were more.

    Raises ValueError where the statement is no SELECT that only reads, fails, or takes too long.
    """
    with open_sandbox(client.folder) as connection:
        late = threading.Event()

        def end() -> None:
            late.set()
            connection.interrupt()

        timer = threading.Timer(SECONDS, end)
        timer.start()
        try:
            result = run_statement(connection, statement)
            rows = [[_shown(value) for value in row] for row in islice(rows_of(result), MOST + 1)]
        except ValueError:
            if late.is_set():
                raise ValueError(
                    f"the statement was ended after {SECONDS} s; narrow it, or use `python -m circuitloom sql`"
                ) from None
            raise
        finally:
            timer.cancel()
        return list(result.schema.names), rows[:MOST], len(rows) > MOST


def _shown(value: Any) -> str | int | float | None:
    """A cell of the grid: numbers stay numbers, for sorting, where the browser holds them exactly."""
    plain = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _EXACT)
    return value if value is None or (plain and not isinstance(value, bool)) else cell(value)


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
        html.Details([html.Summary(html.Code(f"{macro.name}({macro.parameters})")), html.P(macro.description)])
        for macro in macros()
    ]
    return html.Div(parts, className="columns")
