"""Reads names, shapes and number formats of the arrays in safetensors and npz files, without torch or numpy and without
reading the arrays."""

import ast
import json
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

LONGEST_HEADER = 100_000_000
"""Largest size of a safetensors header, in bytes. The library safetensors has the same limit."""
NPZ = ".npz"


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and number format of an array in a file."""

    shape: tuple[int, ...]
    dtype: str
    """The file's name of the number format, such as `F32` or `<f4`."""


def read_headers(file: BinaryIO, name: str) -> dict[str, ArrayHeader]:
    """Returns the header of each array in a safetensors or npz file.

    `name` is the file's name, whose ending tells the format. `file` needs `seek`. Raises ValueError, without a remedy,
    if the file is damaged or shorter than its header says.
    """
    try:
        return _npz_headers(file) if name.endswith(NPZ) else _safetensors_headers(file)
    # struct.error and BadZipFile are no ValueErrors; KeyError and TypeError come from a header of another form
    except (struct.error, zipfile.BadZipFile, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{name} is damaged or cut off ({error})") from error


def _safetensors_headers(file: BinaryIO) -> dict[str, ArrayHeader]:
    """Eight bytes give the length of a JSON header; the arrays follow it."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > LONGEST_HEADER:
        raise ValueError("its header has an impossible length")
    entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    size = file.seek(0, 2)
    if size < end:
        raise ValueError(f"{size} bytes of {end}")
    return {name: ArrayHeader(tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()}


def _npz_headers(file: BinaryIO) -> dict[str, ArrayHeader]:
    """A zip archive of npy files, each with a header of its own."""
    headers = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            with archive.open(member) as array:
                headers[member.removesuffix(".npy")] = _npy_header(array.read(12), array)
    return headers


def _npy_header(start: bytes, array) -> ArrayHeader:
    """`start` is the first 12 bytes: magic number, version, and the length of a Python literal."""
    if start[:6] != b"\x93NUMPY":
        raise ValueError("it contains a file that is no array")
    # version 1 has two bytes of length, later versions four
    short = start[6] == 1
    (length,) = struct.unpack("<H" if short else "<I", start[8:10] if short else start[8:12])
    text = (start[10:] if short else b"") + array.read(length - (2 if short else 0))
    fields = ast.literal_eval(text.decode("latin-1").strip())
    return ArrayHeader(tuple(fields["shape"]), str(fields["descr"]))
