"""Reads the rows of one column of a Parquet file. Row groups before the start are not read."""

from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .rows import NULL_ROW, Render, Row, no_column, not_text

_BATCH = 1000
"""Number of rows decoded at a time. A row group may not fit into memory."""


def parquet_rows(
    path: str, file: BufferedReader, column: str, start: int, render: Render | None = None
) -> Iterator[str | Row]:
    """Yield the rows of a Parquet file from index `start`.

    `column` holds strings, or bytes in UTF-8, or chat messages that `render` turns into text. Dots in its name lead
    into nested columns, unless a column's name has dots. Raises ValueError if there is no such column, or if it holds
    something else.
    """
    parquet = pq.ParquetFile(file)
    found = _find_column(path, column, parquet.schema_arrow)
    if found is None:
        others = _text_columns(parquet.schema_arrow) if render is None else []
        raise no_column(path, column, others or parquet.schema_arrow.names, render)
    names, kind = found
    if render is None:
        _check_text(path, column, kind, parquet.schema_arrow)
    elif not _is_chat(kind):
        raise ValueError(
            f"corpus.messages: {path}: column {column} is {kind}, not a list of role and content"
        )
    padded = _is_fixed_size(kind)
    groups, skipped = _groups_from(parquet.metadata, start)
    for batch in parquet.iter_batches(_BATCH, row_groups=groups, columns=[column]) if groups else ():
        values = _values(batch, names)
        values = values if render else _as_bytes(values)
        for value in values[skipped:].to_pylist():
            yield NULL_ROW if value is None else render(value) if render else _decode(value, column, padded)
        skipped = max(0, skipped - len(batch))


def parquet_bytes(file: BufferedReader) -> int:
    """Returns the size in bytes of the uncompressed contents of a Parquet file."""
    metadata = pq.read_metadata(file)
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _groups_from(metadata: pq.FileMetaData, start: int) -> tuple[list[int], int]:
    """Returns the row groups that contain rows from index `start`, and the number of their rows before `start`."""
    first = 0
    while first < metadata.num_row_groups and start >= metadata.row_group(first).num_rows:
        start -= metadata.row_group(first).num_rows
        first += 1
    return list(range(first, metadata.num_row_groups)), start


def _find_column(path: str, column: str, schema: pa.Schema) -> tuple[list[str], pa.DataType] | None:
    """Returns the names of the nested fields that lead to the column, and its type. Returns None if there is no such
    column."""
    names = [column] if column in schema.names else column.split(".")
    if schema.names.count(names[0]) > 1:
        raise ValueError(f"corpus.text: {path} has several columns {names[0]}; rename one of them")
    kind: pa.DataType = pa.struct(list(schema))
    for name in names:
        fields = _fields(kind)
        if name not in fields:
            return None
        kind = fields[name]
    return names, kind


def _check_text(path: str, column: str, kind: pa.DataType, schema: pa.Schema) -> None:
    """Raise ValueError if a column is not text."""
    if _is_text(kind):
        return
    others = ", ".join(_text_columns(schema)[:20])
    remedy = f"set it to one of {others}" if others else "write the text into a column of strings"
    if _is_chat(kind):
        remedy = "name chat messages in corpus.messages instead"
    raise ValueError(f"corpus.text: {path}: column {column} is {kind}, not text; {remedy}")


def _is_chat(kind: pa.DataType) -> bool:
    """Whether values are lists of chat messages."""
    is_list = isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
    return is_list and {"role", "content"} <= set(_fields(kind.value_type))


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in kind} if isinstance(kind, pa.StructType) else {}


def _text_columns(fields: pa.Schema | list[pa.Field], before: str = "") -> list[str]:
    """Returns the names of all columns of text. Names of nested columns follow a dot."""
    names = []
    for field in fields:
        if isinstance(field.type, pa.StructType):
            names += _text_columns(list(field.type), f"{before}{field.name}.")
        elif _is_text(field.type):
            names.append(before + field.name)
    return names


def _is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):
        return _is_text(kind.value_type)
    types = pa.types
    tests = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary,
        types.is_binary_view, types.is_fixed_size_binary, types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _is_fixed_size(kind: pa.DataType) -> bool:
    """Whether values are bytes of one length."""
    return pa.types.is_fixed_size_binary(kind.value_type if isinstance(kind, pa.DictionaryType) else kind)


def _values(batch: pa.RecordBatch, names: list[str]) -> pa.Array:
    """Returns the values of a column. `names` lead to it."""
    column: Any = batch.column(names[0])
    for name in names[1:]:
        # unlike `field`, `flatten` gives null where the struct is null
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _as_bytes(column: pa.Array) -> pa.Array:
    """Returns a column of text as bytes, because Arrow does not check that strings are UTF-8."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary())


def _decode(value: bytes, column: str, padded: bool) -> str | Row:
    if padded and b"\0" in value:
        return not_text(f"{column} is filled up with NUL to a fixed size (from position {value.index(0)})")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{value[error.start]:02x} at position {error.start}"
        return not_text(f"{column} is not UTF-8 ({byte})")
