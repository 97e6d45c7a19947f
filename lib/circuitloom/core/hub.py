"""Files of Hugging Face hub repositories, from the hub or from its cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import first_line

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


@contextmanager
def _reachable(name: str, revision: str, key: str, fault: str) -> Iterator[None]:
    """Within the context, errors of the hub become ValueErrors that name the key and the remedy."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{key}: {name} (revision {revision}) is not in the hub's cache and the hub is out of reach; "
            "set HF_HUB_OFFLINE=0 to download it, or set HF_HOME to the folder of the cache"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{key}: {fault} ({first_line(error)}); check the name, and HF_TOKEN if it is private; run again to "
            "resume a download"
        ) from error
