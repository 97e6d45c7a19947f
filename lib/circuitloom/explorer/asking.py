"""Questions to the catalogue, from any thread, with the SQL that was asked kept beside the answer."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from ..catalog.entry import NAME, open_catalog
from ..core.errors import first_line
from .queries import query

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a statement gave."""

    sql: str
    rows: list[Row]

    @property
    def first(self) -> Row:
        """The first row; empty where there is none."""
        return self.rows[0] if self.rows else {}


class Asking:
    """The catalogue of one study, opened again when it was made anew."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where `folder` has no catalogue that can be read."""
        self.folder = folder
        self._changed = threading.Condition()
        self._asking = 0
        self._state: tuple[int, int] | None = None
        self._connection: DuckDBPyConnection | None = None
        with self._cursor():
            pass

    def ask(self, name: str, **names: Any) -> Answer:
        """The answer to a named query. Raises ValueError, in one line, where it fails."""
        return self.run(query(name, names))

    def run(self, sql: str) -> Answer:
        """The answer to one of our own statements; those of users go through the sandbox instead."""
        with self._cursor() as cursor:
            try:
                cursor.execute(sql)
                names = [column[0] for column in cursor.description or []]
                return Answer(sql, [dict(zip(names, row, strict=True)) for row in cursor.fetchall()])
            except duckdb.Error as error:
                raise ValueError(f"{self.folder / NAME}: {first_line(error)}") from error

    @property
    def edition(self) -> Any:
        """Which making of the catalogue answers now: another one after it was made anew."""
        with self._cursor():
            return self._state

    @property
    def spacing(self) -> str:
        """What stands between two tokens of a text."""
        return self.run("SELECT spacing() AS spacing").first["spacing"]

    def words(self, run: str, features: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], list[str]]:
        """Layer and number of features to the tokens that they fire on most; empty where that is not tabulated."""
        return self._tokens("words", run, features)

    def promoted(self, run: str, features: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], list[str]]:
        """Layer and number of features to the tokens whose logits they raise most."""
        return self._tokens("promoted", run, features)

    def _tokens(
        self, name: str, run: str, features: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], list[str]]:
        if not features:
            return {}
        layers, numbers = (sorted({place[i] for place in features}) for i in (0, 1))
        found = self.ask(name, run=run, layers=layers, features=numbers).rows
        return {(row["layer"], row["feature"]): row["tokens"][:3] for row in found}

    @contextmanager
    def _cursor(self) -> Iterator[DuckDBPyConnection]:
        """A way to the connection for one question: threads must not share one."""
        with self._changed:
            self._renew()
            assert self._connection is not None
            cursor = self._connection.cursor()
            # a cursor does not take over what the connection was told
            cursor.execute("SET parquet_metadata_cache = true")
            self._asking += 1
        try:
            yield cursor
        finally:
            cursor.close()
            with self._changed:
                self._asking -= 1
                self._changed.notify_all()

    def _renew(self) -> None:
        """Open the catalogue where it is not open, or was made anew since."""
        file = self.folder / NAME
        status = file.stat() if file.is_file() else None
        state = (status.st_ino, status.st_mtime_ns) if status else None
        if self._connection is not None and state == self._state:
            return
        # as long as anything holds the old file open, DuckDB would give it to us again
        self._changed.wait_for(lambda: not self._asking)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._connection = open_catalog(self.folder)
        self._state = state
