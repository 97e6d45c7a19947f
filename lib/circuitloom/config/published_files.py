"""Finds the files of published dictionaries in a folder or in a repository of the Hugging Face hub, and reads their
small files and headers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

from ..core.hub import hub_cached, hub_file, hub_names, hub_read
from ..core.tensor_headers import ArrayHeader, read_headers

DEEPEST = 6
"""Number of folders below `files` that are searched."""
LAYER = "{layer}"
"""Placeholder of the layer's index in a path."""


@dataclass(frozen=True)
class LocalFiles:
    """The files in a folder."""

    root: Path

    def __str__(self) -> str:
        """Returns the folder's path."""
        return str(self.root)

    def names(self) -> list[str]:
        """Returns the paths of all files relative to the folder, sorted. Hidden folders are left out."""
        found, folders = [], [(self.root, 0)]
        while folders:
            folder, depth = folders.pop()
            for entry in folder.iterdir():
                if entry.is_file():
                    found.append(entry.relative_to(self.root).as_posix())
                elif depth < DEEPEST and not entry.name.startswith(".") and entry.is_dir():
                    folders.append((entry, depth + 1))
        return sorted(found)

    def path(self, name: str) -> Path:
        """Returns the path of a file."""
        return self.root / name

    def headers(self, name: str) -> dict[str, ArrayHeader]:
        """Returns the header of each array in a file."""
        with (self.root / name).open("rb") as file:
            return read_headers(file, name)

    def is_here(self, name: str) -> bool:
        """Whether a file can be read without downloading it."""
        return True


@dataclass(frozen=True)
class HubFiles:
    """The files in a folder of a hub repository. Offline, these are the files in the hub's cache."""

    repository: str
    revision: str
    folder: str
    """Path in the repository, or an empty string."""
    key: str
    """Config key that names the repository, for messages."""

    def __str__(self) -> str:
        """Returns repository, folder and revision."""
        folder = f"/{self.folder}" if self.folder else ""
        return f"{self.repository}{folder} (revision {self.revision})"

    def names(self) -> list[str]:
        """Returns the paths of all files relative to the folder, sorted."""
        return hub_names(self.repository, self.revision, self.folder, self.key)

    def path(self, name: str) -> Path:
        """Returns the path of a file in the hub's cache. Downloads it if it is not there."""
        return hub_file(self.repository, self._full(name), self.revision, self.key)

    def headers(self, name: str) -> dict[str, ArrayHeader]:
        """Returns the header of each array in a file. Only the header is downloaded."""
        return hub_read(
            self.repository, self._full(name), self.revision, self.key, lambda file: read_headers(file, name)
        )

    def is_here(self, name: str) -> bool:
        """Whether a file can be read without downloading it."""
        return hub_cached(self.repository, self._full(name), self.revision) is not None

    def _full(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


Files = LocalFiles | HubFiles


@dataclass(frozen=True)
class FileReference:
    """A file of a folder or repository."""

    files: Files
    name: str

    def __str__(self) -> str:
        """Returns the file's path, or its name and its repository."""
        if isinstance(self.files, LocalFiles):
            return str(self.files.path(self.name))
        return f"{self.name} of {self.files}"

    @property
    def local(self) -> Path | None:
        """Path of the file, or None if it is in a hub repository."""
        return self.files.path(self.name) if isinstance(self.files, LocalFiles) else None

    def path(self) -> Path:
        """Returns the file's path. A file of the hub is downloaded if it is not in the cache."""
        return self.files.path(self.name)

    def headers(self) -> dict[str, ArrayHeader]:
        """Returns the header of each array in the file. Raises ValueError if the file is damaged."""
        try:
            return self.files.headers(self.name)
        except ValueError as error:
            raise ValueError(f"{self}: {error}; copy or download it again") from error

    def settings(self) -> dict[str, Any]:
        """Returns the content of a JSON or YAML file with settings. Raises ValueError if it has no settings."""
        try:
            text = self.path().read_text()
            content = yaml.safe_load(text) if self.name.endswith((".yaml", ".yml")) else json.loads(text)
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self}: cannot be read ({reason}); copy or download it again") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self}: contains no settings; copy or download it again")
        return content


