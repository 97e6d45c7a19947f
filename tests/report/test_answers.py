"""What the report shows is what its SQL gives."""

import json
import subprocess
import sys

from circuitloom.catalog.output import rows_of
from circuitloom.catalog.queries import named_queries, read_queries
from circuitloom.catalog.sandbox import open_sandbox, run_statement
from circuitloom.core.formatting import format_value

HOLDING_NO_TABLE = {"claims_of_case", "cases"}
"""Tables whose cells are put together from several columns."""


def test_every_sql_gives_the_rows_that_the_report_holds(written) -> None:
    catalogue = open_sandbox(written.sources.folder)
    assert len(written.page.sql) > 20
    for name, sql in written.page.sql.items():
        result = run_statement(catalogue, sql)
        columns = result.schema.names
        rows = [dict(zip(columns, row, strict=True)) for row in rows_of(result)]
        assert json.loads(json.dumps(rows)) == written.page.rows[name], name
        assert rows, name


def test_every_table_shows_its_rows(written) -> None:
    tables = {
        name: cells
        for name, cells in written.page.cells.items()
        if name.partition(":")[0] not in HOLDING_NO_TABLE
    }
    assert len(tables) > 8
    for name, cells in tables.items():
        assert cells == [
            [format_value(value) for value in row.values()] for row in written.page.rows[name]
        ], name


def test_every_query_is_asked_and_says_what_it_gives(written) -> None:
    asked = {name.partition(":")[0] for name in written.page.rows}
    assert {query.name for query in read_queries("report")} <= asked <= set(named_queries())
    for name, sql in written.page.sql.items():
        assert sql.startswith(f"-- {named_queries()[name.partition(':')[0]].description[:9]}"), name


def test_all_that_is_drawn_has_its_sql_below(written) -> None:
    # which layers and behaviours there are is seen in what is drawn of them
    assert set(written.page.rows) - set(written.page.sql) == {"layers", "behaviours"}


def test_the_sql_runs_from_the_command_line_as_it_stands(written) -> None:
    sql = written.page.sql["graph_edges:war"]
    command = [sys.executable, "-m", "circuitloom", "sql", sql, "--catalog", str(written.sources.folder)]
    run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == written.page.rows["graph_edges:war"]
