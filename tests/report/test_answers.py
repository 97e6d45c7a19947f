"""The report's SQL returns the rows that the report shows."""

import json
import subprocess
import sys

from circuitloom.catalog.output import rows_of
from circuitloom.catalog.queries import named_queries, read_queries
from circuitloom.catalog.sandbox import open_sandbox, run_statement
from circuitloom.core.formatting import format_value

COMBINED = {"claims_of_case", "cases"}
"""Tables whose cells combine several columns."""


def test_every_query_returns_the_rows_in_the_report(written) -> None:
    catalogue = open_sandbox(written.inputs.folder)
    assert len(written.page.sql) > 20
    for name, sql in written.page.sql.items():
        result = run_statement(catalogue, sql)
        columns = result.schema.names
        rows = [dict(zip(columns, row, strict=True)) for row in rows_of(result)]
        assert json.loads(json.dumps(rows)) == written.page.rows[name], name
        assert rows, name


def test_every_table_shows_its_rows(written) -> None:
    tables = {
        name: cells for name, cells in written.page.cells.items() if name.partition(":")[0] not in COMBINED
    }
    assert len(tables) > 8
    for name, cells in tables.items():
        assert cells == [
            [format_value(value) for value in row.values()] for row in written.page.rows[name]
        ], name


def test_every_query_is_used_and_headed_by_its_description(written) -> None:
    asked = {name.partition(":")[0] for name in written.page.rows}
    assert {query.name for query in read_queries("report")} <= asked <= set(named_queries())
    for name, sql in written.page.sql.items():
        assert sql.startswith(f"-- {named_queries()[name.partition(':')[0]].description[:9]}"), name


def test_everything_shown_has_its_sql(written) -> None:
    # the names of layers and behaviours are shown by other queries
    assert set(written.page.rows) - set(written.page.sql) == {"layers", "behaviours"}


def test_the_sql_runs_unchanged_from_the_command_line(written) -> None:
    sql = written.page.sql["graph_edges:war"]
    command = [sys.executable, "-m", "circuitloom", "sql", sql, "--catalog", str(written.inputs.folder)]
    run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == written.page.rows["graph_edges:war"]
