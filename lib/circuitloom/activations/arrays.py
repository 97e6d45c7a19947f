"""Reads and writes sharded Zarr arrays fast.

Any Zarr library can read the arrays, because the layout follows Zarr's sharding codec. The chunks of a shard have equal
size and are stored in order. A checksum (CRC-32C) follows each chunk. So the offset of a chunk is known without the
shard's index. Chunks are not compressed. zstd at its lowest level would save only 8 % of the bytes, and would take ten
times as long as writing.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.codecs import Crc32cCodec

CHUNK_ROWS = 1024
"""Number of rows per chunk, the smallest unit that can be read. A training batch has a few chunks."""
_CHECKSUM_BYTES = 4
_NO_CHUNK = 2**64 - 1
"""Value that marks a missing chunk in a shard's index."""
_MAX_BUFFERS = 1024
"""Maximum number of buffers per preadv call (Linux)."""


def create_array(group: Path, name: str, shape: tuple[int, ...], dtype: str, shard_rows: int) -> zarr.Array:
    """Open the array `name` in the folder `group`, or create the array if it does not exist."""
    if (group / name / "zarr.json").is_file():
        return zarr.open_array(group / name, mode="r+")
    return zarr.create_array(
        group,
        name=name,
        shape=shape,
        dtype=np.dtype(dtype).newbyteorder("<"),
        shards=(shard_rows, *shape[1:]),
        chunks=(CHUNK_ROWS, *shape[1:]),
        compressors=Crc32cCodec(),
        filters=None,
        overwrite=True,
    )


def shard_file(array: zarr.Array, shard: int) -> Path:
    """Returns the path of the file that stores `shard`."""
    return array_folder(array).joinpath("c", str(shard), *["0"] * (array.ndim - 1))


def array_folder(array: zarr.Array) -> Path:
    """Returns the path of the folder that stores `array`."""
    return Path(str(array.store_path.store.root), array.path)  # type: ignore[attr-defined]


def _shard_rows(array: zarr.Array) -> int:
    assert array.shards is not None
    return array.shards[0]


