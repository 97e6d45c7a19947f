"""Reads the catalogue's SQL files: the macros, and the named queries of the report, the explorer and docs/queries.md.

Each file is a list of statements like the one below. `$kind` is a parameter. A macro also has a line with an example.

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
"""Names of the files that `named_queries` reads, without .sql. No two queries in all files have the same name."""
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_PARAMETER = re.compile(r"\$([A-Za-z_]\w*)")


@dataclass(frozen=True)
class NamedQuery:
    """A SELECT that may contain parameters, such as `$run`."""

    name: str
    description: str
    """One line that says what the rows are."""
    sql: str
    """The statement, without the lines of name and description."""

    def filled(self, **parameters: Any) -> str:
        """Returns the statement with values in place of parameters. The first line is the description, as a comment."""
        return fill_in(f"-- {self.description}\n{self.sql}", parameters)


@dataclass(frozen=True)
class Macro:
    """A macro of the catalogue."""

    name: str
    parameters: str
    """Names of the parameters, separated by commas."""
    description: str
    example: str
    """A SELECT that uses the macro. Possible parameters: $run, $other_run, $layer, $feature, $concept, $pattern,
    $trace."""
    sql: str
    """The CREATE MACRO statement."""

    @property
    def is_table(self) -> bool:
        """Whether the macro returns a table instead of a single value."""
        return " AS TABLE\n" in self.sql

    @property
    def statements(self) -> tuple[str, str]:
        """The CREATE MACRO statement, and the COMMENT statement with the description."""
        return self.sql, comment_on(self.name, self.description, self.is_table)


@cache
def named_queries() -> Mapping[str, NamedQuery]:
    """Returns the queries of the report and the explorer, by name."""
    found = [query for name in QUERY_FILES for query in read_queries(name)]
    queries = {query.name: query for query in found}
    assert len(queries) == len(found), "two queries have one name"
    return queries


@cache
def questions() -> tuple[NamedQuery, ...]:
    """Returns the queries of docs/queries.md, in order. The description of a query is its question."""
    return tuple(read_queries("questions"))


@cache
def macros() -> tuple[Macro, ...]:
    """Returns all macros. Each macro comes after the macros that it uses."""
    found = []
    for name, text in _statements("macros"):
        description, example, sql = text.split("\n", 2)
        (parameters,) = re.findall(rf"MACRO {name}\(([^)]*)\)", sql)
        example = example.removeprefix("-- example: ")
        found.append(Macro(name, parameters, description.removeprefix("-- "), example, sql))
    return tuple(found)


def comment_on(macro: str, text: str, is_table: bool = False) -> str:
    """Returns the statement that stores a comment on a macro. The column `comment` of duckdb_functions() shows it."""
    return f"COMMENT ON MACRO {'TABLE ' if is_table else ''}{macro} IS {quoted(text)}"


def read_queries(file: str, folder: Path = FOLDER) -> list[NamedQuery]:
    """Returns the queries in the file `file`.sql of `folder`."""
    found = []
    for name, text in _statements(file, folder):
        description, sql = text.split("\n", 1)
        found.append(NamedQuery(name, description.removeprefix("-- "), sql))
    return found


def _statements(file: str, folder: Path = FOLDER) -> list[tuple[str, str]]:
    """Returns the name and the text of each statement in the file `file`.sql of `folder`."""
    parts = _NAME.split((folder / f"{file}.sql").read_text())
    assert not parts[0].strip(), f"{file}.sql does not begin with a name"
    return list(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))


def fill_in(sql: str, parameters: Mapping[str, Any]) -> str:
    """Returns `sql` with each $parameter replaced by its value as an SQL literal. Raises KeyError if a value is
    missing."""
    return _PARAMETER.sub(lambda match: quoted(parameters[match[1]]), sql)


def quoted(value: Any) -> str:
    """Returns `value` as an SQL literal. `value` is a text, a number, or a list of texts and numbers."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(quoted, value))}]"
    return str(value)
