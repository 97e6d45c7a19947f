"""Reads the rows of JSON files: JSON Lines, an array of objects, or objects that span lines."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from ..core.errors import first_line
from .rows import BLANK_ROW, NULL_ROW, Lines, Render, Row, no_column, not_text

_LOOKAHEAD = 1000
"""Number of rows without the text's key after which a file is refused."""
_ABSENT = NULL_ROW._replace()
"""The row of an object that does not have the text's key."""
_TWICE = object()
"""Value of a key that occurs twice in an object."""
_SPACE = re.compile(r"[ \t\n\r]*")
_OBJECTS = re.compile(r"\s*\[\s*([{\]]|$)")
"""Matches the first line of an array of objects, or of an array that begins on a later line."""


def json_rows(
    lines: Lines, column: str, lines_only: bool, start: int, render: Render | None = None
) -> Iterator[str | Row]:
    """Yield the rows of a JSON file from index `start`.

    `column` is the key of the text. Dots lead into nested objects, unless an object has a key with dots. A string
    instead of an object is itself the text, unless it is in one of several arrays, which may be rows of words. `render`
    turns other values into text. Blank lines of JSON Lines are rows, so that row numbers are line numbers. If
    `lines_only`, each line must be a complete value, or the file one array. A file that is not JSON Lines is held in
    memory. Raises ValueError if the file is not JSON, or if its first thousand objects do not have the key.
    """
    key = _Key(column, render)
    found, absent = start > 0, 0
    example: dict[str, Any] = {}

    def rows() -> Iterator[str | Row]:
        nonlocal found, absent, example
        for value in _values(lines, key, lines_only, start):
            row = value if value is BLANK_ROW else key.text(value)
            if row is _ABSENT:
                example, absent = example or value, absent + 1
                if absent > _LOOKAHEAD and not found:
                    return
            elif row is not BLANK_ROW:
                found = True
            yield row

    yield from lines.marked(rows()) if start == 0 else rows()
    if absent and not found:
        raise no_column(lines.path, column, dotted_names(example), render)


def dotted_names(row: Mapping[str, Any]) -> list[str]:
    """Returns the keys of an object. The keys of nested objects follow a dot."""
    names = []
    for name, value in row.items():
        names += [f"{name}.{inner}" for inner in dotted_names(value)] if isinstance(value, dict) else [name]
    return names


def _values(lines: Lines, key: "_Key", lines_only: bool, start: int) -> Iterator[Any]:
    """Yield the values of a JSON file from index `start`, and BLANK_ROW for each blank line of JSON Lines."""
    source = iter(lines)
    head = _up_to_text(source)
    if not head or _is_blank(head[-1]):
        yield from [BLANK_ROW] * (len(head) - start)
        return
    first = head[-1]
    more = _up_to_text(source) if first.lstrip().startswith("[") else []
    head += more
    if not _is_one_line(first, bool(more) and not _is_blank(more[-1]), lines_only):
        for index, value in enumerate(_whole_values(lines.path, "".join([*head, *source]), key.decoder)):
            if index >= start:
                yield value
        return
    for index, line in enumerate(chain(head, source)):
        if index < start:
            continue
        if _is_blank(line):
            yield BLANK_ROW
            continue
        try:
            yield key.parse(line)
        except (ValueError, RecursionError) as error:
            raise _not_json(lines.path, index + 1, error) from error


def _up_to_text(source: Iterator[str]) -> list[str]:
    """Returns the lines up to and including the next line that is not blank."""
    lines = []
    for line in source:
        lines.append(line)
        if not _is_blank(line):
            break
    return lines


def _is_blank(line: str) -> bool:
    return not line or line.isspace()


def _is_one_line(line: str, has_more: bool, lines_only: bool) -> bool:
    """Whether each line of a file is a value, as in JSON Lines. `line` is the first line that is not blank, `has_more`
    whether another such line follows."""
    is_array = line.lstrip().startswith("[")
    if is_array and not has_more:
        return lines_only and not _OBJECTS.match(line)
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return lines_only and not is_array
    # arrays of objects may follow each other
    return not is_array or lines_only or not _OBJECTS.match(line)


