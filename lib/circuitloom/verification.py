"""Every file of a profile's results against what was recorded of it when it was written."""

from collections.abc import Iterator
from pathlib import Path

from .checksums import RECORDS, damage, read_record, record_path


def recorded(folder: Path) -> list[Path]:
    """The outputs of the profile in `folder` that have a record, in order of their paths.

    Raises ValueError, with the remedy, where there are none.
    """
    records = folder / RECORDS
    if not folder.is_dir():
        raise ValueError(f"{folder}: not there; run the workflow, or name another profile")
    found = [record.relative_to(records).with_suffix("") for record in sorted(records.rglob("*.json"))]
    if not found:
        raise ValueError(f"{records}: no checksums; jobs write them as they finish: run the workflow")
    return [folder / path for path in found]


def find_damage(folder: Path) -> Iterator[str]:
    """A line, with the file and the remedy, for each file that is not as it was written; reads all files."""
    for output in recorded(folder):
        yield from damage(folder, output)


def summary(folder: Path) -> str:
    """How much is recorded of the profile in `folder`, in words; ValueError where a record is damaged."""
    outputs = recorded(folder)
    sizes = [size for output in outputs for size, _ in read_record(record_path(folder, output)).values()]
    return f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, of {len(outputs)} outputs"
