"""Runs SQL from users on a locked connection to a study's catalogue. A statement can only read the catalogue."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from .client import BATCH, find_catalog, one_line, prepare
from .queries import quoted

_SYNTAX = {
    *("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"),
    *("EMPTY", "BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "PIVOT", "SHOW_REF"),
    *("ORDER_MODIFIER", "DISTINCT_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"),
    *("ORDER_DEFAULT", "ASCENDING", "DESCENDING"),
}
"""Allowed node types in the syntax tree of a query. Nodes of these types only read. Expressions are not listed."""
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
"""Allowed table functions. These functions read no files and do not run text as SQL."""
_HARMLESS = {"error", "gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"}
"""Functions that are allowed although DuckDB lists side effects. Most return another value on each call."""
_PLANNERS = {"json_serialize_plan"}
"""Forbidden functions, which plan their argument as SQL. DuckDB may open files during planning."""


def open_sandbox(path: Path | str) -> DuckDBPyConnection:
    """Open a locked connection to the catalogue at `path`, which is a study's folder or the catalogue file.

    The connection reads no file outside the catalogue's folder, writes no temporary files, and cannot be unlocked. Run
    all statements with `run_statement`, because DuckDB still lets COPY and EXPORT write into that folder. Use the
    connection from one thread only, and not its `cursor()`: a cursor finds no views. Raises ValueError if there is no
    readable catalogue.
    """
    file = find_catalog(path)
    # connections of one process to the same file share one DuckDB instance and its settings; a new instance, to which
    # the file is attached, does not lock these connections
    connection = duckdb.connect(
        config={
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
            "allow_persistent_secrets": "false",
            "python_enable_replacements": "false",
        }
    )
    folder = quoted(f"{file.parent}/")
    # root() escapes glob characters, and DuckDB compares the escaped path with the allowed folders
    escaped = quoted(re.sub(r"[*?\[]", r"[\g<0>]", f"{file.parent}/"))
    steps = [
        f"ATTACH {quoted(str(file))} AS catalog (READ_ONLY)",
        "USE catalog",
        "SET parquet_metadata_cache = true",
        f"SET VARIABLE circuitloom_root = {folder}",
        # DuckDB would read the proxy and its password from the environment
        "SET http_proxy = ''",
        "SET temp_directory = ''",
        f"SET allowed_directories = [{folder}, {escaped}]",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ]
    return prepare(connection, file, steps)


def run_statement(connection: DuckDBPyConnection, statement: str) -> pa.RecordBatchReader:
    """Run one SELECT over the catalogue's views and macros, and return a reader of the rows.

    Read all rows before you run the next statement on `connection`. Raises ValueError if `statement` fails, is not
    exactly one SELECT, or does more than read the catalogue. Reading the rows may also raise ValueError.
    """
    statement.encode()  # raises ValueError if it is not valid Unicode
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
        raise ValueError(one_line(error)) from error


def _check_type(kind: duckdb.StatementType) -> None:
    """Raise ValueError unless `kind` is SELECT. DuckDB also counts WITH, VALUES, FROM, DESCRIBE and SHOW as SELECT."""
    if kind == duckdb.StatementType.MULTI:
        # PIVOT without a list of values: DuckDB would first create a temporary type from the values that it finds
        raise ValueError("only a SELECT is run here; let PIVOT name its values: PIVOT t ON c IN (...)")
    if kind != duckdb.StatementType.SELECT:
        raise ValueError(f"only a SELECT is run here, not {kind.name}")


def _check_reads_only(connection: DuckDBPyConnection, query: str) -> None:
    """Raise ValueError unless all syntax nodes and functions in a SELECT only read.

    A SELECT may contain COPY or INSERT in a WITH clause. It may also call functions that write files or run text as
    SQL.
    """
    ((text,),) = connection.execute("SELECT json_serialize_sql($query)", {"query": query}).fetchall()
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("the statement is nested too deeply") from None
    if tree["error"]:
        raise ValueError(f"the statement cannot be parsed: {' '.join(tree['error_message'].split())}")
    assert len(tree["statements"]) == 1
    for node in _nodes(tree):
        kind = node.get("type")
        # nodes with a class are expressions; only the functions and queries within expressions are checked
        if isinstance(kind, str) and "class" not in node and kind not in _SYNTAX:
            name = kind.removesuffix("_NODE").removesuffix("_QUERY").replace("_", " ")
            raise ValueError(f"only a SELECT that only reads is run here; this one contains {name}")
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
            if name in _functions_with_side_effects():
                raise ValueError(f"{name}() is not allowed here: it does more than compute")


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """Yields every object in a JSON tree, at any depth."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _check_table(node: dict[str, Any]) -> None:
    """Raise ValueError if a name in FROM looks like a file name."""
    for part in node["qualified_name"]["path"]:
        # for a pattern with matches behind a symbolic link, DuckDB's error names these files, but does not read them
        if re.search(r"[./*?\[\\:]", part):
            raise ValueError(f"{part!r} in FROM names a file; the catalogue has views instead: SHOW TABLES")


def _own_macros(connection: DuckDBPyConnection) -> set[str]:
    """Returns the names of the catalogue's table macros, in lower case."""
    rows = connection.execute(
        "SELECT function_name FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal"
    )
    return {name.lower() for (name,) in rows.fetchall()}


@cache
def _functions_with_side_effects() -> frozenset[str]:
    """Returns the names of forbidden DuckDB functions, which write logs, advance sequences, sleep or plan queries."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT function_name FROM duckdb_functions() WHERE has_side_effects"
        ).fetchall()
    return frozenset({name.lower() for (name,) in rows} - _HARMLESS | _PLANNERS)


def _reader(relation: DuckDBPyRelation) -> pa.RecordBatchReader:
    """Returns a reader of the relation's rows. The reader raises ValueError for every error of DuckDB or Arrow."""
    source = relation.to_arrow_reader(BATCH)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from source
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise ValueError(one_line(error)) from error

    return pa.RecordBatchReader.from_batches(source.schema, batches())
