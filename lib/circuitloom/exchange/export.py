"""Exports a run of a study into a folder that another library reads.

1. The whole run is checked: what the format cannot represent is refused before anything is written.
2. Layers are written one after another into OUTPUT.partial. A layer that is there already, from a killed export or from
   an earlier one of this run, is kept if the checksums of what it was made from and of its own files are the same.
3. Files about all layers, the record export.json and the card README.md follow. Then the folder gets its name.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.atomic_io import fingerprint, partial_folder, remove_lock, remove_partial_folder, replace_folder
from ..core.progress import announce, progress
from .card import write_card
from .exporters import Exporter, find_exporter
from .record import CARD, RECORD, file_hashes, read_record, sha256, write_record
from .stored_run import ExportedModel, StoredRun, describe_model


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    folder: Path
    written: list[int]
    """Layers that were written."""
    kept: list[int]
    """Layers that were complete before."""
    bytes: int
    """Size of all files."""


def export_run(
    format_name: str,
    run: StoredRun,
    output: Path,
    license: str | None = None,
    model_name: str | None = None,
    version: str = "",
) -> ExportResult:
    """Write the dictionaries of `run` in the format `format_name` into the folder `output`, with a card.

    `license` is that of the card, by default unknown. `model_name` is the name of the language model in the files, by
    default that of `describe_model`. Layers of another `version` of the code are written again. Raises ValueError if
    the format cannot represent the run, or if `output` has other files.
    """
    exporter = find_exporter(format_name, run[min(run)])
    model = describe_model(run.results, model_name)
    exporter.check(run, model)
    settings = {"format": format_name, "run": run.name, "model": asdict(model), "version": version}
    digest = fingerprint(**settings)
    _check_output(output, digest)
    with partial_folder(output, digest) as partial:
        folder = partial / "export"
        if not folder.exists() and (output / RECORD).is_file():
            # what was exported before is completed, so that its unchanged layers are kept
            output.rename(folder)
        folder.mkdir(exist_ok=True)
        record = read_record(folder) or {"format": format_name, "run": run.name, "model": model.name}
        record["fingerprint"] = digest
        written = _write_layers(exporter, run, model, folder, record)
        first = run[min(run)]
        exporter.write_set(first, folder, model)
        record["files"] = {name: sha256(folder / name) for name in exporter.set_files}
        write_record(folder, record)
        hashes = file_hashes(record)
        write_card(folder, format_name, exporter, run, model, license, hashes)
        _remove_others(folder, {*hashes, RECORD, CARD})
        replace_folder(folder, output)
        remove_partial_folder(partial)
    remove_lock(output)
    if text := exporter.notice(first):
        announce("exchange", text)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return ExportResult(output, written, [layer for layer in run if layer not in written], size)


def _write_layers(
    exporter: Exporter, run: StoredRun, model: ExportedModel, folder: Path, record: dict[str, Any]
) -> list[int]:
    """Write the layers that are not complete, and update `record`. Returns the written layers."""
    layers: dict[str, Any] = record.setdefault("layers", {})
    for number in [number for number in layers if int(number) not in run]:
        del layers[number]
    written = []
    with progress(f"exchange: {run.name} for {exporter.library}", len(run), "layers") as bar:
        for layer in run:
            source = run.digest(layer)
            if not _is_complete(folder, layers.get(str(layer)), source):
                # a reader must not take old files about all layers for those of new ones
                for name in (*exporter.set_files, CARD):
                    (folder / name).unlink(missing_ok=True)
                dictionary = run[layer]
                exporter.write_layer(dictionary, folder, model)
                names = exporter.layer_files(dictionary, model)
                layers[str(layer)] = {
                    "source": source,
                    "files": {name: sha256(folder / name) for name in names},
                }
                write_record(folder, record)
                written.append(layer)
            bar.update()
    return written


def _is_complete(folder: Path, entry: dict[str, Any] | None, source: str) -> bool:
    """Whether a layer's files were made from `source` and are as they were written."""
    if entry is None or entry["source"] != source:
        return False
    files = entry["files"].items()
    return all((folder / name).is_file() and sha256(folder / name) == expected for name, expected in files)


def _check_output(output: Path, digest: str) -> None:
    """Raise ValueError if `output` has files that an export of the same run does not replace."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    record = read_record(output) if output.is_dir() else None
    if record is None:
        raise ValueError(f"{output}: already there, and not an export; choose another folder")
    if record.get("fingerprint") != digest:
        raise ValueError(
            f"{output}: holds run {record['run']} for {record['format']}, exported with other settings; delete it, or "
            "choose another folder"
        )


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove files of an earlier export that this one does not have, such as those of layers left out now."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
