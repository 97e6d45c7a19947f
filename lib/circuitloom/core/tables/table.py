"""What a table is, and the columns that many share. How tables are written and read: whole or not at all, with
checksums."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..atomic_io import atomic_path
from ..errors import first_line


@dataclass(frozen=True)
class Table:
    """A table: one Parquet file of this name wherever it is written."""

    name: str
    meaning: str
    key: tuple[str, ...]
    columns: dict[str, tuple[pa.DataType, str]]
    """Column to (type, one-line meaning with unit)."""

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, meanings included as field metadata."""
        fields = [pa.field(n, t, metadata={"meaning": meaning}) for n, (t, meaning) in self.columns.items()]
        return pa.schema(fields, metadata={"table": self.name, "key": ", ".join(self.key)})


STRING, FLOAT, INT = pa.string(), pa.float64(), pa.int64()
"""Types of most columns."""
SEQUENCE = (pa.int32(), "row of the split's token array")
POSITION = (pa.int16(), "place in the sequence, from 0 (the BOS in front)")
RUN_NAME = (STRING, "name of the dictionary's run")
LAYER = (pa.int16(), "block of the model, from 0")
FEATURE_INDEX = (pa.int32(), "number of the feature, from 0")


def write_table(table: Table, rows: pa.Table | Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Write `rows` (columns by name, cast to the schema) to `path`, whole or not at all.

    Raises ValueError where a column is missing, unknown or of another type.
    """
    path = Path(path)
    if isinstance(rows, pa.Table):
        columns: Any = rows
    else:
        unknown = {key for row in rows for key in row} - set(table.columns)
        if unknown:
            raise ValueError(f"table {table.name} has no column {sorted(unknown)[0]}")
        columns = pa.Table.from_pylist(list(rows), schema=table.schema)
    try:
        columns = columns.select(list(table.columns)).cast(table.schema)
    except (KeyError, pa.ArrowInvalid) as error:
        raise ValueError(f"table {table.name}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as new:
        # page checksums: DuckDB reads flipped bytes without a word, pyarrow finds them
        pq.write_table(columns, new, compression="zstd", write_page_checksum=True)


@contextmanager
def table_writer(
    table: Table, path: Path | str, plain: Sequence[str] = (), uncompressed: Sequence[str] = ()
) -> Iterator[pq.ParquetWriter]:
    """A writer of `table`'s rows, some at a time; `path` is there once all are, and after a fault is as it was.

    Columns in `plain` repeat so little that no dictionary of their values is tried; those in `uncompressed` are
    read too often to be compressed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    compression: Any = {name: "none" if name in uncompressed else "zstd" for name in table.columns}
    dictionary: Any = [name for name in table.columns if name not in plain] if plain else True
    options = {"compression": compression if uncompressed else "zstd", "use_dictionary": dictionary}
    with (
        atomic_path(path) as new,
        pq.ParquetWriter(new, table.schema, write_page_checksum=True, **options) as writer,
    ):
        yield writer


def read_table(path: Path | str, rows: pc.Expression | None = None) -> pa.Table:
    """The table in `path`, or those of its rows for which `rows` holds; the page checksums are verified.

    Raises ValueError, naming the file, where it is damaged.
    """
    try:
        return pq.read_table(path, filters=rows, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)}); delete it and run again") from error
