"""Zarr arrays of rows: sharded, checksummed, damage named."""

import os
import re
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.codecs import ZstdCodec

_PIPELINE = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
# several threads would write a shard's chunks in whichever order they finish: same data, other bytes
_WRITING = {**_PIPELINE, "threading.max_workers": 1}
# zstd for its checksum: zarrs reads a part of a shard without verifying crc32c. Compressing pays 8 % of the disk for
# half of the speed, so the level is one that does not try
_CODEC = ZstdCodec(level=-1000, checksum=True)
CHUNK_ROWS = 1024
"""Rows that are read at once at least: a training batch is a few chunks."""


def create_array(group: Path, name: str, shape: tuple[int, ...], dtype: str, shard_rows: int) -> zarr.Array:
    """The array `name` of `group`, made where it does not exist."""
    with zarr.config.set(_WRITING):
        if (group / name / "zarr.json").is_file():
            return zarr.open_array(group / name, mode="r+")
        return zarr.create_array(
            group,
            name=name,
            shape=shape,
            dtype=dtype,
            shards=(shard_rows, *shape[1:]),
            chunks=(CHUNK_ROWS, *shape[1:]),
            compressors=_CODEC,
            filters=None,
            fill_value=_unused(np.dtype(dtype)),
            overwrite=True,
        )


def _unused(dtype: np.dtype) -> float | int:
    """A value that no row is made of: chunks of nothing but the fill value are left out of a file."""
    if dtype.kind == "f":
        return float("nan")
    # as the bits of a bfloat16, the largest uint16 is a NaN; int8 stops at -127
    return int(np.iinfo(dtype).max if dtype.kind == "u" else np.iinfo(dtype).min)


def shard_file(array: zarr.Array, shard: int) -> Path:
    """The file in which `shard` of an array of rows lies."""
    return array_folder(array).joinpath("c", str(shard), *["0"] * (array.ndim - 1))


def array_folder(array: zarr.Array) -> Path:
    """The folder in which `array` lies."""
    return Path(str(array.store_path.store.root), array.path)  # type: ignore[attr-defined]


def write_shard(array: zarr.Array, shard: int, values: Shaped[np.ndarray, "row ..."]) -> None:
    """Write `values` as the whole of `shard`, to be flushed by the caller; OSError where the disk refuses."""
    file = shard_file(array, shard)
    # what a killed process left may be half a shard, which zarrs would try to read
    file.unlink(missing_ok=True)
    assert array.shards is not None
    start = shard * array.shards[0]
    try:
        array[start : start + len(values)] = values
    except RuntimeError as error:
        # zarrs says "No space left on device (os error 28)" and the like
        if number := re.search(r"os error (\d+)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(file)) from error
        raise


def open_array(folder: Path, remedy: str) -> zarr.Array:
    """The array in `folder`, for reading.

    Raises ValueError, ending in `remedy`, where it is not whole.
    """
    try:
        with zarr.config.set(_PIPELINE):
            array = zarr.open_array(folder, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no array ({error}); {remedy}") from error
    assert array.shards is not None
    for shard in range(-(-array.shape[0] // array.shards[0])):
        if not shard_file(array, shard).is_file():
            raise ValueError(f"{shard_file(array, shard)}: missing; {remedy}")
    return array


def read_rows(array: zarr.Array, start: int, stop: int, remedy: str) -> Shaped[np.ndarray, "row ..."]:
    """Rows `start` to `stop` of `array`.

    Raises ValueError, naming the file and ending in `remedy`, where a shard is damaged.
    """
    try:
        return np.asarray(array[start:stop])
    # whatever the Rust codecs raise
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{_damaged(array, start, stop)}: damaged ({error}); {remedy}") from error


def _damaged(array: zarr.Array, start: int, stop: int) -> Path:
    """The file of the first shard between two rows that cannot be read."""
    assert array.shards is not None
    size = array.shards[0]
    for shard in range(start // size, -(-stop // size)):
        try:
            array[max(start, shard * size) : min(stop, (shard + 1) * size)]
        except (RuntimeError, OSError, ValueError):
            return shard_file(array, shard)
    return array_folder(array)
