"""Reads a study's catalogue. Notebooks use `open_catalog`. The report, the explorer and scripts use `CatalogClient`."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from ..core.feature_labels import FeatureLabel, LabelsByFeature
from ..core.formatting import escape_invisible
from ..core.layout import Layout
from .output import rows_of
from .queries import named_queries

BATCH = 10_000
"""Number of rows per read."""
_MESSAGE = 500
"""Maximum number of characters of a DuckDB message. Longer messages, such as a list of overloads, are cut."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A query and its rows."""

    name: str
    """Name of the named query. Empty for any other SQL."""
    sql: str
    """The statement. `circuitloom sql` can run it again."""
    columns: tuple[str, ...]
    rows: list[Row]

    @property
    def description(self) -> str:
        """What the rows are: the comment in the first line of a named query."""
        return self.sql.partition("\n")[0].removeprefix("-- ")

    @property
    def first(self) -> Row:
        """The first row, or an empty dict if there are no rows."""
        return self.rows[0] if self.rows else {}

    @property
    def data(self) -> dict[str, Any]:
        """The answer as JSON values: `columns` is a list of names, and `rows` is a list with one list of values per
        row."""
        rows = [[row[column] for column in self.columns] for row in self.rows]
        return {"columns": self.columns, "rows": rows}


class CatalogClient:
    """Runs queries on the catalogue of one study, from any thread. Reopens the catalogue after a rebuild.

    Raises ValueError, with the remedy, if `folder` has no readable catalogue.
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
        """Run trusted SQL and return its answer. Raises ValueError if the query fails. Run SQL from users with
        `sandbox.run_statement`."""
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
        """Text between two tokens: empty if tokens contain their own spaces, otherwise one space."""
        return self.run("SELECT spacing() AS spacing").first["spacing"]

    def words(self, run: str, features: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], list[str]]:
        """Maps each (layer, feature) to at most three tokens on which the feature fires most. Omits features without
        examples."""
        return self._tokens("words", run, features)

    def labels(self, run: str, features: Sequence[tuple[int, int]]) -> LabelsByFeature:
        """Maps each (layer, feature) to its best label. Omits features that no label describes."""
        return {
            (row["layer"], row["feature"]): FeatureLabel(escape_invisible(row["label"]), row["f1"])
            for row in self._of_features("best_labels", run, features)
        }

    def supernodes(self, trace: str, least_cosine: float) -> dict[str, list[int]]:
        """Maps the name of each supernode of a trace to its nodes, as the macro `supernodes` groups them."""
        groups: dict[str, list[int]] = {}
        for row in self.ask("supernodes", trace=trace, least_cosine=least_cosine).rows:
            groups.setdefault(escape_invisible(row["name"]), []).append(row["node"])
        return groups

    def promoted(self, run: str, features: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], list[str]]:
        """Maps each (layer, feature) to at most three tokens whose logits the feature raises most."""
        return self._tokens("promoted", run, features)

    def _tokens(
        self, query: str, run: str, features: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], list[str]]:
        rows = self._of_features(query, run, features)
        return {(row["layer"], row["feature"]): row["tokens"][:3] for row in rows}

    def _of_features(self, query: str, run: str, features: Sequence[tuple[int, int]]) -> list[Row]:
        if not features:
            return []
        layers, numbers = (sorted({feature[i] for feature in features}) for i in (0, 1))
        return self.ask(query, run=run, layers=layers, features=numbers).rows

    @contextmanager
    def _cursor(self) -> Iterator[DuckDBPyConnection]:
        """Yields a new cursor for one query. Threads must not share cursors."""
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
    """Returns the path of the catalogue at `path`, which is a study's folder or the catalogue file.

    Symbolic links in the folder's path are resolved, because DuckDB compares resolved paths. Raises ValueError if there
    is no catalogue.
    """
    path = Path(path)
    file = Layout(path).catalog if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no catalogue at {file}; make it with `snakemake catalog`")
    return file.parent.resolve() / file.name


def prepare(connection: DuckDBPyConnection, file: Path, statements: Sequence[str]) -> DuckDBPyConnection:
    """Run `statements` on `connection` and return `connection`.

    Also reads the definitions of all views, to detect a damaged file. If a statement fails, closes the connection and
    raises ValueError.
    """
    try:
        for statement in [*statements, "SELECT count(sql) FROM duckdb_views()"]:
            connection.execute(statement).fetchall()
    except duckdb.Error as error:
        connection.close()
        raise _unreadable(file, error) from error
    return connection


def _unreadable(file: Path, error: duckdb.Error) -> ValueError:
    """Returns a ValueError about a catalogue that DuckDB cannot open, with the remedy."""
    text = one_line(error)
    if isinstance(error, duckdb.ConnectionException):
        return ValueError(f"{file} is open in this process with other settings; close that connection first")
    if "set lock" in text:
        return ValueError(f"{file} is being written by another process; try again when it has ended")
    return ValueError(f"{file} is no readable catalogue ({text}); delete it and run `snakemake catalog`")


def one_line(error: Exception) -> str:
    """Returns DuckDB's error message as one line, without the excerpt of the SQL statement."""
    text = " ".join(re.split(r"\n+LINE \d+:", str(error))[0].split()) or type(error).__name__
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"
