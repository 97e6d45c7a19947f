"""Finds and copies the files of a model's folder, and computes a digest of weights."""

import fnmatch
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.hub import TEXT_FILES

if TYPE_CHECKING:
    # not imported at run time: the Snakefile imports this module, and torch would slow every start
    from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of the weights' file, and of the file that names the shards of large weights."""
LEGACY = "*final.pth"
"""File name pattern of weights in TransformerLens' legacy format."""
PICKLED = ("pytorch_model*.bin", LEGACY)
"""File name patterns of pickled weights, which are used only if there are no others."""
SOURCE = "source.json"
"""Name of the record of where a model comes from."""


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Returns the files in `folder` that match a pattern, sorted by path. Subfolders are not searched."""
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)]


def weight_names(folder: Path) -> list[str]:
    """Returns the names of the safetensors files that transformers reads: one file, or those that the index names.

    Other safetensors files, such as Mistral's consolidated.safetensors, are copies in other layouts. The files may be
    missing. Raises ValueError, without a remedy, if the index is damaged.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights") from error
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{index} is not an index of weights in its folder")
    return names


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of the model in `folder`, or an empty list if it has none.

    Raises ValueError, without a remedy, if the index is damaged or if some of the files that it names are missing.
    """
    files = [folder / name for name in weight_names(folder)]
    missing = [file for file in files if not file.is_file()]
    if missing and (folder / INDEX).is_file():
        raise ValueError(
            f"{missing[0]} does not exist, but {INDEX} names it ({len(missing)} of {len(files)} files)"
        )
    return [] if missing else files


def text_files(path: Path) -> list[Path]:
    """Returns the files of config and tokenizer in a folder, or `path` itself if it is a GGUF file."""
    return [path] if path.is_file() else matching(path, TEXT_FILES)


def source_files(path: Path) -> list[Path]:
    """Returns the existing files of a local model: config, tokenizer and weights, or one GGUF file."""
    if path.is_file() or not path.is_dir():
        return text_files(path)
    # the job that reads a damaged index says so
    with suppress(ValueError):
        weights = [path / name for name in weight_names(path)]
        return [*text_files(path), *filter(Path.is_file, weights), *matching(path, PICKLED)]
    return text_files(path)


def copy_files(files: Iterable[Path], target: Path) -> None:
    """Copy `files` to the folder `target`. Permissions are not copied, because sources may be read-only."""
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, target / file.name)


def describe_source(origin: Mapping[str, str]) -> str:
    """Returns where a model comes from, in words. `origin` is the content of `SOURCE`."""
    if origin["source"] == "hub":
        words = f"{origin['name']} from the hub, revision {origin['revision']}, commit {origin['commit']}"
    else:
        words = origin["path"]
    words = "".join([words, *(f", {origin[key]}" for key in ("weights", "part") if key in origin)])
    return f"{words}; {origin['tokenizer']}" if "tokenizer" in origin else words


def weights_digest(weights: "Mapping[str, Tensor]") -> str:
    """Returns a digest of the names, dtypes, shapes and values of `weights`."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, weight in weights.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
