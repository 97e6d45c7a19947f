"""Records of finished outputs: the size and checksum of every file. `circuitloom verify` and later jobs compare files
with these records."""

import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from .atomic_io import write_atomically
from .layout import CHECKSUMS, Layout

_PIECE = 2**22
"""Number of bytes per read."""
_NOT_WRITTEN = "not what was written (its checksum differs)"

Files = dict[str, tuple[int, int | None]]
"""Maps the path of each file within an output to (size in bytes, CRC-32). The path is empty if the output is one file.

The CRC-32 of a Zarr chunk is None. Chunks contain their own checksums, and reading all chunks can take hours.
"""
Contents = Literal["all", "files", "none"]
"""Which files are read in full. `all`: all files. `files`: all files except chunks of Zarr arrays. `none`: no files,
only sizes are compared."""


def write_record(folder: Path, output: Path) -> None:
    """Write the record of `output`, a file or folder of the study in `folder`. Replaces an earlier record."""
    files: Files = {
        name: (file.stat().st_size, None if _is_chunk(output / name) else _checksum(file))
        for name, file in _files(output).items()
    }
    path = record_path(folder, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _encode(files))


def remove_record(folder: Path, output: Path) -> None:
    """Remove the record of `output` if there is one. A job does this before it writes `output` again."""
    record_path(folder, output).unlink(missing_ok=True)


def record_path(folder: Path, output: Path) -> Path:
    """Returns the path of the record of `output`."""
    return Layout(folder).checksums(output)


def read_record(record: Path) -> Files:
    """Returns the content of a record. Raises ValueError if the record is damaged."""
    content = record.read_bytes()
    try:
        files = {name: (size, checksum) for name, (size, checksum) in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{record}: damaged") from error
    # equal records have equal bytes, and the bytes include a checksum of the record itself
    if content != _encode(files):
        raise ValueError(f"{record}: damaged")
    return files


def recorded_outputs(folder: Path) -> list[Path]:
    """Returns the outputs of the study in `folder` that have a record, sorted by path. Raises ValueError if there is no
    record."""
    records = folder / CHECKSUMS
    if not folder.is_dir():
        raise ValueError(f"{folder}: not there; run the workflow, or name another study")
    found = [record.relative_to(records).with_suffix("") for record in sorted(records.rglob("*.json"))]
    if not found:
        raise ValueError(f"{records}: no checksums; jobs write them as they finish: run the workflow")
    return [folder / path for path in found]


def check_inputs(folder: Path, inputs: Iterable[Path], contents: bool = True) -> None:
    """Compare a job's inputs with their records. Inputs without a record are not checked.

    If `contents` is false, only sizes are compared. Zarr chunks are verified later, when the job reads the array.
    Raises ValueError, with the file and the remedy, at the first damaged file.
    """
    for path in inputs:
        if path.is_relative_to(folder) and record_path(folder, path).is_file():
            for line in output_damage(folder, path, "files" if contents else "none"):
                raise ValueError(line)


def find_damage(folder: Path) -> Iterator[str]:
    """Yields one line, with the fault and the remedy, for each damaged file of a study. Reads all recorded files."""
    for output in recorded_outputs(folder):
        yield from output_damage(folder, output)


def adopt(folder: Path) -> None:
    """Give all recorded outputs of the study in `folder` one modification time, so that Snakemake makes none again.

    A copy has the times and the order of copying, from which Snakemake concludes that inputs changed after outputs were
    made. Outputs without a record, which a killed job may have left, keep their times and are older than their inputs.
    The caller has verified the contents (`find_damage`).
    """
    # Snakemake keeps the time of a folder in a hidden file in it, and the time of a benchmark counts as an output's
    files = [file for output in recorded_outputs(folder) for file in (output, *output.rglob("*"))]
    files += Layout(folder).benchmarks.rglob("*")
    now = time.time_ns()
    for file in files:
        os.utime(file, ns=(now, now))


def output_damage(folder: Path, output: Path, contents: Contents = "all") -> Iterator[str]:
    """Yields one line, with the fault and the remedy, for each file that differs from the record of `output`."""
    record = record_path(folder, output)
    try:
        expected = read_record(record)
    except ValueError:
        yield f"{record}: a damaged record; delete it and {output}, and run again"
        return
    if not output.exists():
        yield f"{output}: missing; run again, or delete {record} if the study no longer makes it"
        return
    remedy = "delete it" if set(expected) == {""} else f"delete {output}"
    found, unreadable = _files(output), set()
    # check the metadata of arrays first, because chunks cannot be read without metadata
    for name, (size, checksum) in sorted(expected.items(), key=lambda item: _is_chunk(output / item[0])):
        file = found.get(name)
        fault = _fault(file, size, None if contents == "none" else checksum)
        if fault is not None:
            unreadable.add((output / name).parent)
        elif contents == "all" and file is not None and checksum is None:
            fault = _chunk_fault(file) if unreadable.isdisjoint(file.parents) else None
        if fault is not None:
            yield f"{output / name}: {fault}; {remedy} and run again"
    for name in found.keys() - expected.keys():
        # an added file can change what libraries load from the folder of a model or tokenizer
        yield f"{output / name}: not made by the workflow; remove it"


def summary(folder: Path) -> str:
    """Returns the number and total size of a study's recorded files, in words. Raises ValueError if a record is
    damaged."""
    outputs = recorded_outputs(folder)
    sizes = [size for output in outputs for size, _ in read_record(record_path(folder, output)).values()]
    return f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, of {len(outputs)} outputs"


def _encode(files: Files) -> bytes:
    """Returns a record as JSON text, including a checksum of the record itself."""
    text = json.dumps(files)
    return f'{{"crc32": {zlib.crc32(text.encode())}, "files": {text}}}\n'.encode()


def _files(output: Path) -> dict[str, Path]:
    """Maps paths within an output to files. Hidden files are omitted, because they belong to Snakemake."""
    if not output.is_dir():
        return {"": output}
    files = (file for file in sorted(output.rglob("*")) if file.is_file() and file.name[0] != ".")
    return {file.relative_to(output).as_posix(): file for file in files}


def _is_chunk(file: Path) -> bool:
    """Whether a file is a chunk or shard of a Zarr array."""
    return file.name != "zarr.json" and any(parent.suffix == ".zarr" for parent in file.parents)


def _fault(file: Path | None, size: int, checksum: int | None) -> str | None:
    """Returns the fault of a file in words, or None. If `checksum` is None, only the size is compared."""
    if file is None:
        return "missing"
    try:
        found = file.stat().st_size
        if found != size:
            return f"{found} bytes instead of {size}"
        if checksum is not None and _checksum(file) != checksum:
            return _NOT_WRITTEN
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _chunk_fault(file: Path) -> str | None:
    """Returns the fault of a Zarr chunk or shard in words, or None. Verifies the checksums within the file."""
    import zarr

    folder = next(parent for parent in file.parents if (parent / "zarr.json").is_file())
    try:
        array = zarr.open_array(folder, mode="r")
        indices = zip(file.relative_to(folder / "c").parts, array.shards or array.chunks, strict=True)
        array[tuple(slice(int(index) * size, (int(index) + 1) * size) for index, size in indices)]
    # the codecs of Zarr raise errors of many classes
    except Exception:
        return _NOT_WRITTEN
    return None


def _checksum(file: Path) -> int:
    """Returns the CRC-32 of a file's contents."""
    value = 0
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value
