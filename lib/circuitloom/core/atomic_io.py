"""Writes files completely or not at all, even if the process is killed. Unfinished work resumes from the folder
OUTPUT.partial."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

FINGERPRINT_FILE = "fingerprint"
"""Name of the file with a partial folder's fingerprint."""


def fingerprint(**parts: Any) -> str:
    """Returns a hash of `parts`, whose values must be convertible to JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def partial_folder(output: Path, digest: str) -> Iterator[Path]:
    """Context manager that locks and yields the folder `output`.partial.

    If the fingerprint in the folder equals `digest`, files of an earlier process stay in the folder. Otherwise the
    folder is emptied. Raises ValueError if another process has the lock.
    """
    folder = output.with_name(f"{output.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f"{output.name}.lock"))
    try:
        lock.acquire(timeout=5)
    except Timeout:
        raise ValueError(f"{folder}: another process is writing it; wait until it ends, or stop it") from None
    try:
        file = folder / FINGERPRINT_FILE
        if not file.is_file() or file.read_text() != digest:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_atomically(file, digest.encode())
        yield folder
    finally:
        lock.release()


def remove_lock(output: Path) -> None:
    """Remove the lock file of `partial_folder`, which stays. For folders that others read, or that users list."""
    output.with_name(f"{output.name}.lock").unlink(missing_ok=True)


def remove_partial_folder(folder: Path) -> None:
    """Remove a partial folder, beginning with the fingerprint. So no job resumes from a half-removed folder."""
    (folder / FINGERPRINT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write `content` to `file` completely or not at all. Returns when the content is on the disk."""
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """Context manager that yields a temporary path. The file at this path replaces `file` when the context ends without
    an error."""
    temporary = file.with_name(f"{file.name}.new")
    yield temporary
    fsync(temporary)
    temporary.replace(file)
    fsync(file.parent)


def replace_folder(folder: Path, target: Path) -> None:
    """Move `folder` to `target`. An existing `target` is deleted."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


def fsync(file: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
