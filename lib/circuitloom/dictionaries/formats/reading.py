"""Reads the tensors of a file of published weights. No code from the file is run."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...core.errors import first_line
from ...core.tensor_headers import NPZ

COMPILED = "_orig_mod."
"""Prefix of names in a state dict that was saved while torch.compile was on."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Returns all tensors of a safetensors, npz or torch file, on the CPU.

    Tensors of safetensors and torch files are mapped into memory. Raises ValueError if the file is damaged or if
    reading it would run code.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if file.suffix == NPZ:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return _read_state_dict(file)
    # torch reports damage in errors of many classes, zipfile in its own
    except (
        OSError, ValueError, RuntimeError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{file}: cannot be read ({first_line(error)}); copy or download it again"
        ) from error


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a torch file."""
    from pickle import UnpicklingError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        raise ValueError("it contains more than weights, and reading it could run code") from error
    if not isinstance(content, Mapping):
        raise ValueError("it contains no named weights")
    return {
        str(name).removeprefix(COMPILED): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def check_tensors(file: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError if a tensor is missing, has another shape, or has values that are not finite."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(
                f"{file}: has no {name}, but {', '.join(sorted(tensors))}; copy or download it again"
            )
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise ValueError(
                f"{file}: {name} has the shape {list(found.shape)}, not {list(shape)} as its settings and the other "
                "layers say; copy or download it again"
            )
        if not bool(found.isfinite().all()):
            raise ValueError(f"{file}: {name} has values that are not finite; copy or download it again")
