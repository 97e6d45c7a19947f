"""Files of Hugging Face hub repositories, from the hub or from its cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

from .errors import first_line

R = TypeVar("R")

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""File name patterns of configs and tokenizers."""


def is_hub_name(name: str, revision: str | None) -> bool:
    """Whether `name` names a hub repository, not a folder or file.

    A folder of this name in the working directory goes first, unless a revision is given. Paths that start with /, . or
    ~ are never hub names.
    """
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf"):
        return False
    return revision is not None or not Path(name).exists()


def hub_file(name: str, file: str, revision: str, key: str) -> Path:
    """Returns the path of a file of a hub repository. Downloads the file if it is not in the cache.

    `key` is the config key that names the repository. Raises ValueError, with the remedy, if neither the cache nor the
    hub has the file.
    """
    from huggingface_hub import hf_hub_download

    with _reachable(name, revision, key, f"no {file} in {name} at revision {revision}"):
        return Path(hf_hub_download(name, file, revision=revision))


def hub_folder(name: str, revision: str, patterns: Sequence[str], key: str) -> Path:
    """Returns the folder in the hub's cache with those files of a repository that match `patterns`.

    The folder is named after the commit. Subfolders are not downloaded: they have checkpoints and other frameworks'
    weights. Offline, the folder may lack files. `key` and errors are those of `hub_file`.
    """
    from huggingface_hub import snapshot_download

    with _reachable(name, revision, key, f"{name} at revision {revision} could not be downloaded"):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"])
        )


def hub_names(name: str, revision: str, folder: str, key: str) -> list[str]:
    """Returns the paths, relative to `folder`, of all files in a folder of a repository, sorted. `folder` is empty for
    the whole repository. Offline, only files in the hub's cache are listed. `key` and errors are those of
    `hub_file`."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.hf_api import RepoFile

    with _reachable(name, revision, key, f"no folder {folder or '/'} in {name} at revision {revision}"):
        if HF_HUB_OFFLINE:
            root = Path(snapshot_download(name, revision=revision, local_files_only=True)) / folder
            return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        tree = HfApi().list_repo_tree(name, folder or None, recursive=True, revision=revision)
        files = [PurePosixPath(entry.path) for entry in tree if isinstance(entry, RepoFile)]
    return sorted(file.relative_to(folder).as_posix() for file in files)


def hub_commit(name: str, revision: str, key: str) -> str:
    """Returns the commit of a revision. Offline, it is the commit in the hub's cache. `key` and errors are those of
    `hub_file`."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    with _reachable(name, revision, key, f"no revision {revision} of {name}"):
        if HF_HUB_OFFLINE:
            # the folder of a snapshot is named after its commit
            return Path(snapshot_download(name, revision=revision, local_files_only=True)).name
        return str(HfApi().repo_info(name, revision=revision).sha)


def hub_cached(name: str, file: str, revision: str) -> Path | None:
    """Returns the path of a file of a repository in the hub's cache, or None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def hub_read(name: str, file: str, revision: str, key: str, read: Callable[[BinaryIO], R]) -> R:
    """Returns `read(opened)` for a file of a repository. Of a file that is not in the hub's cache, only the parts that
    are read are downloaded. `key` and errors are those of `hub_file`."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.constants import HF_HUB_OFFLINE

    local = hub_cached(name, file, revision)
    if local is None and HF_HUB_OFFLINE:
        local = hub_file(name, file, revision, key)
    if local is not None:
        with local.open("rb") as opened:
            return read(opened)
    with (
        _reachable(name, revision, key, f"{file} of {name} at revision {revision} could not be read"),
        # small blocks, because only headers are read
        HfFileSystem().open(f"{name}/{file}", "rb", revision=revision, block_size=2**20) as remote,
    ):
        return read(cast(BinaryIO, remote))


@contextmanager
def _reachable(name: str, revision: str, key: str, fault: str) -> Iterator[None]:
    """Within the context, errors of the hub become ValueErrors that name the key and the remedy."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = "" if Path(name).exists() else ", and there is no folder of this name here"
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{key}: {name} (revision {revision}) is not in the hub's cache and the hub is out of reach{folder}; set "
            "HF_HUB_OFFLINE=0 to download it, or set HF_HOME to the folder of the cache"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{key}: {fault} ({first_line(error)}){folder}; check the name, and HF_TOKEN if it is private; "
            "run again to resume a download"
        ) from error
