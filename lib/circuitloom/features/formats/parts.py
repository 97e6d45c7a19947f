"""Writes an export part by part, so that an interrupted export continues with the first missing part."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...core.atomic_io import FINGERPRINT_FILE, fsync, partial_folder, remove_lock, replace_folder
from ...core.progress import announce, progress


@contextmanager
def export_folder(target: Path, work: Path, digest: str) -> Iterator[Path | None]:
    """Context manager that yields a folder for the parts of `target`, or None if `target` is complete.

    `digest` identifies what is exported. The parts lie in `work`.partial and keep what an earlier process has written.
    Without an error, the folder becomes `target`, with the file `fingerprint` that says what it contains.
    """
    done = target / FINGERPRINT_FILE
    if done.is_file() and done.read_text() == digest:
        announce("export", f"{target} is complete")
        yield None
        return
    if target.exists() and not done.is_file() and any(target.iterdir()):
        raise ValueError(f"{target}: exists, and is no export of this command; choose another folder")
    work.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(work, digest) as folder:
        yield folder
        fsync(folder)
        replace_folder(folder, target)
    # some readers take every file of the folder for a part
    remove_lock(work)


def write_missing(
    description: str,
    parts: Sequence[range],
    written: Callable[[int], Path],
    write: Callable[[int, range], None],
) -> None:
    """Call write(i, parts[i]) for each part whose last file, written(i), is missing. Shows progress in features."""
    total = parts[-1].stop if parts else 0
    missing = [i for i in range(len(parts)) if not written(i).is_file()]
    done = total - sum(len(parts[i]) for i in missing)
    with progress(description, total, "features", done) as bar:
        for i in missing:
            write(i, parts[i])
            bar.update(len(parts[i]))


def join_files(parts: Sequence[Path], file: Path) -> None:
    """Write the contents of `parts`, one after another, to `file`. Returns when they are on the disk."""
    with file.open("wb") as joined:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, joined, 1 << 20)
    fsync(file)
