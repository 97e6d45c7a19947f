import resource
import signal

import numpy as np
import pytest
import zarr
from tests.activations.inputs import SHARD_ROWS

from circuitloom.activations.arrays import create_array, shard_file, write_shard

VALUES = np.random.default_rng(0).standard_normal((SHARD_ROWS, 8)).astype(np.float16)


@pytest.fixture
def array(tmp_path) -> zarr.Array:
    zarr.open_group(tmp_path / "group", mode="w")
    return create_array(tmp_path / "group", "values", (3 * SHARD_ROWS, 8), "float16", SHARD_ROWS)


@pytest.fixture
def small_files():
    """No file may grow beyond 4 KiB: what a full disk is, with another number."""
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_refuses_is_an_error_of_the_operating_system(array, small_files):
    with pytest.raises(OSError, match="File too large") as caught:
        write_shard(array, 1, VALUES)
    assert caught.value.filename == str(shard_file(array, 1))


def test_half_a_shard_that_a_kill_left_is_written_anew(array):
    file = shard_file(array, 1)
    write_shard(array, 1, VALUES)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    write_shard(array, 1, VALUES)
    assert file.read_bytes() == whole


def test_a_shard_of_zeros_is_a_file_too(array):
    write_shard(array, 0, np.zeros_like(VALUES))
    assert shard_file(array, 0).is_file()
