"""Number formats of stored activations: how float32 rows are packed and unpacked. Zarr arrays of rows, written and
read at the speed of memory: shards of uncompressed chunks, each with its CRC-32C.

Any Zarr library reads them. What is written here is one layout of those that Zarr's sharding codec allows: all
chunks of a shard in order and of one size, so that a chunk's place is known without looking it up. Rows of
activations hardly compress (8 % at zstd's lowest level), and compressing takes ten times as long as writing."""

import os
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import google_crc32c
import numpy as np
import torch
import zarr
from jaxtyping import Float, Num, Shaped
from torch import Tensor
from zarr.codecs import Crc32cCodec

NumberFormat = Literal["float16", "bfloat16", "int8"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38, "int8": 3.38e38}
"""Largest magnitude that each format holds."""
TORCH_DTYPE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""What the values of each format are in memory."""
ZARR_DTYPE = {"float16": "float16", "bfloat16": "uint16", "int8": "int8"}
"""What they are on disk: Zarr has no bfloat16, so its bits are stored as uint16."""


class Packed(NamedTuple):
    """Rows in a number format."""

    values: Num[Tensor, "row d"]
    scales: Float[Tensor, " row"] | None
    """What a row's integers are multiplied with (int8); None where the values speak for themselves."""


def pack(x: Float[Tensor, "row d"], number_format: NumberFormat) -> Packed:
    """A copy of `x`, rounded to `number_format`; int8 spreads ±127 over ± the largest magnitude of the row."""
    if number_format != "int8":
        return Packed(x.to(TORCH_DTYPE[number_format], copy=True), None)
    largest = x.abs().amax(dim=1).float()
    # an all-zero row divides by one
    scales = torch.where(largest > 0, largest / 127, 1.0)
    return Packed((x / scales[:, None]).round().to(torch.int8), scales)


def unpack(packed: Packed) -> Float[Tensor, "row d"]:
    """The float32 rows that `packed` stands for."""
    values = packed.values.float()
    return values if packed.scales is None else values.mul_(packed.scales[:, None])


CHUNK_ROWS = 1024
"""Rows that are read at once at least: a training batch is a few chunks."""
_CRC = 4
"""Bytes of a checksum, which follows its chunk, and the shard's index."""
_NO_CHUNK = 2**64 - 1
_MOST_VECTORS = 1024
"""Buffers that Linux takes in one call."""


def create_array(group: Path, name: str, shape: tuple[int, ...], dtype: str, shard_rows: int) -> zarr.Array:
    """The array `name` of `group`, made where it does not exist."""
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
    """The file in which `shard` of an array of rows lies."""
    return array_folder(array).joinpath("c", str(shard), *["0"] * (array.ndim - 1))


def array_folder(array: zarr.Array) -> Path:
    """The folder in which `array` lies."""
    return Path(str(array.store_path.store.root), array.path)  # type: ignore[attr-defined]


def _shard_rows(array: zarr.Array) -> int:
    assert array.shards is not None
    return array.shards[0]


