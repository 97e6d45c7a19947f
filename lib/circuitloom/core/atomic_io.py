"""Output that survives a kill: files appear complete or not at all, and unfinished work resumes from X.partial."""

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
"""File of a partial folder with the fingerprint of what its contents depend on."""


def fingerprint(**parts: Any) -> str:
    """Hash of all values that some work depends on; the values must be JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def partial_folder(output: Path, digest: str) -> Iterator[Path]:
    """The locked folder `output`.partial, empty unless an earlier process left files with the fingerprint `digest`.

    Raises ValueError if another process holds the lock.
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


def remove_partial_folder(folder: Path) -> None:
    """Remove a partial folder, its fingerprint first: nothing resumes from a folder that was removed in part."""
    (folder / FINGERPRINT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write `content` to `file`, completely or not at all, and wait until it is on the disk."""
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces `file` when it is on the disk. After an error `file` is unchanged."""
    temporary = file.with_name(f"{file.name}.new")
    yield temporary
    fsync(temporary)
    temporary.replace(file)
    fsync(file.parent)


def replace_folder(folder: Path, target: Path) -> None:
    """Move `folder` to `target`, in place of any folder there."""
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