def write_shard(array: zarr.Array, shard: int, values: Shaped[np.ndarray, "row ..."]) -> None:
    """Write `values` as shard number `shard` of `array`. The caller must then call fsync on the shard's file.

    Raises OSError, with the name of the file, if the disk is full.
    """
    file = shard_file(array, shard)
    file.parent.mkdir(parents=True, exist_ok=True)
    # an existing file is deleted first, because overwriting it would also change the other hard links to this file
    file.unlink(missing_ok=True)
    rows = np.ascontiguousarray(values, array.dtype).reshape(len(values), -1)
    chunks = np.split(rows, range(CHUNK_ROWS, len(rows), CHUNK_ROWS))
    if padding := CHUNK_ROWS - len(chunks[-1]):
        chunks[-1] = np.pad(chunks[-1], ((0, padding), (0, 0)))
    try:
        with file.open("wb", buffering=0) as stream:
            for chunk in map(_bytes, chunks):
                _write_all(stream.fileno(), chunk.data)
                _write_all(stream.fileno(), memoryview(_checksum(chunk)))
            _write_all(stream.fileno(), memoryview(_index(len(chunks), _shard_rows(array), rows[0].nbytes)))
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def open_array(folder: Path, remedy: str) -> zarr.Array:
    """Open the array in `folder` for reading. Raises ValueError, with `remedy`, if there is no array, if a shard is
    missing, or if the layout is not that of `write_shard`."""
    try:
        array = zarr.open_array(folder, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: not an array ({error}); {remedy}") from error
    if not _has_shard_layout(array):
        raise ValueError(f"{folder}: an array in another layout; {remedy}")
    for shard in range(-(-array.shape[0] // _shard_rows(array))):
        if not shard_file(array, shard).is_file():
            raise ValueError(f"{shard_file(array, shard)}: missing; {remedy}")
    return array


def _has_shard_layout(array: zarr.Array) -> bool:
    """Whether `array` has the layout that `write_shard` writes."""
    metadata: Any = array.metadata.to_dict()
    (codec,) = metadata["codecs"]
    if array.chunks != (CHUNK_ROWS, *array.shape[1:]) or codec["name"] != "sharding_indexed":
        return False
    keys = codec["configuration"]
    names = [[inner["name"] for inner in keys[key]] for key in ("codecs", "index_codecs")]
    return names == [["bytes", "crc32c"]] * 2 and keys["index_location"] == "end"


def read_rows(array: zarr.Array, start: int, stop: int, remedy: str) -> Shaped[np.ndarray, "row ..."]:
    """Returns rows `start` to `stop` (exclusive) of `array`. Verifies the checksums of the chunks.

    Raises ValueError, with the name of the file and `remedy`, if a shard is damaged.
    """
    rows = np.empty((stop - start, *array.shape[1:]), array.dtype)
    size = _shard_rows(array)
    for shard in range(start // size, -(-stop // size)):
        low, high = max(start, shard * size), min(stop, (shard + 1) * size)
        file = shard_file(array, shard)
        filled = -(-(min(array.shape[0], (shard + 1) * size) - shard * size) // CHUNK_ROWS)
        try:
            _read(file, rows[low - start : high - start], low - shard * size, filled, size)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: damaged ({error}); {remedy}") from error
    return rows


def _read(file: Path, rows: Shaped[np.ndarray, "row ..."], first: int, filled: int, shard_rows: int) -> None:
    """Fill `rows` from the shard in `file`, beginning with row `first` of the shard.

    `filled` is the number of chunks in the shard. Raises ValueError if the shard is damaged.
    """
    row_bytes = rows[0].nbytes
    chunk_bytes = CHUNK_ROWS * row_bytes
    chunks = range(first // CHUNK_ROWS, -(-(first + len(rows)) // CHUNK_ROWS))
    # complete chunks are read directly into `rows`; the first and the last chunk may need a separate buffer
    buffers, copies = [], []
    for chunk in chunks:
        low, high = chunk * CHUNK_ROWS - first, (chunk + 1) * CHUNK_ROWS - first
        if low >= 0 and high <= len(rows):
            buffers.append(_bytes(rows[low:high]))
        else:
            buffers.append(np.empty(chunk_bytes, np.uint8))
            target = _bytes(rows[max(low, 0) : min(high, len(rows))])
            copies.append((target, buffers[-1][max(-low, 0) * row_bytes :][: len(target)]))
    checksums = [np.empty(_CHECKSUM_BYTES, np.uint8) for _ in buffers]
    with file.open("rb", buffering=0) as stream:
        index = _index(filled, shard_rows, row_bytes)
        if os.pread(stream.fileno(), len(index) + 1, filled * (chunk_bytes + _CHECKSUM_BYTES)) != index:
            raise ValueError("its index is wrong")
        destinations = [buffer for pair in zip(buffers, checksums, strict=True) for buffer in pair]
        _read_all(stream.fileno(), destinations, chunks.start * (chunk_bytes + _CHECKSUM_BYTES))
    for buffer, checksum in zip(buffers, checksums, strict=True):
        if _checksum(buffer) != checksum.tobytes():
            raise ValueError("the checksum of a chunk is wrong")
    for target, source in copies:
        target[:] = source


def _bytes(rows: Shaped[np.ndarray, "row ..."]) -> Shaped[np.ndarray, " byte"]:
    """Returns a view of `rows` as bytes."""
    return rows.reshape(-1).view(np.uint8)


def _checksum(content: Shaped[np.ndarray, " byte"] | bytes) -> bytes:
    """Returns the CRC-32C of `content`, little-endian."""
    return google_crc32c.value(content).to_bytes(_CHECKSUM_BYTES, "little")


@cache
def _index(filled: int, shard_rows: int, row_bytes: int) -> bytes:
    """Returns the index at the end of a shard: the offset and size of each chunk, then a checksum of the index
    itself."""
    size = CHUNK_ROWS * row_bytes + _CHECKSUM_BYTES
    index = np.full((shard_rows // CHUNK_ROWS, 2), _NO_CHUNK, "<u8")
    index[:filled, 0] = np.arange(filled) * size
    index[:filled, 1] = size
    return index.tobytes() + _checksum(index.tobytes())


def _write_all(descriptor: int, content: memoryview) -> None:
    # os.write may write fewer bytes than it is given
    while content:
        content = content[os.write(descriptor, content) :]


def _read_all(descriptor: int, buffers: list[np.ndarray], offset: int) -> None:
    """Fill `buffers` in order with the bytes of a file from `offset` on. Raises ValueError if the file ends too
    early."""
    for start in range(0, len(buffers), _MAX_BUFFERS):
        unfilled = [buffer.data for buffer in buffers[start : start + _MAX_BUFFERS]]
        while unfilled:
            read = os.preadv(descriptor, unfilled, offset)
            if not read:
                raise ValueError("it ends too early")
            offset += read
            # os.preadv may read fewer bytes than it is asked for
            while unfilled and read >= len(unfilled[0]):
                read -= len(unfilled.pop(0))
            if unfilled:
                unfilled[0] = unfilled[0][read:]
