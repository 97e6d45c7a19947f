"""Questions to a study's catalogue, each kept with its SQL and the rows that came out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from ..catalog.entry import open_sandbox, run_statement
from ..catalog.output import rows_of
from ..catalog.questions import fill_in
from .queries import query

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a query gave."""

    name: str
    """Of the query, with what it was asked of behind a colon: unique in a report."""
    sql: str
    """As it was run, and as `python -m circuitloom sql` runs it."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def about(self) -> str:
        """What the rows are, as the first line of the SQL says."""
        return self.sql.partition("\n")[0].removeprefix("-- ")

    @property
    def data(self) -> dict[str, Any]:
        """Columns and rows as JSON has them."""
        return {
            "columns": self.columns,
            "rows": [[row[column] for column in self.columns] for row in self.rows],
        }


@dataclass(frozen=True)
class Catalogue:
    """A study's catalogue, and everything that was asked of it."""

    connection: DuckDBPyConnection
    asked: list[Answer] = field(default_factory=list)

    def ask(self, name: str, of: str = "", **values: Any) -> Answer:
        """The answer to the query `name`, with `values` filled in; `of` tells it from others by the same query.

        Raises ValueError where the catalogue cannot be read.
        """
        sql = fill_in(query(name), values)
        result = run_statement(self.connection, sql)
        columns = tuple(result.schema.names)
        rows = tuple(dict(zip(columns, row, strict=True)) for row in rows_of(result))
        full = f"{name}:{of}" if of else name
        answer = Answer(full, sql, columns, rows)
        assert full not in {each.name for each in self.asked}
        self.asked.append(answer)
        return answer


def open_catalogue(folder: Path) -> Catalogue:
    """The catalogue of the study in `folder`.

    Raises ValueError, with the remedy, where there is none.
    """
    return Catalogue(open_sandbox(folder))
