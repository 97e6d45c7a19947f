"""The catalogue's SQL: macros, and the named queries of the report, the explorer and docs/queries.md.

Each file holds statements of this form; `$run` is a parameter, and macros have an example as well:

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
"""Files of `named_queries`; names are unique across them."""
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_PARAMETER = re.compile(r"\$([A-Za-z_]\w*)")


@dataclass(frozen=True)
class NamedQuery:
    """A SELECT with parameters."""

    name: str
    description: str
    """One line: what the rows are."""
    sql: str
    """Without name and description."""

    def filled(self, **parameters: Any) -> str:
        """The statement with its parameters as literals, headed by its description; runs as it stands."""
        return fill_in(f"-- {self.description}\n{self.sql}", parameters)


@dataclass(frozen=True)
class Macro:
    """A macro of the catalogue."""

    name: str
    parameters: str
    """Comma-separated, as in the definition."""
    description: str
    example: str
    """A SELECT with the parameters $run, $other_run, $layer, $feature, $concept, $pattern and $trace."""
    sql: str
    """The CREATE MACRO statement."""

    @property
    def is_table(self) -> bool:
        """Whether it returns a table, not a value."""
        return " AS TABLE\n" in self.sql


@cache
def named_queries() -> Mapping[str, NamedQuery]:
    """Queries of the report and the explorer, by name."""
    found = [query for name in QUERY_FILES for query in read_queries(name)]
    queries = {query.name: query for query in found}
    assert len(queries) == len(found), "two queries have one name"
    return queries


@cache
def questions() -> tuple[NamedQuery, ...]:
    """Questions that researchers ask, in order; the description is the question."""
    return tuple(read_queries("questions"))


@cache
def macros() -> tuple[Macro, ...]:
    """All macros, each after those that it uses."""
    found = []
    for name, text in _statements("macros"):
        description, example, sql = text.split("\n", 2)
        (parameters,) = re.findall(rf"MACRO {name}\(([^)]*)\)", sql)
        example = example.removeprefix("-- example: ")
        found.append(Macro(name, parameters, description.removeprefix("-- "), example, sql))
    return tuple(found)


def read_queries(file: str) -> list[NamedQuery]:
    """The queries of one file, by its name without .sql."""
    found = []
    for name, text in _statements(file):
        description, sql = text.split("\n", 1)
        found.append(NamedQuery(name, description.removeprefix("-- "), sql))
    return found


def _statements(file: str) -> list[tuple[str, str]]:
    """Name and text of each statement of a file."""
    parts = _NAME.split((FOLDER / f"{file}.sql").read_text())
    assert not parts[0].strip(), f"{file}.sql does not begin with a name"
    return list(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))


def fill_in(sql: str, parameters: Mapping[str, Any]) -> str:
    """`sql` with each $parameter replaced by its value as an SQL literal. Raises KeyError if one is missing."""
    return _PARAMETER.sub(lambda match: quoted(parameters[match[1]]), sql)


def quoted(value: Any) -> str:
    """`value` as an SQL literal: text, a number, or a list of these."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(quoted, value))}]"
    return str(value)
