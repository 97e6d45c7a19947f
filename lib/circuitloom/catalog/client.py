"""Reads a study's catalogue.

`open_catalog` is for notebooks. `CatalogClient` is for the report, the explorer and scripts.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from ..core.layout import Layout
from .output import rows_of
from .queries import named_queries

BATCH = 10_000
"""Number of rows that are read at a time."""
_MESSAGE = 500
"""Maximum length in characters of a DuckDB message. Longer messages are cut, because they may list every overload of a
function."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A query and its rows."""

    name: str
    """Name of the named query. Empty for any other SQL."""
    sql: str
    """The statement that was run. `circuitloom sql` can run it again."""
    columns: tuple[str, ...]
    rows: list[Row]

    @property
    def description(self) -> str:
        """The comment in the first line of a named query. It says what the rows are."""
        return self.sql.partition("\n")[0].removeprefix("-- ")

    @property
    def first(self) -> Row:
        """The first row, or an empty dict if there are no rows."""
        return self.rows[0] if self.rows else {}

    @property
    def data(self) -> dict[str, Any]:
        """The answer for JSON: `columns` is a list of names, and `rows` a list with one list of values per row."""
        rows = [[row[column] for column in self.columns] for row in self.rows]
        return {"columns": self.columns, "rows": rows}


class CatalogClient:
    """Runs queries on the catalogue of one study. It can be used from any thread.

    The client reopens the catalogue after the file is rebuilt. Raises ValueError, with the remedy, if `folder` has no
    readable catalogue.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changed = threading.Condition()
        self._running = 0
        self._edition: tuple[int, int] | None = None
        self._connection: DuckDBPyConnection | None = None
        with self._cursor():
            pass

    def ask(self, query: str, /, **parameters: Any) -> Answer:
        """Run a named query and return its answer. Raises ValueError with a one-line message if the query fails."""
        return self.run(named_queries()[query].filled(**parameters), query)

    def run(self, sql: str, name: str = "") -> Answer:
        """Run trusted SQL and return its answer. Raises ValueError if the query fails.

        SQL from a user is not trusted. Run such SQL with `sandbox.run_statement`.
        """
        with self._cursor() as cursor:
            try:
                result = cursor.sql(sql).to_arrow_reader(BATCH)
                columns = tuple(result.schema.names)
                rows = [dict(zip(columns, row, strict=True)) for row in rows_of(result)]
            except duckdb.Error as error:
                raise ValueError(f"{Layout(self.folder).catalog}: {one_line(error)}") from error
        return Answer(name, sql, columns, rows)

    @property
    def edition(self) -> Any:
        """Identifies the catalogue file. The value changes when the catalogue is rebuilt."""
        with self._cursor():
            return self._edition

    @property
    def spacing(self) -> str:
        """Text between two tokens. It is empty if tokens contain their own blanks, and one blank otherwise."""
        return self.run("SELECT spacing() AS spacing").first["spacing"]

    def words(self, run: str, features: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], list[str]]:
        """Maps each (layer, feature) to at most three tokens: those on which the feature fires most.

        Features without examples are left out.
        """
        return self._tokens("words", run, features)

    def promoted(self, run: str, features: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], list[str]]:
        """Maps each (layer, feature) to at most three tokens: those whose logits the feature raises most."""
        return self._tokens("promoted", run, features)

    def _tokens(
        self, query: str, run: str, features: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], list[str]]:
        if not features:
            return {}
        layers, numbers = (sorted({feature[i] for feature in features}) for i in (0, 1))
        rows = self.ask(query, run=run, layers=layers, features=numbers).rows
        return {(row["layer"], row["feature"]): row["tokens"][:3] for row in rows}

    @contextmanager
    def _cursor(self) -> Iterator[DuckDBPyConnection]:
        """Yields a new cursor for one query, because threads must not share a cursor."""
        with self._changed:
            self._reopen_if_rebuilt()
            assert self._connection is not None
            cursor = self._connection.cursor()
            # a cursor does not inherit the connection's settings
            cursor.execute("SET parquet_metadata_cache = true")
            self._running += 1
        try:
            yield cursor
        finally:
            cursor.close()
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _reopen_if_rebuilt(self) -> None:
        file = Layout(self.folder).catalog
        status = file.stat() if file.is_file() else None
        edition = (status.st_ino, status.st_mtime_ns) if status else None
        if self._connection is not None and edition == self._edition:
            return
        # while a query still holds the old file open, DuckDB would open the old file again
        self._changed.wait_for(lambda: not self._running)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._connection = open_catalog(self.folder)
        self._edition = edition


def open_catalog(path: Path | str) -> DuckDBPyConnection:
    """Open a read-only connection to the catalogue at `path`, which is a study's folder or the catalogue file.

    Large sorts may write to a temporary folder next to the catalogue.
    Raises ValueError if there is no catalogue or if it cannot be read.

    >>> open_catalog("results/quickstart").sql("SELECT run, layer, fvu FROM metric ORDER BY fvu").fetchall()
    """
    file = find_catalog(path)
    try:
        connection = duckdb.connect(str(file), read_only=True)
    except duckdb.Error as error:
        raise _unreadable(file, error) from error
    return prepare(connection, file, ["SET parquet_metadata_cache = true"])


def find_catalog(path: Path | str) -> Path:
    """Returns the path of the catalogue file at `path`, which is a study's folder or the file itself.

    Symbolic links in the path of the file's folder are resolved, because DuckDB compares resolved paths. Raises
    ValueError if there is no catalogue.
    """
    path = Path(path)
    file = Layout(path).catalog if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no catalogue at {file}; make it with `snakemake catalog`")
    return file.parent.resolve() / file.name


def prepare(connection: DuckDBPyConnection, file: Path, statements: Sequence[str]) -> DuckDBPyConnection:
    """Run `statements` on `connection` and return it.

    Also reads the definitions of all views, which detects a damaged file. If a statement fails, closes the connection
    and raises ValueError.
    """
    try:
        for statement in [*statements, "SELECT count(sql) FROM duckdb_views()"]:
            connection.execute(statement).fetchall()
    except duckdb.Error as error:
        connection.close()
        raise _unreadable(file, error) from error
    return connection


def _unreadable(file: Path, error: duckdb.Error) -> ValueError:
    """Returns the ValueError to raise if DuckDB cannot open the catalogue. Its message names the remedy."""
    text = one_line(error)
    if isinstance(error, duckdb.ConnectionException):
        return ValueError(f"{file} is open in this process with other settings; close that connection first")
    if "set lock" in text:
        return ValueError(f"{file} is being written by another process; try again when it has ended")
    return ValueError(f"{file} is no readable catalogue ({text}); delete it and run `snakemake catalog`")


def one_line(error: Exception) -> str:
    """Returns DuckDB's error message and hints as one line. The message's excerpt of the SQL statement is left out."""
    text = " ".join(re.split(r"\n+LINE \d+:", str(error))[0].split()) or type(error).__name__
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"
