import resource
import signal

import numpy as np
import pytest
import zarr
from tests.activations.inputs import SHARD_ROWS

from circuitloom.activations.arrays import (
    array_folder,
    create_array,
    open_array,
    read_rows,
    shard_file,
    write_shard,
)

VALUES = np.random.default_rng(0).standard_normal((SHARD_ROWS, 8)).astype(np.float16)


@pytest.fixture
def array(tmp_path) -> zarr.Array:
    zarr.open_group(tmp_path / "group", mode="w")
    return create_array(tmp_path / "group", "values", (3 * SHARD_ROWS, 8), "float16", SHARD_ROWS)


@pytest.fixture
def small_files():
    """No file may grow beyond 4 KiB, as on a full disk."""
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)


def fill(array: zarr.Array, rows: int) -> np.ndarray:
    """Write all shards of an array, the last with fewer rows; returns the values."""
    values = np.random.default_rng(1).standard_normal((rows, 8)).astype(np.float16)
    for shard, first in enumerate(range(0, rows, array.shards[0])):
        write_shard(array, shard, values[first : first + array.shards[0]])
    return values


@pytest.mark.parametrize("rows", [1, 1000, 1024, 1025, 4096, 4097, 9000])
def test_zarr_reads_what_is_written(rows, tmp_path):
    array = create_array(tmp_path, "values", (rows, 8), "float16", 4096)
    np.testing.assert_array_equal(fill(array, rows), zarr.open_array(tmp_path / "values", mode="r")[:])


def test_zarr_writes_the_same_chunks_in_another_order(tmp_path):
    ours, theirs = (
        create_array(tmp_path / name, "values", (4096, 8), "float16", 4096) for name in ("ours", "theirs")
    )
    theirs[:] = fill(ours, 4096)
    content, other = shard_file(ours, 0).read_bytes(), shard_file(theirs, 0).read_bytes()
    size = len(content) - 4 * 16 - 4
    chunks = [{file[i : i + size // 4] for i in range(0, size, size // 4)} for file in (content, other)]
    assert chunks[0] == chunks[1]


@pytest.mark.parametrize("seed", range(3))
def test_any_range_of_rows_can_be_read(seed, tmp_path):
    array = create_array(tmp_path, "values", (9000, 8), "float16", 4096)
    values, random = fill(array, 9000), np.random.default_rng(seed)
    stored = open_array(array_folder(array), "")
    for _ in range(100):
        start, stop = sorted(random.choice(9001, 2, replace=False))
        np.testing.assert_array_equal(read_rows(stored, int(start), int(stop), ""), values[start:stop])


def test_arrays_with_one_number_per_row_are_stored(tmp_path):
    array = create_array(tmp_path, "scales", (5000,), "float32", 4096)
    values = np.arange(5000, dtype=np.float32)
    for shard in range(2):
        write_shard(array, shard, values[shard * 4096 :][:4096])
    np.testing.assert_array_equal(
        read_rows(open_array(array_folder(array), ""), 17, 4999, ""), values[17:4999]
    )
    np.testing.assert_array_equal(zarr.open_array(array_folder(array), mode="r")[:], values)


def test_an_array_of_another_layout_is_refused(tmp_path):
    zarr.create_array(
        tmp_path / "values", shape=(4096, 8), shards=(4096, 8), chunks=(1024, 8), dtype="float16"
    )[:] = 1
    with pytest.raises(ValueError, match=r"values: an array in another layout; delete it"):
        open_array(tmp_path / "values", "delete it")


@pytest.mark.parametrize("change", ["the last byte", "one more byte", "one byte less"])
def test_damage_at_the_end_of_a_shard_is_detected_on_reading_its_start(change, tmp_path):
    array = create_array(tmp_path, "values", (9000, 8), "float16", 4096)
    fill(array, 9000)
    file = shard_file(array, 1)
    content = file.read_bytes()
    damaged = {
        "the last byte": content[:-1] + bytes([content[-1] ^ 1]),
        "one more byte": content + b"0",
        "one byte less": content[:-1],
    }
    file.write_bytes(damaged[change])
    with pytest.raises(ValueError, match=r"c/1/0: damaged \(its index is wrong\); delete it"):
        read_rows(open_array(array_folder(array), ""), 4096, 4100, "delete it")


def test_a_full_disk_raises_an_oserror_with_the_file_name(array, small_files):
    with pytest.raises(OSError, match="File too large") as caught:
        write_shard(array, 1, VALUES)
    assert caught.value.filename == str(shard_file(array, 1))


def test_an_incomplete_shard_is_rewritten(array):
    file = shard_file(array, 1)
    write_shard(array, 1, VALUES)
    content = file.read_bytes()
    file.write_bytes(content[:100])
    write_shard(array, 1, VALUES)
    assert file.read_bytes() == content


def test_a_shard_of_zeros_is_written(array):
    write_shard(array, 0, np.zeros_like(VALUES))
    assert shard_file(array, 0).is_file()
