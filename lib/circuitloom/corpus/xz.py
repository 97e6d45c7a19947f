"""Reads .xz and .lzma files."""

import io
import lzma
from collections.abc import Iterator
from typing import Any

_CHUNK = 1 << 18


class XzFile(io.RawIOBase):
    """The content of all streams of a file.

    The library's `lzma.LZMAFile` ends without an error where no stream follows: at the padding that may lie between
    streams, or at a damaged stream.
    """

    def __init__(self, file: io.BufferedReader, compression: str) -> None:
        """`compression` is xz or lzma."""
        self._chunks = _chunks(file, lzma.FORMAT_XZ if compression == "xz" else lzma.FORMAT_AUTO)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` in part. Returns the number of bytes, which is 0 only at the end.

        Raises LZMAError or EOFError if the file is damaged.
        """
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _chunks(file: io.BufferedReader, container: int) -> Iterator[bytes]:
    data = file.read(_CHUNK)
    while data:
        decoder = lzma.LZMADecompressor(container)
        while not decoder.eof:
            if decoder.needs_input:
                data = data or file.read(_CHUNK)
                if not data:
                    raise EOFError("the file ends before its last stream ends")
            yield decoder.decompress(data, _CHUNK)
            data = b""
        data = _after_padding(file, decoder.unused_data)


def _after_padding(file: io.BufferedReader, data: bytes) -> bytes:
    """Returns bytes from the start of the next stream on, or b'' at the end of the file. `data` follows a stream."""
    padding = 0
    while data := data or file.read(_CHUNK):
        rest = data.lstrip(b"\0")
        padding += len(data) - len(rest)
        data = rest
        if rest:
            break
    if padding % 4:
        raise lzma.LZMAError(f"{padding} bytes of padding after a stream, not a multiple of four")
    return data
