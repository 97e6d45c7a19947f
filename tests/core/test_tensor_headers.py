"""Headers of arrays are read without the arrays, and damage is reported."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from circuitloom.core.tensor_headers import read_headers

TENSORS = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.tensor(1.0)}


def test_shapes_and_number_formats_of_a_safetensors_file_are_read(tmp_path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with (tmp_path / "x.safetensors").open("rb") as file:
        found = read_headers(file, "x.safetensors")
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "a": ((2, 3), "F32"),
        "b": ((4,), "BF16"),
        "c": ((), "F32"),
    }


@pytest.mark.parametrize("compressed", [False, True])
def test_shapes_and_number_formats_of_an_npz_file_are_read(compressed: bool, tmp_path) -> None:
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "x.npz", a=np.zeros((2, 3), np.float32), b=np.zeros(4), c=np.float16(1))
    with (tmp_path / "x.npz").open("rb") as file:
        found = read_headers(file, "x.npz")
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "a": ((2, 3), "<f4"),
        "b": ((4,), "<f8"),
        "c": ((), "<f2"),
    }


@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_a_file_that_is_cut_off_is_refused(size: int, tmp_path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", a=np.zeros(100))
    for name in ("x.safetensors", "x.npz"):
        content = (tmp_path / name).read_bytes()[:size]
        (tmp_path / name).write_bytes(content)
        with (
            (tmp_path / name).open("rb") as file,
            pytest.raises(ValueError, match="damaged or cut off") as error,
        ):
            read_headers(file, name)
        assert "\n" not in str(error.value)


def test_a_header_of_impossible_length_is_not_read(tmp_path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 8)
    with (
        (tmp_path / "x.safetensors").open("rb") as file,
        pytest.raises(ValueError, match="impossible length"),
    ):
        read_headers(file, "x.safetensors")


def test_an_archive_of_other_files_is_refused(tmp_path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", "no array")
    with (
        (tmp_path / "x.npz").open("rb") as file,
        pytest.raises(ValueError, match="contains a file that is no array"),
    ):
        read_headers(file, "x.npz")
