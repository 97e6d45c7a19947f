"""What finished outputs are made of: a record of every file's size and checksum, by which damage is found later.
Every file of a study's results against what was recorded of it when it was written."""

import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from .atomic_io import write_atomically

RECORDS = "checksums"
"""Folder, in the study's, in which the records lie at their outputs' own paths."""
_PIECE = 2**22
_NOT_WRITTEN = "not what was written (its checksum differs)"

Files = dict[str, tuple[int, int | None]]
"""Size and CRC-32 of an output's files, by their path in it; that of an output which is one file is empty.

Chunks of Zarr arrays have no CRC-32: they carry checksums of their own, and may take hours to be read once more.
"""


def record_path(folder: Path, output: Path) -> Path:
    """Where the record of `output`, an output of the study in `folder`, lies."""
    path = folder / RECORDS / output.relative_to(folder)
    return path.with_name(f"{path.name}.json")


def write_record(folder: Path, output: Path) -> None:
    """Record `output`, a file or folder as it lies there, in place of any record of it."""
    files: Files = {
        name: (file.stat().st_size, None if _is_chunk(output / name) else _checksum(file))
        for name, file in _files(output).items()
    }
    path = record_path(folder, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _encode(files))


def remove_record(folder: Path, output: Path) -> None:
    """Remove the record of `output`, if there is one: it is about to be made anew."""
    record_path(folder, output).unlink(missing_ok=True)


def check_inputs(folder: Path, inputs: Iterable[Path]) -> None:
    """Raise ValueError, naming the file and the remedy, where one of a job's inputs is not as it was recorded.

    What has no record passes. Chunks of Zarr arrays are held to their sizes alone: their checksums are verified when
    they are read.
    """
    for path in inputs:
        if path.is_relative_to(folder) and record_path(folder, path).is_file():
            for line in output_damage(folder, path, chunks=False):
                raise ValueError(line)


def output_damage(folder: Path, output: Path, chunks: bool = True) -> Iterator[str]:
    """A line, with the remedy, for each file of `output` that is not as it was recorded; sizes are compared first.

    Without `chunks`, contents of Zarr arrays are not read.
    """
    record = record_path(folder, output)
    try:
        expected = read_record(record)
    except ValueError:
        yield f"{record}: a damaged record; delete it and {output}, and run again"
        return
    if not output.exists():
        yield f"{output}: missing; run again, or delete {record} where the study no longer makes it"
        return
    remedy = "delete it" if set(expected) == {""} else f"delete {output}"
    found, unreadable = _files(output), set()
    # metadata of arrays first: without it chunks cannot be read
    for name, (size, checksum) in sorted(expected.items(), key=lambda item: _is_chunk(output / item[0])):
        file = found.get(name)
        fault = _fault(file, size, checksum)
        if fault is not None:
            unreadable.add((output / name).parent)
        elif chunks and file is not None and checksum is None and unreadable.isdisjoint(file.parents):
            fault = _chunk_fault(file)
        if fault is not None:
            yield f"{output / name}: {fault}; {remedy} and run again"
    for name in found.keys() - expected.keys():
        # libraries choose files of a model or tokenizer by what is there
        yield f"{output / name}: not made by the workflow; remove it"


def read_record(record: Path) -> Files:
    """What `record` says; ValueError where it is damaged."""
    content = record.read_bytes()
    try:
        files = {name: (size, checksum) for name, (size, checksum) in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{record}: damaged") from error
    # any other byte would make it another text
    if content != _encode(files):
        raise ValueError(f"{record}: damaged")
    return files


def _encode(files: Files) -> bytes:
    """A record, under a checksum of its own."""
    text = json.dumps(files)
    return f'{{"crc32": {zlib.crc32(text.encode())}, "files": {text}}}\n'.encode()


def _files(output: Path) -> dict[str, Path]:
    """The files of an output by their path in it; hidden ones are Snakemake's."""
    if not output.is_dir():
        return {"": output}
    files = (file for file in sorted(output.rglob("*")) if file.is_file() and file.name[0] != ".")
    return {file.relative_to(output).as_posix(): file for file in files}


def _is_chunk(file: Path) -> bool:
    """A part of a Zarr array's contents, which carries its own checksum."""
    return file.name != "zarr.json" and any(parent.suffix == ".zarr" for parent in file.parents)


def _fault(file: Path | None, size: int, checksum: int | None) -> str | None:
    """What is wrong with a file, if anything; None for `checksum` leaves its contents unread."""
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
    """What is wrong with a chunk, or shard, of a Zarr array by the checksums that it carries."""
    import zarr

    folder = next(parent for parent in file.parents if (parent / "zarr.json").is_file())
    try:
        array = zarr.open_array(folder, mode="r")
        places = zip(file.relative_to(folder / "c").parts, array.shards or array.chunks, strict=True)
        array[tuple(slice(int(place) * size, (int(place) + 1) * size) for place, size in places)]
    # whatever codecs raise
    except Exception:
        return _NOT_WRITTEN
    return None


def _checksum(file: Path) -> int:
    """CRC-32 of a file's contents."""
    value = 0
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value


def recorded_outputs(folder: Path) -> list[Path]:
    """The outputs of the study in `folder` that have a record, in order of their paths.

    Raises ValueError, with the remedy, where there are none.
    """
    records = folder / RECORDS
    if not folder.is_dir():
        raise ValueError(f"{folder}: not there; run the workflow, or name another study")
    found = [record.relative_to(records).with_suffix("") for record in sorted(records.rglob("*.json"))]
    if not found:
        raise ValueError(f"{records}: no checksums; jobs write them as they finish: run the workflow")
    return [folder / path for path in found]


def find_damage(folder: Path) -> Iterator[str]:
    """A line, with the file and the remedy, for each file that is not as it was written; reads all files."""
    for output in recorded_outputs(folder):
        yield from output_damage(folder, output)


def summary(folder: Path) -> str:
    """How much is recorded of the study in `folder`, in words; ValueError where a record is damaged."""
    outputs = recorded_outputs(folder)
    sizes = [size for output in outputs for size, _ in read_record(record_path(folder, output)).values()]
    return f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, of {len(outputs)} outputs"
