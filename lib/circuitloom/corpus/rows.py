"""Rows of files of text, and the lines of files in UTF-8. Values are never cast: a row is either text, or it says what
else it is."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

BLANK, NULL, NOT_TEXT, BYTE_ORDER_MARK = "blank", "null", "not_text", "bom"
LINE_ENDS, DOCUMENT_LINE_ENDS = "line_ends", "document_line_ends"
CHAT_CONTENT, CHAT_KEYS = "chat_content", "chat_keys"
"""Kinds of remarks on rows."""
ROW_MEANINGS = {
    BLANK: "blank lines and documents, left out",
    NULL: "rows without text (null, or without the key), left out",
    NOT_TEXT: "rows that are not text, left out as corpus.not_text says",
    BYTE_ORDER_MARK: "files that begin with a byte order mark, which is left out",
    LINE_ENDS: "lines with line ends CRLF or CR, read as LF",
    DOCUMENT_LINE_ENDS: "documents of several lines with line ends CRLF or CR, read as LF",
    CHAT_CONTENT: "chat messages whose content the chat template leaves out or changes",
    CHAT_KEYS: "chat messages with keys besides role and content that the chat template leaves out",
}
"""Maps each kind of remark on rows to its meaning."""
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
        """Yield the lines. Raises ValueError, with the position, if a line is not UTF-8 or has a NUL."""
        position = 0
        for number, line in enumerate(self.content, 1):
            if number == 1 and (line.startswith(_OTHER_UNICODE) or b"\0" in line[:4]):
                raise ValueError(f"{self.path}: not UTF-8, but UTF-16, UTF-32 or binary; convert it to UTF-8")
            if b"\0" in line:
                # UTF-16 and archives may be valid UTF-8
                raise ValueError(
                    f"{self.path}, line {number}: not text in UTF-8, but UTF-16, an archive or binary (NUL at position "
                    f"{position + line.index(0)} of the file); convert it to UTF-8, or unpack it"
                )
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
