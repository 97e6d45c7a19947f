"""Work that survives a kill: a folder beside the output, held by one process, valid for one input."""

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
"""File of a partial folder that says what its contents were made from."""


def fingerprint(**parts: Any) -> str:
    """A digest of everything that the work depends on, given as plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def partial_folder(output: Path, mark: str) -> Iterator[Path]:
    """`output`.partial: what an earlier process left there under the same `mark`, else empty.

    Raises ValueError where another process holds it.
    """
    folder = output.with_name(f"{output.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f"{output.name}.lock"))
    try:
        lock.acquire(timeout=5)
    except Timeout:
        raise ValueError(f"{folder}: another process is writing it; wait for that, or end it") from None
    try:
        stamp = folder / FINGERPRINT_FILE
        if not stamp.is_file() or stamp.read_text() != mark:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_atomically(stamp, mark.encode())
        yield folder
    finally:
        lock.release()


def remove_partial_folder(folder: Path) -> None:
    """Remove a partial folder, its fingerprint first: a removal cut short leaves nothing that would be continued."""
    (folder / FINGERPRINT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write `file` whole or not at all, down to the disk."""
    with atomic_path(file) as new:
        new.write_bytes(content)


@contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `file` once it is on the disk; after a fault `file` is as before."""
    new = file.with_name(f"{file.name}.new")
    yield new
    fsync(new)
    new.replace(file)
    fsync(file.parent)


def replace_folder(folder: Path, target: Path) -> None:
    """Put `folder` in the place of `target`."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


def fsync(file: Path) -> None:
    """Wait until `file` (or folder) is on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
