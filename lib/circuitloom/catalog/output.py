"""Results of statements as text: a table to look at, CSV and JSON for other programs."""

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
class Stream(Protocol):
    """What text is written to."""

    def write(self, text: str, /) -> object:
        """Take `text`."""


_NARROWEST = 8
"""Characters that a column keeps where the terminal is too narrow for all."""
_GAP = 2
"""Spaces between columns; a heading's column is wider than it by as much."""
_SHORT_FLOATS = (pa.float16(), pa.float32())


def write_result(
    result: pa.RecordBatchReader, style: Format, stream: Stream, width: int | None = None
) -> None:
    """Write `result` to `stream`: `csv` and `json` row by row as they are found, `table` at once.

    `csv` and `json` hold whole values: nested ones as JSON, bytes as hexadecimal digits, intervals as text. JSON
    has neither NaN nor infinity: they are null there. In a table long cells are cut where lines would be longer
    than `width` characters, floats have six digits, and a line break is written as such.

    Raises:
        ValueError: two columns of JSON have one name, or reading the result fails.
    """
    if style == "csv":
        _write_csv(result, stream)
    elif style == "json":
        _write_json(result, stream)
    else:
        _write_table(result, stream, width)


def _write_csv(result: pa.RecordBatchReader, stream: Stream) -> None:
    """A header and a line a row; null is an empty field."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(result.schema.names)
    for row in rows_of(result):
        writer.writerow([_field(value) for value in row])


def _write_json(result: pa.RecordBatchReader, stream: Stream) -> None:
    """An array with an object a row, each on its own line."""
    names = result.schema.names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two columns are named {name!r}; tell them apart with AS")
    separator = "[\n"
    for row in rows_of(result):
        values = {name: _finite(value) for name, value in zip(names, row, strict=True)}
        stream.write(separator + json.dumps(values, ensure_ascii=False))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def _write_table(result: pa.RecordBatchReader, stream: Stream, width: int | None) -> None:
    """Aligned columns, numbers to the right."""
    names = [_printable(name) for name in result.schema.names]
    numeric = [_is_number(field.type) for field in result.schema]
    rows = [[_cell(value) for value in row] for row in rows_of(result)]
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
    """Whether a column of type `kind` is aligned to the right."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def rows_of(result: pa.RecordBatchReader) -> Iterator[tuple[Any, ...]]:
    """Rows of values that JSON knows, NaN and infinity besides."""
    for batch in result:
        yield from zip(*(_values(column) for column in batch.columns), strict=True)


def _values(column: pa.Array) -> list[Any]:
    """A column's values; a single-precision float as the shortest number that rounds to it, so 0.1 as 0.1."""
    if column.type in _SHORT_FLOATS:
        return column.cast(pa.string()).cast(pa.float64()).to_pylist()
    return [_plain(value) for value in column.to_pylist(maps_as_pydicts="lossy")]


def _plain(value: object) -> Any:
    """`value` in terms of JSON."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Decimal():
            # sums of integers are decimals without fraction
            return int(value) if value == value.to_integral_value() else float(value)
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() if not isinstance(value, pa.MonthDayNano):
            return [_plain(item) for item in value]
    return _text(value)


def _text(value: Any) -> str:
    """`value`, which JSON has no type for, as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pa.MonthDayNano):
        return f"{value.months} months {value.days} days {value.nanoseconds / 1e9:g} seconds"
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _field(value: Any) -> Any:
    """`value` in a field of CSV."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(_finite(value), ensure_ascii=False) if isinstance(value, dict | list) else value


def _cell(value: Any) -> str:
    """`value` in a table."""
    if value is None:
        return "NULL"
    return f"{value:.6g}" if isinstance(value, float) else _printable(str(_field(value)))


def _printable(text: str) -> str:
    """`text` in one line: tokens hold line breaks, and other characters that a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shorten(names: list[str], rows: list[list[str]], width: int) -> tuple[list[str], list[list[str]]]:
    """Both with the longest cells cut, so that a line takes `width` characters, if no column gets too narrow."""
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
    """At most `length` characters of `cell`."""
    return cell if len(cell) <= length else cell[: length - 1] + "…"
