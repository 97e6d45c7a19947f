"""Find the data files that differ between two folders of results: `python -m tests.comparing OLD NEW`."""

import re
import sys
from pathlib import Path

import duckdb
from pyarrow import Table

from circuitloom.core.layout import BENCHMARKS, CHECKSUMS, LOGS
from circuitloom.core.tables import read_table

TIMES = {"seconds", "tokens_per_second"}
"""Columns with times, which differ between any two runs."""


def differences(one: Path, other: Path) -> list[str]:
    """Paths, relative to both folders, of data files that differ or are in only one folder.

    Files are compared byte by byte, except: tables without columns of times, the catalogue by its views and macros, the
    report without times.
    """
    names = data_files(one) | data_files(other)
    return sorted(str(name) for name in names if not _same(one / name, other / name))


def data_files(folder: Path) -> set[Path]:
    """Paths, relative to the folder, of all outputs of jobs: no logs, benchmarks, locks or checksum records."""
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
        times = [name for name in read_table(one).column_names if name in TIMES]
        return bool(times) and _without_times(one).equals(_without_times(other))
    if one.suffix == ".duckdb":
        return _definitions(one) == _definitions(other)
    return one.name == "report.html" and _report_without_times(one) == _report_without_times(other)


def _without_times(file: Path) -> Table:
    table = read_table(file)
    return table.drop_columns([name for name in table.column_names if name in TIMES])


def _definitions(file: Path) -> list[list[tuple]]:
    """Views and macros of a catalogue, which contains nothing else."""
    with duckdb.connect(file, read_only=True) as connection:
        assert not connection.sql("FROM duckdb_tables()").fetchall()
        queries = (
            "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
            "SELECT function_name, parameters, macro_definition FROM duckdb_functions() "
            "WHERE NOT internal ORDER BY ALL",
        )
        return [connection.sql(query).fetchall() for query in queries]


def _report_without_times(file: Path) -> str:
    """The report without the times of writing it, of jobs and of tracing (the table trace is compared by itself)."""
    page = file.read_text()
    # the times of jobs are missing if the results are in a bucket
    page = re.sub(r"<h3>Times</h3>.*?</section>", "", page, flags=re.DOTALL)
    page = re.sub(r'<(table|script)\b[^>]*data-answer="traces".*?</\1>', "", page, flags=re.DOTALL)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page)


def numbers_differ(one: Path, other: Path) -> list[str]:
    """As `differences`, for results of two versions: tables by values alone, and only tables, weights and arrays.

    Versions may describe columns, word pictures and pages, and record code hashes differently.
    """

    def differ(name: Path) -> bool:
        files = one / name, other / name
        if name.suffix == ".parquet" and all(file.is_file() for file in files):
            old, new = map(_without_times, files)
            return not old.equals(new)
        return not _same(*files)

    names = data_files(one) | data_files(other)
    numeric = {name for name in names if name.suffix in {".parquet", ".safetensors"} or ".zarr" in str(name)}
    return sorted(str(name) for name in numeric if name.name != "zarr.json" and differ(name))


if __name__ == "__main__":
    found = numbers_differ(*map(Path, sys.argv[1:]))
    print(*found, f"{len(found)} files differ", sep="\n")
    sys.exit(bool(found))