def write_shard(array: zarr.Array, shard: int, values: Shaped[np.ndarray, "row ..."]) -> None:
    """Write `values` as the whole of `shard`, to be flushed by the caller; OSError where the disk refuses."""
    file = shard_file(array, shard)
    file.parent.mkdir(parents=True, exist_ok=True)
    # not written over: what is there may be linked elsewhere
    file.unlink(missing_ok=True)
    rows = np.ascontiguousarray(values, array.dtype).reshape(len(values), -1)
    chunks = np.split(rows, range(CHUNK_ROWS, len(rows), CHUNK_ROWS))
    if missing := CHUNK_ROWS - len(chunks[-1]):
        chunks[-1] = np.pad(chunks[-1], ((0, missing), (0, 0)))
    try:
        with file.open("wb", buffering=0) as opened:
            for chunk in map(_bytes, chunks):
                _write_whole(opened.fileno(), chunk.data)
                _write_whole(opened.fileno(), memoryview(_checksum(chunk)))
            _write_whole(opened.fileno(), memoryview(_index(len(chunks), _shard_rows(array), rows[0].nbytes)))
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def open_array(folder: Path, remedy: str) -> zarr.Array:
    """The array in `folder`, for reading.

    Raises ValueError, ending in `remedy`, where it is not whole, or not of the layout that is written here.
    """
    try:
        array = zarr.open_array(folder, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no array ({error}); {remedy}") from error
    if not _is_ours(array):
        raise ValueError(f"{folder}: an array of another version; {remedy}")
    for shard in range(-(-array.shape[0] // _shard_rows(array))):
        if not shard_file(array, shard).is_file():
            raise ValueError(f"{shard_file(array, shard)}: missing; {remedy}")
    return array


def _is_ours(array: zarr.Array) -> bool:
    """The shards of `array` have the layout that `write_shard` gives them, as far as its metadata says."""
    metadata: Any = array.metadata.to_dict()
    (codec,) = metadata["codecs"]
    if array.chunks != (CHUNK_ROWS, *array.shape[1:]) or codec["name"] != "sharding_indexed":
        return False
    keys = codec["configuration"]
    names = [[inner["name"] for inner in keys[of]] for of in ("codecs", "index_codecs")]
    return names == [["bytes", "crc32c"]] * 2 and keys["index_location"] == "end"


def read_rows(array: zarr.Array, start: int, stop: int, remedy: str) -> Shaped[np.ndarray, "row ..."]:
    """Rows `start` to `stop` of `array`, of whole chunks whose checksums were verified.

    Raises ValueError, naming the file and ending in `remedy`, where a shard is damaged.
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
    """Fill `rows` with those from `first` on of a shard of `filled` chunks; ValueError where it is damaged."""
    row_bytes = rows[0].nbytes
    chunk_bytes = CHUNK_ROWS * row_bytes
    chunks = range(first // CHUNK_ROWS, -(-(first + len(rows)) // CHUNK_ROWS))
    # chunks that are wanted whole are read into place, the first and last may need room of their own
    rooms, copies = [], []
    for chunk in chunks:
        low, high = chunk * CHUNK_ROWS - first, (chunk + 1) * CHUNK_ROWS - first
        if low >= 0 and high <= len(rows):
            rooms.append(_bytes(rows[low:high]))
        else:
            rooms.append(np.empty(chunk_bytes, np.uint8))
            target = _bytes(rows[max(low, 0) : min(high, len(rows))])
            copies.append((target, rooms[-1][max(-low, 0) * row_bytes :][: len(target)]))
    checksums = [np.empty(_CRC, np.uint8) for _ in rooms]
    with file.open("rb", buffering=0) as opened:
        index = _index(filled, shard_rows, row_bytes)
        if os.pread(opened.fileno(), len(index) + 1, filled * (chunk_bytes + _CRC)) != index:
            raise ValueError("its index is not what was written")
        vectors = [buffer for pair in zip(rooms, checksums, strict=True) for buffer in pair]
        _read_whole(opened.fileno(), vectors, chunks.start * (chunk_bytes + _CRC))
    for room, checksum in zip(rooms, checksums, strict=True):
        if _checksum(room) != checksum.tobytes():
            raise ValueError("the checksum of a chunk differs")
    for target, source in copies:
        target[:] = source


def _bytes(rows: Shaped[np.ndarray, "row ..."]) -> Shaped[np.ndarray, " byte"]:
    """The same memory as bytes."""
    return rows.reshape(-1).view(np.uint8)


def _checksum(content: Shaped[np.ndarray, " byte"] | bytes) -> bytes:
    """CRC-32C, little-endian."""
    return google_crc32c.value(content).to_bytes(_CRC, "little")


@cache
def _index(filled: int, shard_rows: int, row_bytes: int) -> bytes:
    """What ends a shard: where each chunk starts and how long it is, and a checksum of that."""
    size = CHUNK_ROWS * row_bytes + _CRC
    index = np.full((shard_rows // CHUNK_ROWS, 2), _NO_CHUNK, "<u8")
    index[:filled, 0] = np.arange(filled) * size
    index[:filled, 1] = size
    return index.tobytes() + _checksum(index.tobytes())


def _write_whole(descriptor: int, left: memoryview) -> None:
    # the system may take a part of what it is given
    while left:
        left = left[os.write(descriptor, left) :]


def _read_whole(descriptor: int, vectors: list[np.ndarray], offset: int) -> None:
    """Fill `vectors` one after another from `offset` on; ValueError where the file ends before."""
    for some in range(0, len(vectors), _MOST_VECTORS):
        left = [vector.data for vector in vectors[some : some + _MOST_VECTORS]]
        while left:
            read = os.preadv(descriptor, left, offset)
            if not read:
                raise ValueError("it ends too early")
            offset += read
            # the system may fill fewer than it was given
            while left and read >= len(left[0]):
                read -= len(left.pop(0))
            if left:
                left[0] = left[0][read:]