@dataclass(frozen=True)
class FoundFiles:
    """Files, and the layer that each name says if the path was given with `{layer}`."""

    files: Files
    names: tuple[str, ...]
    layers: Mapping[str, int] = field(default_factory=dict)
    unmatched: frozenset[str] = frozenset()
    """Names of files of a hub repository that the path with `{layer}` does not match."""

    def reference(self, name: str) -> FileReference:
        """Returns a reference to the file `name`."""
        return FileReference(self.files, name)

    @property
    def place(self) -> str:
        """Path of the folder, or repository and folder, which may name a layer or a hook."""
        if isinstance(self.files, LocalFiles):
            return str(self.files.root)
        return f"{self.files.repository}/{self.files.folder}".rstrip("/")

    def has(self, name: str) -> bool:
        """Whether there is a file `name`, also if the path does not match it."""
        if isinstance(self.files, LocalFiles):
            return self.files.path(name).is_file()
        return name in self.names or name in self.unmatched


def find_files(path: str, subfolder: str, revision: str | None, is_hub: bool, key: str) -> FoundFiles:
    """Returns the files in the folder `path`, or in the hub repository `path` if `is_hub`.

    `path` may be one file, or contain `{layer}`. `key` is the config key of `path`. Raises ValueError if there is no
    such folder or file.
    """
    if is_hub:
        # everything before a part with the placeholder is a folder
        folder, pattern = _split(PurePosixPath(subfolder))
        hub = HubFiles(path, revision or "main", folder, key)
        return _matching(hub, pattern)
    whole = Path(path) / subfolder
    folder, pattern = _split(PurePosixPath(whole.as_posix()))
    root = Path(folder)
    if not pattern and root.is_file():
        return FoundFiles(LocalFiles(root.parent), (root.name,))
    if not root.is_dir():
        raise ValueError(
            f"{key}: {root} does not exist; download the files with `hf download REPOSITORY --local-dir FOLDER`, or "
            "name the folder they are in"
        )
    return _matching(LocalFiles(root), pattern)


def _split(path: PurePosixPath) -> tuple[str, str]:
    """Returns the part of a path before the first component with `{layer}`, and the rest."""
    parts = path.parts
    at = next((i for i, part in enumerate(parts) if LAYER in part), len(parts))
    folder = "/".join(parts[:at]).replace("//", "/", 1) if at else ""
    return folder, "/".join(parts[at:])


def _matching(files: Files, pattern: str) -> FoundFiles:
    """Returns the files whose path is the pattern, or starts with it, with a number for `{layer}`."""
    names = files.names()
    if not pattern:
        return FoundFiles(files, tuple(names))
    first, *rest = (re.escape(part) for part in pattern.split(LAYER))
    # the same number at each place
    regex = re.compile(first + r"(?P<layer>\d+)" + r"(?P=layer)".join(rest) + r"(?:/.*)?")
    layers = {name: int(found["layer"]) for name in names if (found := regex.fullmatch(name))}
    return FoundFiles(files, tuple(sorted(layers)), layers, frozenset(names) - frozenset(layers))


def parse_uri(uri: str, key: str) -> FileReference:
    """Returns the file that a URI such as hf://google/gemma-scope-2b-pt-transcoders/layer_0/params.npz?revision=main
    names.

    Raises ValueError, without a remedy, if the URI has another form.
    """
    parsed = urlparse(uri)
    repository, _, name = parsed.path.lstrip("/").partition("/")
    if parsed.scheme != "hf" or not repository or not name:
        raise ValueError(f"{uri} is not of the form hf://owner/repository/file")
    revision = parse_qs(parsed.query).get("revision", ["main"])[0]
    return FileReference(HubFiles(f"{parsed.netloc}/{repository}", revision, "", key), name.lstrip("/"))
