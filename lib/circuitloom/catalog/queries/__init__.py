"""Reads the SQL files of the catalogue: its macros, and the named queries of the report, explorer and docs/queries.md.

Each file holds statements of the form below, where `$run` is a parameter. Macros also have a line with an example.

    -- name: runs_of_kind
    -- Runs of one kind, by name.
    SELECT run FROM run WHERE kind = $kind ORDER BY run
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
QUERY_FILES = ("common", "report", "explorer")
"""Names, without .sql, of the files that `named_queries` reads. No two queries in them have the same name."""
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_PARAMETER = re.compile(r"\$([A-Za-z_]\w*)")


@dataclass(frozen=True)
class NamedQuery:
    """A SELECT that may contain parameters, such as `$run`."""

    name: str
    description: str
    """One line that says what the rows are."""
    sql: str
    """The statement, without the lines of its name and description."""

    def filled(self, **parameters: Any) -> str:
        """Returns the statement with the values of its parameters filled in, so that DuckDB can run it.

        The first line is the description, as a comment.
        """
        return fill_in(f"-- {self.description}\n{self.sql}", parameters)


@dataclass(frozen=True)
class Macro:
    """A macro of the catalogue."""

    name: str
    parameters: str
    """Names of the parameters, separated by commas."""
    description: str
    example: str
    """A SELECT that uses the macro.

    It may contain the parameters $run, $other_run, $layer, $feature, $concept, $pattern and $trace.
    """
    sql: str
    """The CREATE MACRO statement."""

    @property
    def is_table(self) -> bool:
        """True if the macro returns a table, False if it returns a single value."""
        return " AS TABLE\n" in self.sql


@cache
def named_queries() -> Mapping[str, NamedQuery]:
    """Maps the name of each query of the report and the explorer to the query."""
    found = [query for name in QUERY_FILES for query in read_queries(name)]
    queries = {query.name: query for query in found}
    assert len(queries) == len(found), "two queries have one name"
    return queries


@cache
def questions() -> tuple[NamedQuery, ...]:
    """Questions that researchers ask, in the order of docs/queries.md. The description of a query is its question."""
    return tuple(read_queries("questions"))


@cache
def macros() -> tuple[Macro, ...]:
    """All macros. Each one comes after the macros that it uses."""
    found = []
    for name, text in _statements("macros"):
        description, example, sql = text.split("\n", 2)
        (parameters,) = re.findall(rf"MACRO {name}\(([^)]*)\)", sql)
        example = example.removeprefix("-- example: ")
        found.append(Macro(name, parameters, description.removeprefix("-- "), example, sql))
    return tuple(found)


def read_queries(file: str) -> list[NamedQuery]:
    """Reads the queries of one file. `file` is its name without .sql."""
    found = []
    for name, text in _statements(file):
        description, sql = text.split("\n", 1)
        found.append(NamedQuery(name, description.removeprefix("-- "), sql))
    return found


def _statements(file: str) -> list[tuple[str, str]]:
    """Returns the name and the text of each statement in a file. `file` is its name without .sql."""
    parts = _NAME.split((FOLDER / f"{file}.sql").read_text())
    assert not parts[0].strip(), f"{file}.sql does not begin with a name"
    return list(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))


def fill_in(sql: str, parameters: Mapping[str, Any]) -> str:
    """Replaces each $parameter in `sql` by its value as an SQL literal. Raises KeyError if a value is missing."""
    return _PARAMETER.sub(lambda match: quoted(parameters[match[1]]), sql)


def quoted(value: Any) -> str:
    """Writes `value` as an SQL literal. `value` is a text, a number, or a list of texts and numbers."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(quoted, value))}]"
    return str(value)
