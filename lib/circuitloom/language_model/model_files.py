"""Finds and copies the files of a model's folder, and computes a digest of weights."""

import fnmatch
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # not imported at run time: the Snakefile imports this module, and torch would slow every start
    from torch import Tensor

TEXT = ("*.json", "*.txt", "*.model", "*.jinja")
"""File name patterns of configs and tokenizers."""
WEIGHTS = ("*.safetensors",)
LEGACY = "*final.pth"
"""File name pattern of weights in TransformerLens' legacy format."""
PICKLED = ("pytorch_model*.bin", LEGACY)
"""File name patterns of pickled weights, which are used only if there is no safetensors file."""


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Returns the files in `folder` that match a pattern, sorted by path. Subfolders are not searched."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]


def copy_files(folder: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy each file in `folder` that matches a pattern to `target`. Subfolders and permissions are not copied."""
    target.mkdir(parents=True, exist_ok=True)
    for file in matching(folder, patterns):
        # permissions are not copied, because sources may be read-only
        shutil.copyfile(file, target / file.name)


def weights_digest(weights: "Mapping[str, Tensor]") -> str:
    """Returns a digest of the names, dtypes, shapes and values of `weights`."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, weight in weights.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
