"""A locked connection to a study's catalogue, for SQL from users: a statement can only read the catalogue."""

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
"""Node types in the syntax tree of a query that only reads, expressions excluded."""
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
"""Table functions that read no file and run no text as SQL."""
_HARMLESS = {"error", "gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"}
"""Functions with side effects by DuckDB's definition, because each call returns another value."""
_PLANNERS = {"json_serialize_plan"}
"""Functions that bind their argument as SQL, which looks at files."""


def open_sandbox(path: Path | str) -> DuckDBPyConnection:
    """A locked connection: reads no file outside the catalogue's folder, spills nothing, cannot be unlocked.

    DuckDB still lets COPY and EXPORT write into that folder: run statements through `run_statement`, which rejects
    both. Use it from one thread; its `cursor()` has neither the views nor the folder.
    Raises ValueError if there is no catalogue, or it cannot be read.
    """
    file = find_catalog(path)
    # a separate DuckDB instance: connections to one file share an instance in a process, and so would share the lock
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
    # root() escapes glob characters; DuckDB then compares the escaped path
    escaped = quoted(re.sub(r"[*?\[]", r"[\g<0>]", f"{file.parent}/"))
    steps = [
        f"ATTACH {quoted(str(file))} AS catalog (READ_ONLY)",
        "USE catalog",
        "SET parquet_metadata_cache = true",
        f"SET VARIABLE circuitloom_root = {folder}",
        # DuckDB reads the proxy, with its password, from the environment
        "SET http_proxy = ''",
        "SET temp_directory = ''",
        f"SET allowed_directories = [{folder}, {escaped}]",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ]
    return prepare(connection, file, steps)


def run_statement(connection: DuckDBPyConnection, statement: str) -> pa.RecordBatchReader:
    """Run one SELECT over the catalogue's views and macros; read the result before the connection's next statement.

    Raises ValueError if `statement` is not one SELECT, does more than read the catalogue, or fails in DuckDB; also
    while the result is read.
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
    """Raise ValueError unless `kind` is SELECT, which includes WITH, VALUES, FROM, DESCRIBE, SUMMARIZE and SHOW."""
    if kind == duckdb.StatementType.MULTI:
        # DuckDB would first create a temporary type from the values it finds
        raise ValueError("only a SELECT is run here; let PIVOT name its values: PIVOT t ON c IN (...)")
    if kind != duckdb.StatementType.SELECT:
        raise ValueError(f"only a SELECT is run here, not {kind.name}")


def _check_reads_only(connection: DuckDBPyConnection, query: str) -> None:
    """Raise ValueError if the syntax tree of a SELECT contains a node that is not known to only read.

    A SELECT may contain COPY or INSERT in a WITH clause, and functions that write or run text as SQL.
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
        # expressions have a class; they can only call functions and contain queries
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
    """Every object in a JSON tree, at any depth."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _check_table(node: dict[str, Any]) -> None:
    """Raise ValueError if a name in FROM can only name a file."""
    for part in node["qualified_name"]["path"]:
        # DuckDB reveals names of files that match a pattern behind a link, even those that it does not read
        if re.search(r"[./*?\[\\:]", part):
            raise ValueError(f"{part!r} in FROM names a file; the catalogue has views instead: SHOW TABLES")


def _own_macros(connection: DuckDBPyConnection) -> set[str]:
    """Names of the catalogue's table macros."""
    rows = connection.execute(
        "SELECT function_name FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal"
    )
    return {name.lower() for (name,) in rows.fetchall()}


@cache
def _functions_with_side_effects() -> frozenset[str]:
    """DuckDB's functions with side effects: they write logs, advance sequences, sleep or plan queries."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT function_name FROM duckdb_functions() WHERE has_side_effects"
        ).fetchall()
    return frozenset({name.lower() for (name,) in rows} - _HARMLESS | _PLANNERS)


def _reader(relation: DuckDBPyRelation) -> pa.RecordBatchReader:
    """A reader of the relation's rows that raises ValueError for all errors of DuckDB and Arrow."""
    source = relation.to_arrow_reader(BATCH)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from source
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise ValueError(one_line(error)) from error

    return pa.RecordBatchReader.from_batches(source.schema, batches())
