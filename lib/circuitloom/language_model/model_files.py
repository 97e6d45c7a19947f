"""Which files make up a model's folder. What names a set of weights."""

import fnmatch
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

TEXT = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configs and tokenizers."""
WEIGHTS = ("*.safetensors",)
LEGACY = "*final.pth"
"""Weights in TransformerLens' legacy format."""
PICKLED = ("pytorch_model*.bin", LEGACY)
"""Read with `weights_only=True` and no other way, where there is no safetensors file."""


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of `folder` itself whose names match one of the patterns, sorted."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]


def copy_files(folder: Path, target: Path, patterns: Iterable[str]) -> None:
    """Copy the files of `folder` that match to `target`: their contents alone, since sources may be read-only."""
    target.mkdir(parents=True, exist_ok=True)
    for file in matching(folder, patterns):
        shutil.copyfile(file, target / file.name)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of weights by name, wherever they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in weights.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
