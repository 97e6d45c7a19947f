"""Memory-mapped safetensors files: tensors whose values stay in the file until they are used."""

import json
import mmap
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..core.tensor_headers import read_headers

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats by their names in safetensors files."""
MAPPED = {"cpu": 2**27, "cuda": 2**32}
"""Largest number of values of an encoder and its decoders that are loaded, by the type of the device (512 MB and 16 GB
in float32). Larger ones are mapped. It does not depend on free memory, because sums by blocks differ in the last
bits."""


class MappedFile:
    """The tensors of a safetensors file, as views of the file.

    The pages that are touched count as resident file pages, not as anonymous memory, until `release`. The kernel can
    drop them at any time.
    """

    tensors: dict[str, Tensor]
    """Tensors by name, on the CPU, in the file's number formats. They must not be changed."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError, without a remedy, if the file is damaged or has a number format that is no float."""
        with path.open("rb") as file:
            offsets = _offsets(file, path.name)
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            # torch warns that the tensors are read-only
            warnings.simplefilter("ignore", UserWarning)
            self.tensors = {
                name: torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)
                for name, (shape, dtype, count, offset) in offsets.items()
            }

    def release(self) -> None:
        """Drop the resident pages. They are read again when they are used."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _offsets(file: BinaryIO, name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype, int, int]]:
    """Returns shape, dtype, number of values and place in the file of each tensor."""
    headers = read_headers(file, name)
    if unknown := {each.dtype for each in headers.values()} - DTYPES.keys():
        raise ValueError(f"{name} has the number format {min(unknown)}, not one of {', '.join(DTYPES)}")
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    entries = json.loads(file.read(length))
    found = {}
    for tensor, header in headers.items():
        start, stop = entries[tensor]["data_offsets"]
        dtype = DTYPES[header.dtype]
        found[tensor] = header.shape, dtype, (stop - start) // dtype.itemsize, 8 + length + start
    return found


def is_large(path: Path, device: str | torch.device) -> bool:
    """Whether the file has more values than `MAPPED` allows for `device`. False if it cannot be read."""
    try:
        with path.open("rb") as file:
            headers = read_headers(file, path.name)
    except (OSError, ValueError):
        return False
    values = sum(torch.Size(each.shape).numel() for each in headers.values())
    return values > MAPPED.get(torch.device(device).type, MAPPED["cuda"])
