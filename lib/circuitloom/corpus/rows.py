"""Rows of files of text, and the lines of files in UTF-8. Values are never cast: a row is either text, or it says what
else it is."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

BLANK, NULL, NOT_TEXT, BYTE_ORDER_MARK, LINE_ENDS = "blank", "null", "not_text", "bom", "line_ends"
"""Kinds of remarks on rows."""
_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""First bytes of files in UTF-16 and UTF-32."""


class Row(NamedTuple):
    """A row about which more is known than its text."""

    text: str | None
    """Text of the document. None if the row has no text."""
    log_probability: float | None = None
    """Log probability that the grammar generates the text, in nats. None for real text."""
    remarks: tuple[str, ...] = ()
    """Kinds of remarks, each of which is counted."""
    problem: str = ""
    """Says what the row is, if it is not text."""


Render = Callable[[Any], str | Row]
"""Turns a value that is not null, such as a list of chat messages, into text."""
BLANK_ROW, NULL_ROW = Row(None, remarks=(BLANK,)), Row(None, remarks=(NULL,))


def not_text(problem: str) -> Row:
    """Returns a row that is not text. `problem` says what it is."""
    return Row(None, remarks=(NOT_TEXT,), problem=problem)


def no_column(path: str, column: str, names: Iterable[str], render: Render | None = None) -> ValueError:
    """Returns the error for a file without the column of text. `names` are the columns that it has. With `render`, it
    is the column of chat messages."""
    found = list(names)[:20]
    key = "text" if render is None else "messages"
    remedy = f"set it to one of {', '.join(found)}" if found else "the file has no columns"
    return ValueError(f"corpus.{key}: {path} has no column {column}; {remedy}")


@dataclass
class Lines:
    """The lines of a file in UTF-8, each with its line end."""

    path: str
    content: Iterable[bytes]
    """Lines in bytes."""
    byte_order_mark: bool = False
    """Whether the file begins with a byte order mark, which is left out. Known after the first line."""

    def __iter__(self) -> Iterator[str]:
        """Yield the lines. Raises ValueError, with the position, if a line is not UTF-8."""
        position = 0
        for number, line in enumerate(self.content, 1):
            if number == 1 and (line.startswith(_OTHER_UNICODE) or b"\0" in line[:4]):
                raise ValueError(f"{self.path}: not UTF-8, but UTF-16, UTF-32 or binary; convert it to UTF-8")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self.path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                    f"{position + error.start} of the file); convert it to UTF-8"
                ) from error
            position += len(line)
            if number == 1 and text.startswith("\ufeff"):
                self.byte_order_mark, text = True, text[1:]
            yield text

    def marked(self, rows: Iterable[str | Row]) -> Iterator[str | Row]:
        """Yield `rows` with a remark on the first row if the file begins with a byte order mark."""
        for number, row in enumerate(rows):
            if number == 0 and self.byte_order_mark:
                first = Row(row) if isinstance(row, str) else row
                yield first._replace(remarks=(BYTE_ORDER_MARK, *first.remarks))
            else:
                yield row
