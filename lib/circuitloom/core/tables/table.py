"""Schema of a table, columns that tables share, and functions that write and read tables with page checksums."""

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
    """Schema of a table. Each Parquet file of the table is called `name`.parquet."""

    name: str
    meaning: str
    key: tuple[str, ...]
    columns: dict[str, tuple[pa.DataType, str]]
    """Maps each column to (type, meaning). The meaning is one line and includes the unit."""

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema. The metadata of each field has the meaning of the column."""
        fields = [pa.field(n, t, metadata={"meaning": meaning}) for n, (t, meaning) in self.columns.items()]
        return pa.schema(fields, metadata={"table": self.name, "key": ", ".join(self.key)})


STRING, FLOAT, INT = pa.string(), pa.float64(), pa.int64()
"""Arrow types of most columns."""
SEQUENCE = (pa.int32(), "row of the split's token array")
POSITION = (pa.int16(), "position in the sequence, from 0 (the BOS, if the tokenizer has one)")
RUN_NAME = (STRING, "name of the dictionary's run")
LAYER = (pa.int16(), "block of the model, from 0")
FEATURE_INDEX = (pa.int32(), "index of the feature, from 0")


def write_table(table: Table, rows: pa.Table | Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Cast `rows` to the table's schema and write them to `path`, completely or not at all.

    Raises ValueError if a column is missing, is unknown, or has another type.
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
    with atomic_path(path) as temporary:
        # DuckDB reads damaged bytes without an error, but pyarrow detects them with page checksums
        pq.write_table(columns, temporary, compression="zstd", write_page_checksum=True)


@contextmanager
def table_writer(
    table: Table, path: Path | str, plain: Sequence[str] = (), uncompressed: Sequence[str] = ()
) -> Iterator[pq.ParquetWriter]:
    """Context manager that yields a writer of a table in several parts.

    The file `path` appears when the context ends. After an error, an earlier file at `path` is unchanged. Columns in
    `plain` are not dictionary-encoded, because few values repeat. Columns in `uncompressed` are not compressed, because
    they are read often.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    compression: Any = {name: "none" if name in uncompressed else "zstd" for name in table.columns}
    dictionary: Any = [name for name in table.columns if name not in plain] if plain else True
    options = {"compression": compression if uncompressed else "zstd", "use_dictionary": dictionary}
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, table.schema, write_page_checksum=True, **options) as writer,
    ):
        yield writer


def read_table(
    path: Path | str, rows: pc.Expression | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Returns the rows of a table that match the filter `rows` (default: all rows), with the `columns` (default: all).

    Verifies page checksums.

    Raises ValueError, with the name of the file, if the file is damaged.
    """
    try:
        return pq.read_table(
            path,
            columns=None if columns is None else list(columns),
            filters=rows,
            page_checksum_verification=True,
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)}); delete it and run again") from error
