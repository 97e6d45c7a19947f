"""The way into a study's catalogue: read-only for notebooks, locked for statements from elsewhere."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from duckdb import DuckDBPyConnection, DuckDBPyRelation

NAME = "catalog.duckdb"
BATCH = 10_000
"""Rows that are read at a time."""

_MESSAGE = 500
"""Characters of DuckDB's message that are kept: it lists every overload of a function."""
_SYNTAX = {
    *("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"),
    *("EMPTY", "BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "PIVOT", "SHOW_REF"),
    *("ORDER_MODIFIER", "DISTINCT_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"),
    *("ORDER_DEFAULT", "ASCENDING", "DESCENDING"),
}
"""What the syntax tree of a query that only reads is made of, apart from its expressions."""
_TABLE_FUNCTIONS = {
    *("range", "generate_series", "repeat", "unnest", "json_each", "json_tree"),
    *(
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_schemas",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
    ),
}
"""Table functions that touch no file and run no text as SQL."""
_HARMLESS = {"error", "gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"}
"""Functions that DuckDB counts as having side effects, since each call gives something else."""
_PLANNERS = {"json_serialize_plan"}
"""Functions that bind the text they are given as SQL, which looks at files."""


def open_catalog(path: Path | str) -> DuckDBPyConnection:
    """A read-only connection to the catalogue at `path`, a study's folder or the catalogue itself.

    Large sorts may spill into a folder beside the catalogue, which is removed again.

    Raises:
        ValueError: there is no catalogue, or it cannot be read.
    """
    file = _find(path)
    try:
        connection = duckdb.connect(str(file), read_only=True)
    except duckdb.Error as error:
        raise _unreadable(file, error) from error
    return _prepare(connection, file, ["SET parquet_metadata_cache = true"])


def open_sandbox(path: Path | str) -> DuckDBPyConnection:
    """As `open_catalog`, but locked: reads no file outside the catalogue's folder, spills nothing, cannot be unlocked.

    DuckDB itself still lets COPY and EXPORT write into that folder: give statements to `run_statement`, which
    refuses them. A connection belongs to one thread, and its `cursor()` knows neither views nor folder.

    Raises:
        ValueError: there is no catalogue, or it cannot be read.
    """
    file = _find(path)
    # An instance of its own: connections to one file share one within a process, and a lock would hold for all.
    connection = duckdb.connect(
        config={
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
            "allow_persistent_secrets": "false",
            "python_enable_replacements": "false",
        }
    )
    folder = literal(f"{file.parent}/")
    # root() escapes what DuckDB would take for a pattern, and the folder is then known by that spelling
    escaped = literal(re.sub(r"[*?\[]", r"[\g<0>]", f"{file.parent}/"))
    steps = [
        f"ATTACH {literal(str(file))} AS catalog (READ_ONLY)",
        "USE catalog",
        "SET parquet_metadata_cache = true",
        f"SET VARIABLE circuitloom_root = {folder}",
        # DuckDB takes the proxy, with its password, from the environment
        "SET http_proxy = ''",
        "SET temp_directory = ''",
        f"SET allowed_directories = [{folder}, {escaped}]",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ]
    return _prepare(connection, file, steps)


def run_statement(connection: DuckDBPyConnection, statement: str) -> pa.RecordBatchReader:
    """What `statement`, a single SELECT, gives; to be read, or dropped, before the connection's next one.

    It may name the catalogue's views and macros, but no file. Errors that come up while reading are ValueErrors too.

    Raises:
        ValueError: it is not one SELECT, it does more than read the catalogue, or DuckDB finds fault with it.
    """
    statement.encode()  # a ValueError for what is no text
    try:
        parsed = connection.extract_statements(statement)
        if len(parsed) != 1:
            raise ValueError(f"one SELECT at a time is run here, not {len(parsed) or 'no'} statements")
        _check_type(parsed[0].type)
        _check_reads_only(connection, parsed[0].query)
        relation = connection.sql(parsed[0])
        if relation is None:
            raise ValueError("the statement gives no rows; only a SELECT is run here")
        return _reader(relation)
    except duckdb.Error as error:
        raise ValueError(_one_line(error)) from error


def _find(path: Path | str) -> Path:
    """The catalogue's file, by the folder's real place: DuckDB compares real paths."""
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no catalogue at {file}; make it with `snakemake catalog`")
    return file.parent.resolve() / file.name


def _prepare(connection: DuckDBPyConnection, file: Path, steps: list[str]) -> DuckDBPyConnection:
    """`connection` after `steps`, and after a look at every view: a damaged block is found when it is read."""
    try:
        for step in [*steps, "SELECT count(sql) FROM duckdb_views()"]:
            connection.execute(step).fetchall()
    except duckdb.Error as error:
        connection.close()
        raise _unreadable(file, error) from error
    return connection


def _unreadable(file: Path, error: duckdb.Error) -> ValueError:
    """What is wrong with a catalogue that DuckDB does not open, and the remedy."""
    text = _one_line(error)
    if isinstance(error, duckdb.ConnectionException):
        return ValueError(f"{file} is open in this process with other settings; close that connection first")
    if "set lock" in text:
        return ValueError(f"{file} is being written by another process; try again when it has ended")
    return ValueError(f"{file} is no readable catalogue ({text}); delete it and run `snakemake catalog`")


def _one_line(error: Exception) -> str:
    """What DuckDB says, with its hints, but without the excerpt of the statement that follows."""
    text = " ".join(re.split(r"\n+LINE \d+:", str(error))[0].split()) or type(error).__name__
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"


def literal(text: str) -> str:
    """`text` as SQL writes it: settings take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def _check_type(kind: duckdb.StatementType) -> None:
    """Raise ValueError unless `kind` is SELECT, which includes WITH, VALUES, FROM, DESCRIBE, SUMMARIZE and SHOW."""
    if kind == duckdb.StatementType.MULTI:
        # DuckDB first makes a temporary type of the values it finds
        raise ValueError("only a SELECT is run here; let PIVOT name its values: PIVOT t ON c IN (...)")
    if kind != duckdb.StatementType.SELECT:
        raise ValueError(f"only a SELECT is run here, not {kind.name}")


def _check_reads_only(connection: DuckDBPyConnection, query: str) -> None:
    """Raise ValueError where the syntax tree of `query`, of type SELECT, holds anything not known to only read.

    A SELECT may hold COPY, INSERT and the like in a WITH clause, and functions that write or run text as SQL.
    """
    ((text,),) = connection.execute("SELECT json_serialize_sql($query)", {"query": query}).fetchall()
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("the statement is nested too deeply") from None
    if tree["error"]:
        raise ValueError(f"the statement is not understood: {' '.join(tree['error_message'].split())}")
    assert len(tree["statements"]) == 1
    for node in _nodes(tree):
        kind = node.get("type")
        # expressions have a class; what they can do is call functions and hold queries
        if isinstance(kind, str) and "class" not in node and kind not in _SYNTAX:
            raise ValueError(f"only a SELECT that only reads is run here; this one holds {_words(kind)}")
        if kind in ("BASE_TABLE", "SHOW_REF"):
            _check_table(node)
        elif kind == "TABLE_FUNCTION":
            name = node["function"]["function_name"].lower()
            if name not in _TABLE_FUNCTIONS and name not in _own_macros(connection):
                raise ValueError(
                    f"{name}() is not allowed in FROM here; the catalogue has views instead: SHOW TABLES"
                )
        if "function_name" in node:
            name = node["function_name"].lower()
            if name in _acting_functions():
                raise ValueError(f"{name}() is not allowed here: it does more than compute")


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """Every object of a JSON tree, at any depth."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _words(kind: str) -> str:
    """COPY_QUERY_NODE as COPY."""
    return kind.removesuffix("_NODE").removesuffix("_QUERY").replace("_", " ")


def _check_table(node: dict[str, Any]) -> None:
    """Raise ValueError where a name in FROM can only be that of files."""
    for part in node["qualified_name"]["path"]:
        # DuckDB tells the names of files that a pattern finds behind a link, even where it does not read them
        if re.search(r"[./*?\[\\:]", part):
            raise ValueError(f"{part!r} in FROM names a file; the catalogue has views instead: SHOW TABLES")


def _own_macros(connection: DuckDBPyConnection) -> set[str]:
    """The catalogue's own table macros."""
    rows = connection.execute(
        "SELECT function_name FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal"
    )
    return {name.lower() for (name,) in rows.fetchall()}


@cache
def _acting_functions() -> frozenset[str]:
    """DuckDB's functions that do something: write logs, advance sequences, wait, plan queries."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT function_name FROM duckdb_functions() WHERE has_side_effects"
        ).fetchall()
    return frozenset({name.lower() for (name,) in rows} - _HARMLESS | _PLANNERS)


def _reader(relation: DuckDBPyRelation) -> pa.RecordBatchReader:
    """Rows of `relation` as they are found; Arrow's own errors are of several classes."""
    source = relation.to_arrow_reader(BATCH)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from source
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise ValueError(_one_line(error)) from error

    return pa.RecordBatchReader.from_batches(source.schema, batches())
