"""Opens files of text: plain text, JSON or Parquet, compressed or not, local or on the hub."""

import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import first_line
from .json_rows import json_rows
from .rows import DOCUMENT_LINE_ENDS, LINE_ENDS, Lines, Render, Row, no_column
from .separator import separated_rows, split_at
from .xz import XzFile

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
"""Maps the suffix of a file to its format. A .json file may be JSON Lines, an array of objects, or objects."""
COMPRESSIONS = {
    ".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".lzma": "lzma", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4",
    ".zip": "zip",
}  # fmt: skip
"""Maps the suffix of a compressed file to its compression."""
_FIRST_BYTES = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bz2": re.compile(rb"BZh[1-9](1AY&|\x17rE8)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    # a file may begin with a frame without content, as those of pzstd do
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18|[\x50-\x5f]\x2a\x4d\x18"),
    "zip": re.compile(rb"PK\x03\x04"),
}
_EXPANSION = 3
"""Assumed ratio of the size of text to its compressed size."""
_LINE_END = re.compile(r"\r\n?|\n")


@dataclass(frozen=True)
class DataFile:
    """A file of text."""

    path: str
    """Local path, which is taken literally, or URL of a file on the hub."""
    format: str
    """A value of `FORMATS`."""
    column: str = "text"
    """Column or JSON key of the text. Dots lead into nested columns and objects, unless a name has dots."""
    whole: bool = False
    """Whether a file of plain text is one document. Otherwise, each of its lines is one."""
    render: Render | None = None
    """Turns the values of the column into text. None if they are text."""
    separator: str | None = None
    """Text at which a row, or a file of plain text, is split into documents, each of which is a row."""

    @property
    def unit(self) -> str:
        """What messages call a row."""
        is_whole = self.whole and self.format == "text"
        return "document" if is_whole or self.separator is not None else self._own_unit

    @property
    def _own_unit(self) -> str:
        return "line" if self.format in ("text", "jsonl") else "row"

    def rows(self, start: int = 0) -> Iterator[str | Row]:
        """Yield the rows from index `start`, each as its text or as a `Row`.

        Raises ValueError if the file is damaged, is not UTF-8, or has no such column of text.
        """
        if self.separator is None:
            yield from self._rows(start)
        elif self.format == "text":
            yield from islice(self._rows(0), start, None)
        else:
            # documents are counted within the file, so all rows are read
            yield from islice(separated_rows(self._rows(0), self.separator, self._own_unit), start, None)

    def _rows(self, start: int) -> Iterator[str | Row]:
        """Yield the rows from index `start`, as they are in the file."""
        with _readable(self.path):
            if self.format == "parquet":
                # pyarrow takes a while to import
                from .parquet_rows import parquet_rows

                with _open(self.path) as file:
                    yield from parquet_rows(self.path, file, self.column, start, self.render)
                return
            with open_content(self.path) as content:
                lines = Lines(self.path, content)
                if self.format == "text":
                    yield from _text_rows(lines, self, start)
                else:
                    yield from json_rows(lines, self.column, self.format == "jsonl", start, self.render)

    def characters(self) -> int:
        """Estimates the number of characters of a local file by the number of bytes."""
        if self.format == "parquet":
            from .parquet_rows import parquet_bytes

            with _readable(self.path), _open(self.path) as file:
                return parquet_bytes(file)
        return Path(self.path).stat().st_size * (_EXPANSION if _suffixes(self.path)[1] else 1)


def file_format(path: str) -> str | None:
    """Returns the format of a file by its suffixes. Returns None if such files are not read."""
    suffix, compression = _suffixes(path)
    # Parquet files are compressed inside
    return None if compression and suffix == ".parquet" else FORMATS.get(suffix)


