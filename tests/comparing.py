"""Which data files of two results folders differ."""

import re
from pathlib import Path

import duckdb
from pyarrow import Table

from circuitloom.core.layout import BENCHMARKS, CHECKSUMS, LOGS
from circuitloom.core.tables import read_table

CLOCKED = {"seconds", "tokens_per_second"}
"""Columns that hold times, which no two runs share."""


def differences(one: Path, other: Path) -> list[str]:
    """Paths of data files, relative to both folders, that are in one of them only or hold different things.

    Files are compared byte by byte; of tables with times all other columns, of the catalogue its views and macros, of
    the report all but times.
    """
    names = data_files(one) | data_files(other)
    return sorted(str(name) for name in names if not _same(one / name, other / name))


def data_files(folder: Path) -> set[Path]:
    """Paths, relative to a results folder, of all that jobs made; logs, locks and records of checksums left out."""
    files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    return {
        file
        for file in files
        if file.parts[0] not in {LOGS, BENCHMARKS, CHECKSUMS}
        and file.suffix != ".lock"
        and file.name not in {".lock", ".snakemake_timestamp"}
    }


def _same(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix == ".parquet":
        timed = [name for name in read_table(one).column_names if name in CLOCKED]
        return bool(timed) and _untimed(one).equals(_untimed(other))
    if one.suffix == ".duckdb":
        return _definitions(one) == _definitions(other)
    return one.name == "report.html" and _still(one) == _still(other)


def _untimed(file: Path) -> Table:
    table = read_table(file)
    return table.drop_columns([name for name in table.column_names if name in CLOCKED])


def _definitions(file: Path) -> list[list[tuple]]:
    """Views and macros: the catalogue holds nothing else."""
    with duckdb.connect(file, read_only=True) as connection:
        assert not connection.sql("FROM duckdb_tables()").fetchall()
        queries = (
            "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
            "SELECT function_name, parameters, macro_definition FROM duckdb_functions() "
            "WHERE NOT internal ORDER BY ALL",
        )
        return [connection.sql(query).fetchall() for query in queries]


def _still(file: Path) -> str:
    """The report without times: of its writing, of jobs, and of tracing, whose table (trace) is compared by itself."""
    page = file.read_text()
    # where results lie in a bucket no times are found
    page = re.sub(r"<h3>Times</h3>.*?</section>", "", page, flags=re.DOTALL)
    page = re.sub(r'<(table|script)\b[^>]*data-answer="traces".*?</\1>', "", page, flags=re.DOTALL)
    page = re.sub(r"Jobs of each rule: .*? in all", "", page)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page)
