"""Query results as text: a table for the terminal, CSV and JSON for programs."""

import csv
import datetime
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

import pyarrow as pa
from tabulate import tabulate

Format = Literal["table", "csv", "json"]


@runtime_checkable
class TextStream(Protocol):
    """A text file, or anything with its `write`."""

    def write(self, text: str, /) -> object:
        """Write `text`."""


_NARROWEST = 8
"""Minimum width of a column in characters, if the terminal is too narrow."""
_GAP = 2
"""Spaces between columns; tabulate makes a column at least this much wider than its heading."""
_SHORT_FLOATS = (pa.float16(), pa.float32())


def write_result(
    result: pa.RecordBatchReader, style: Format, stream: TextStream, width: int | None = None
) -> None:
    """Write `result` to `stream`: CSV and JSON row by row, a table at once.

    CSV and JSON contain complete values: nested ones as JSON, bytes in hexadecimal, intervals as text; NaN and
    infinity are null in JSON. A table has six digits per float, escapes line breaks, and cuts long cells to fit
    `width` characters.
    Raises ValueError if two columns of JSON have the same name, or if reading the result fails.
    """
    if style == "csv":
        _write_csv(result, stream)
    elif style == "json":
        _write_json(result, stream)
    else:
        _write_table(result, stream, width)


def _write_csv(result: pa.RecordBatchReader, stream: TextStream) -> None:
    """A header, then one line per row; null is an empty field."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(result.schema.names)
    for row in rows_of(result):
        writer.writerow([_field(value) for value in row])


def _write_json(result: pa.RecordBatchReader, stream: TextStream) -> None:
    """An array with one object per row, each on its own line."""
    names = result.schema.names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two columns are named {name!r}; tell them apart with AS")
    separator = "[\n"
    for row in rows_of(result):
        values = {name: finite(value) for name, value in zip(names, row, strict=True)}
        stream.write(separator + json.dumps(values, ensure_ascii=False))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def _write_table(result: pa.RecordBatchReader, stream: TextStream, width: int | None) -> None:
    """Aligned columns, numbers right-aligned."""
    names = [printable(name) for name in result.schema.names]
    numeric = [_is_number(field.type) for field in result.schema]
    rows = [[cell(value) for value in row] for row in rows_of(result)]
    if width is not None:
        names, rows = _shorten(names, rows, width)
    lines = tabulate(
        rows,
        headers=names,
        tablefmt="simple",
        disable_numparse=True,
        preserve_whitespace=True,
        colalign=["right" if number else "left" for number in numeric] if rows else None,
    )
    stream.write(lines + "\n")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def rows_of(result: pa.RecordBatchReader) -> Iterator[tuple[Any, ...]]:
    """Rows of JSON values; floats may be NaN or infinite."""
    for batch in result:
        yield from zip(*(_values(column) for column in batch.columns), strict=True)


def _values(column: pa.Array) -> list[Any]:
    """Values of a column; a float32 as the shortest decimal that rounds to it: 0.1, not 0.10000000149."""
    if column.type in _SHORT_FLOATS:
        return column.cast(pa.string()).cast(pa.float64()).to_pylist()
    return [_plain(value) for value in column.to_pylist(maps_as_pydicts="lossy")]


def _plain(value: object) -> Any:
    """`value` as a JSON value."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Decimal():
            # DuckDB's sums of integers are decimals without fraction
            return int(value) if value == value.to_integral_value() else float(value)
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() if not isinstance(value, pa.MonthDayNano):
            return [_plain(item) for item in value]
    return _text(value)


def _text(value: Any) -> str:
    """A value without a JSON type as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pa.MonthDayNano):
        return f"{value.months} months {value.days} days {value.nanoseconds / 1e9:g} seconds"
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def finite(value: Any) -> Any:
    """A JSON value with None for NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _field(value: Any) -> Any:
    """`value` as a CSV field."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(finite(value), ensure_ascii=False) if isinstance(value, dict | list) else value


def cell(value: Any) -> str:
    """`value` as a table cell in one line: NULL for None, six digits per float."""
    if value is None:
        return "NULL"
    return f"{value:.6g}" if isinstance(value, float) else printable(str(_field(value)))


def printable(text: str) -> str:
    """`text` with line breaks and control characters, which tokens contain, escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shorten(names: list[str], rows: list[list[str]], width: int) -> tuple[list[str], list[list[str]]]:
    """Names and rows with the longest cells cut to fit `width`, unless a column becomes too narrow."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    longest = [
        max([len(name) + _GAP, *map(len, column)]) for name, column in zip(names, columns, strict=True)
    ]
    room = width - _GAP * (len(longest) - 1)
    cap = max(longest)
    while cap > _NARROWEST and sum(min(cap, length) for length in longest) > room:
        cap -= 1
    return [_cut(name, cap - _GAP) for name in names], [[_cut(cell, cap) for cell in row] for row in rows]


def _cut(cell: str, length: int) -> str:
    """`cell` cut to `length` characters."""
    return cell if len(cell) <= length else cell[: length - 1] + "…"