def _not_json(path: str, line: int, error: Exception) -> ValueError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
    return ValueError(f"{path}, line {line}: not JSON ({reason}); repair or replace it")


def _whole_values(path: str, text: str, decoder: json.JSONDecoder) -> Iterator[Any]:
    """Yield the elements of each array in `text`, and all other values in `text`. Values may span lines.

    A string in an array after other values is yielded in a list, which is not text.
    """
    start = position = _skip_space(text, 0)
    try:
        while position < len(text):
            is_array, is_first = text[position] == "[", position == start
            if not is_array:
                value, position = decoder.raw_decode(text, position)
                yield value
            else:
                position = _skip_space(text, position + 1)
            more = is_array and text[position : position + 1] != "]"
            while more:
                value, position = decoder.raw_decode(text, position)
                yield value if is_first or not isinstance(value, str) else [value]
                position = _skip_space(text, position)
                if text[position : position + 1] not in (",", "]"):
                    raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
                more = text[position] == ","
                position = _skip_space(text, position + more)
            position = _skip_space(text, position + is_array)
    except (ValueError, RecursionError) as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else position
        raise _not_json(path, text.count("\n", 0, at) + 1, error) from error


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


class _Key:
    """The key of the text, which may lead into nested objects."""

    def __init__(self, name: str, render: Render | None) -> None:
        self.name = name
        self.render = render
        self.parts = name.split(".")
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._names = {name, *self.parts}
        self._quoted = [json.dumps(part, ensure_ascii=False) for part in self._names]

    def parse(self, line: str) -> Any:
        """Returns the JSON value of a line."""
        # the decoder with a hook is slow, and needed only to find a key that occurs twice
        if any(line.count(quoted) > 1 for quoted in self._quoted):
            return self.decoder.decode(line)
        return json.loads(line)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            row |= {name: _TWICE for name in self._names if keys.count(name) > 1}
        return row

    def text(self, row: Any) -> str | Row:
        """Returns the text of a row, or a `Row` that says what is there instead."""
        if isinstance(row, str):
            return self._checked(row)
        if not isinstance(row, dict):
            return not_text(f"the row is {_kind(row)}, not an object")
        value: Any = row
        for part in [self.name] if self.name in row else self.parts:
            if value is None:
                break
            if not isinstance(value, dict):
                return not_text(f"{self.name} would be inside {_kind(value)}")
            if part not in value:
                return _ABSENT
            value = value[part]
        return self._checked(value)

    def _checked(self, value: Any) -> str | Row:
        if value is None:
            return NULL_ROW
        remarks: tuple[str, ...] = ()
        if self.render is not None:
            value = self.render(value)
            if isinstance(value, Row):
                if value.text is None:
                    return value
                value, remarks = value.text, value.remarks
        if not isinstance(value, str):
            return not_text(f"{self.name} is {_kind(value)}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                character = f"\\u{ord(value[error.start]):04x} at character {error.start}"
                return not_text(f"{self.name} has half of a surrogate pair ({character})")
        return Row(value, remarks=remarks) if remarks else value


def _kind(value: Any) -> str:
    """Describes the type of a JSON value."""
    if value is _TWICE:
        return "given twice"
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return "a list of chat messages, which corpus.messages reads"
    kinds = {bool: "a truth value", int: "an integer", float: "a number", list: "a list", dict: "an object"}
    kinds |= {type(None): "null", str: "text"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def text_of(
    name: str, rows: Iterable[Mapping[str, Any]], render: Render | None = None
) -> Iterator[str | Row]:
    """Yield the text of objects that were read otherwise. `name` and `render` are those of `json_rows`."""
    key = _Key(name, render)
    for row in rows:
        yield key.text(row)
