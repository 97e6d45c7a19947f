"""Writes query results as text: as a table for the terminal, or as CSV or JSON for programs."""

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
    """A text file, or any object with the `write` method of a text file."""

    def write(self, text: str, /) -> object:
        """Write `text`."""


_NARROWEST = 8
"""Minimum width of a cut column, in characters."""
_GAP = 2
"""Number of spaces between columns. tabulate makes a column wider than its heading by at least this number."""
_SHORT_FLOATS = (pa.float16(), pa.float32())


def write_result(
    result: pa.RecordBatchReader, style: Format, stream: TextStream, width: int | None = None
) -> None:
    """Write `result` to `stream`. CSV and JSON are written row by row.

    CSV and JSON contain complete values. Nested values are written as JSON, bytes in hexadecimal, and intervals as
    text. NaN and infinity become null in JSON. A table shows floats with six digits and escapes line breaks. Long cells
    are cut to fit a line into `width` characters.

    Raises ValueError if reading `result` fails. For JSON, also raises ValueError if two columns have the same name.
    """
    if style == "csv":
        _write_csv(result, stream)
    elif style == "json":
        _write_json(result, stream)
    else:
        _write_table(result, stream, width)


def _write_csv(result: pa.RecordBatchReader, stream: TextStream) -> None:
    """Write a header line, then one line per row. Null becomes an empty field."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(result.schema.names)
    for row in rows_of(result):
        writer.writerow([_field(value) for value in row])


def _write_json(result: pa.RecordBatchReader, stream: TextStream) -> None:
    """Write a JSON array with one object per row. Each object is on its own line."""
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
    """Write a table with aligned columns. Numbers are aligned right, text left."""
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
    """Yields each row as a tuple of JSON values. Floats may be NaN or infinite."""
    for batch in result:
        yield from zip(*(_values(column) for column in batch.columns), strict=True)


def _values(column: pa.Array) -> list[Any]:
    """Returns the JSON values of a column. A float32 becomes its shortest decimal number: 0.1 instead of
    0.10000000149."""
    if column.type in _SHORT_FLOATS:
        return column.cast(pa.string()).cast(pa.float64()).to_pylist()
    return [_plain(value) for value in column.to_pylist(maps_as_pydicts="lossy")]


def _plain(value: object) -> Any:
    """Converts `value` to a JSON value."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Decimal():
            # the sum of integers is a decimal without fraction in DuckDB
            return int(value) if value == value.to_integral_value() else float(value)
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() if not isinstance(value, pa.MonthDayNano):
            return [_plain(item) for item in value]
    return _text(value)


def _text(value: Any) -> str:
    """Returns the text for a value that has no JSON type."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pa.MonthDayNano):
        return f"{value.months} months {value.days} days {value.nanoseconds / 1e9:g} seconds"
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def finite(value: Any) -> Any:
    """Returns a JSON value with None in place of NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _field(value: Any) -> Any:
    """Converts `value` to a CSV field."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(finite(value), ensure_ascii=False) if isinstance(value, dict | list) else value


def cell(value: Any) -> str:
    """Returns the text of a table cell in one line. None becomes NULL. A float has six digits."""
    if value is None:
        return "NULL"
    return f"{value:.6g}" if isinstance(value, float) else printable(str(_field(value)))


def printable(text: str) -> str:
    """Escapes line breaks and control characters in `text`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shorten(names: list[str], rows: list[list[str]], width: int) -> tuple[list[str], list[list[str]]]:
    """Cuts the longest names and cells to fit a line into `width` characters. No column is cut below `_NARROWEST`."""
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
    """Cuts `cell` to `length` characters. The last character of a cut cell is "…"."""
    return cell if len(cell) <= length else cell[: length - 1] + "…"
