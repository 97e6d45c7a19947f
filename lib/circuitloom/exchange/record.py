"""The record of an export, export.json: its settings, and the SHA-256 of every exported file."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..core.atomic_io import write_atomically
from ..core.progress import progress

RECORD, CARD = "export.json", "README.md"
"""Names of the record and of the card."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """Returns the record in `folder`, or None if there is none. Raises ValueError if it is damaged."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
        for key in ("format", "run", "fingerprint"):
            record[key]
        file_hashes(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged; delete {folder} and export again") from error
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `record` into `folder`."""
    write_atomically(folder / RECORD, f"{json.dumps(record, indent=2)}\n".encode())


def file_hashes(record: dict[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of each exported file by its path: files of each layer, then files about all layers."""
    layers = sorted(record.get("layers", {}).items(), key=lambda item: int(item[0]))
    hashes = {name: digest for _, entry in layers for name, digest in entry["files"].items()}
    return hashes | record.get("files", {})


def check_export(folder: Path) -> None:
    """Raise ValueError, with the file and the remedy, if an exported file is missing or damaged."""
    record = read_record(folder)
    if record is None:
        raise ValueError(
            f"{folder}: there is no {RECORD}; name a folder that `circuitloom export` has written"
        )
    hashes = file_hashes(record)
    with progress(f"exchange: verifying {folder}", len(hashes), "files") as bar:
        for name, expected in hashes.items():
            if not (folder / name).is_file() or sha256(folder / name) != expected:
                raise ValueError(f"{folder / name}: not what was exported; export the run again")
            bar.update()


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's contents."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