def check_distinct(paths: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError if two paths are the same file. `paths` are the paths of each split."""
    found: dict[tuple[int, int], str] = {}
    for split, path in ((split, path) for split, each in paths.items() for path in each):
        # links to a file have its inode
        state = Path(path).stat()
        inode = (state.st_dev, state.st_ino)
        if inode in found:
            raise ValueError(f"corpus.{split}: {path} is the same file as {found[inode]}; name it once")
        found[inode] = f"{path} of corpus.{split}"


def _suffixes(path: str) -> tuple[str, str]:
    """Returns the suffix of a file's format, and the suffix of its compression or ''. Both are in lower case."""
    name = PurePosixPath(path)
    last = name.suffix.lower()
    return (PurePosixPath(name.stem).suffix.lower(), last) if last in COMPRESSIONS else (last, "")


@contextmanager
def open_content(path: str) -> Iterator[io.BufferedReader]:
    """Opens a file, and decompresses it while it is read. Files without a compression's suffix are recognized by their
    first bytes.

    Raises ValueError if the first bytes contradict the suffix.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_open(path))
        head = file.read(8)
        file.seek(0)
        compression = COMPRESSIONS.get(_suffixes(path)[1])
        if compression in _FIRST_BYTES and not _FIRST_BYTES[compression].match(head):
            raise ValueError(f"{path}: not compressed by {compression}; replace it, or correct its suffix")
        if compression is None:
            compression = next((name for name, start in _FIRST_BYTES.items() if start.match(head)), None)
        yield stack.enter_context(_decompressed(path, file, compression)) if compression else file


def _decompressed(path: str, file: io.BufferedReader, compression: str) -> io.BufferedReader:
    if compression in ("xz", "lzma"):
        return io.BufferedReader(XzFile(file, compression), 1 << 18)
    if compression == "gzip":
        # unlike Arrow, it passes over zeros after the end, with which tools fill blocks
        return io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb"), 1 << 18)  # pyright: ignore[reportArgumentType]
    if compression == "zip":
        archive = zipfile.ZipFile(file)
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1 or members[0].flag_bits & 1:
            raise ValueError(
                f"{path}: encrypted, or not an archive of one file; unpack it and name the files"
            )
        if not _is_of_format(members[0].filename, _suffixes(path)[0]):
            raise ValueError(
                f"{path}: contains {members[0].filename}, of another format; unpack it and name the file"
            )
        return io.BufferedReader(archive.open(members[0]))  # pyright: ignore[reportArgumentType]
    import pyarrow as pa

    # Arrow reads all frames of a file; other readers of zstd stop after the first frame without an error
    stream: Any = pa.CompressedInputStream(file, compression)
    return io.BufferedReader(stream, 1 << 18)


def _is_of_format(name: str, suffix: str) -> bool:
    """Whether the file `name` of an archive may have the format of `suffix`. A suffix without letters says nothing."""
    own = PurePosixPath(name).suffix.lower()
    formats = {FORMATS.get(own, own), FORMATS.get(suffix)}
    return not re.search("[a-z]", own) or len(formats) == 1 or formats == {"json", "jsonl"}


def _open(path: str) -> io.BufferedReader:
    if "://" not in path:
        return Path(path).open("rb")
    from fsspec.core import url_to_fs

    files, name = url_to_fs(path)
    # fsspec finds line ends in Python, which is slow
    return io.BufferedReader(files.open(name, "rb"), 1 << 20)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Within the context, errors of reading become ValueErrors with a short message."""
    import pyarrow as pa

    errors = (
        OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, NotImplementedError, pa.ArrowException,
    )  # fmt: skip
    remedy = "repair or replace it"
    if "://" in path:
        import httpx2

        errors, remedy = (*errors, httpx2.HTTPError), "check the network, and run again to continue"
    try:
        yield
    except errors as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error)}); {remedy}") from error


def _text_rows(lines: Lines, file: DataFile, start: int) -> Iterator[str | Row]:
    if file.column != "text" or file.render is not None:
        raise no_column(file.path, file.column, ["text"], file.render)
    rows = (
        _separated(lines, file.separator)
        if file.separator
        else _whole(lines)
        if file.whole
        else _split(lines)
    )
    for index, row in enumerate(lines.marked(rows)):
        if index >= start:
            yield row


def _separated(lines: Iterable[str], separator: str) -> Iterator[str | Row]:
    """Yield the documents between separators, with LF as line end. Nothing follows a separator at the end."""
    changed = False

    def parts() -> Iterator[str]:
        nonlocal changed
        for line in lines:
            changed = changed or "\r" in line
            yield _LINE_END.sub("\n", line) if "\r" in line else line

    # one document later, so that the last is known
    previous: str | Row | None = None
    for text in split_at(parts(), separator):
        if previous is not None:
            yield previous
        previous, changed = Row(text, remarks=(DOCUMENT_LINE_ENDS,)) if changed else text, False
    if previous is not None and (previous.text if isinstance(previous, Row) else previous):
        yield previous


def _whole(lines: Iterable[str]) -> Iterator[str | Row]:
    """Yield all lines as one row, with LF as line end."""
    text = "".join(lines)
    yield Row(_LINE_END.sub("\n", text), remarks=(DOCUMENT_LINE_ENDS,)) if "\r" in text else text


def _split(lines: Iterable[str]) -> Iterator[str | Row]:
    """Yield each line without its end, which is LF, CRLF or CR."""
    for line in lines:
        if "\r" not in line:
            yield line.removesuffix("\n")
            continue
        pieces = _LINE_END.split(line)
        for piece in pieces if pieces[-1] else pieces[:-1]:
            yield Row(piece, remarks=(LINE_ENDS,))
