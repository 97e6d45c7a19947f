"""What the shards of a site become, written by one job or by several: Zarr groups with moments over all rows."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import zarr
from safetensors.torch import load_file

from ..core.atomic_io import fingerprint, flush, move, partial_folder, replace
from .arrays import shard_file
from .statistics import RowSums, moments

_DESCRIPTION = "description.json"


@dataclass(frozen=True)
class Description:
    """What shards are of; those of one site share it."""

    site: str
    layers: list[int]
    number_format: str
    order: str
    """Digest of the row order."""
    weights: str
    """Digest of the model's weights."""
    rows: int
    """Of all shards, wherever they lie."""
    shard_rows: int

    @property
    def shards(self) -> int:
        """Shards in all."""
        return -(-self.rows // self.shard_rows)


def layer_folder(folder: Path, site: str, layer: int) -> Path:
    """Where the activations of one site and layer lie under the stage's `folder`: a Zarr group."""
    return group_folder(folder / site, layer)


def group_folder(folder: Path, layer: int) -> Path:
    """The Zarr group of a layer in a site's folder."""
    return folder / f"layer{layer}.zarr"


def record_file(folder: Path, shard: int) -> Path:
    """What says that a shard is whole in `folder`: the sums over its rows."""
    return folder / f"shard{shard}.safetensors"


def write_description(folder: Path, description: Description) -> None:
    """Say in `folder` what its shards are of."""
    replace(folder / _DESCRIPTION, json.dumps(asdict(description)).encode())


def join_parts(parts: Sequence[Path], folder: Path) -> None:
    """Make of the shards that lie in `parts` what one job would have made of them all, under `folder`.

    Files are linked where the file system has links, else copied; `parts` stay as they are. The bytes are those that
    `cache.cache_site` writes. Raises ValueError, with the remedy, where a part is not of the same rows as the first,
    or shards are missing.
    """
    described = [_read_description(part) for part in parts]
    for part, each in zip(parts, described, strict=True):
        if each != described[0]:
            raise ValueError(
                f"{part}: of another model, row order or config than {parts[0]}; delete both and run again"
            )
    first, owner = described[0], _owners(parts, described[0])
    whole = folder / first.site
    with partial_folder(whole, fingerprint(parts=list(map(str, parts)), description=asdict(first))) as work:
        for layer in first.layers:
            group = group_folder(work, layer)
            shutil.rmtree(group, ignore_errors=True)
            shutil.copytree(group_folder(parts[0], layer), group, ignore=shutil.ignore_patterns("c"))
            for _, array in zarr.open_group(group, mode="r").arrays():
                for shard in range(first.shards):
                    _link(owner[shard], work, shard_file(array, shard))
        finish(work, parts, folder)


def finish(work: Path, records: Sequence[Path], folder: Path) -> None:
    """Give each layer in `work` its attributes, by the sums that lie in the folders `records`; move it under `folder`.

    Attributes are what the rows are of, and their moments over all shards.
    """
    about = _read_description(records[0])
    owner = _owners(records, about)
    sums: RowSums | None = None
    for shard in range(about.shards):
        # in order: floating-point sums depend on it
        more = RowSums(**load_file(record_file(owner[shard], shard)))
        sums = more if sums is None else sums + more
    assert sums is not None
    for i, layer in enumerate(about.layers):
        attributes = {
            "site": about.site,
            "layer": layer,
            "number_format": about.number_format,
            "order": about.order,
            "weights": about.weights,
            "moments": moments(sums, i, about.rows).to_json(),
        }
        if about.site == "mlp_in":
            attributes["moments_mlp_out"] = moments(sums, len(about.layers) + i, about.rows).to_json()
        zarr.open_group(group_folder(work, layer), mode="r+").attrs.put(attributes)
    for layer in about.layers:
        move(group_folder(work, layer), layer_folder(folder, about.site, layer))
    shutil.rmtree(work)


def _read_description(part: Path) -> Description:
    try:
        return Description(**json.loads((part / _DESCRIPTION).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{part}: no part of cached activations ({error}); delete it and run again"
        ) from error


def _owners(parts: Sequence[Path], about: Description) -> list[Path]:
    """For each shard, a part in which its record lies; ValueError where there is none."""
    found = {file.name: part for part in parts for file in part.glob("shard*.safetensors")}
    owners = [found.get(record_file(Path(), shard).name) for shard in range(about.shards)]
    if None in owners:
        missing = record_file(Path(), owners.index(None))
        raise ValueError(
            f"{missing}: in none of the parts in {parts[0].parent}; delete that folder and run again"
        )
    return [part for part in owners if part is not None]


def _link(part: Path, work: Path, file: Path) -> None:
    """Have `file`, under `work`, be that of `part`."""
    source = part / file.relative_to(work)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, file)
    except FileNotFoundError:
        raise ValueError(f"{source}: missing; delete {part} and run again") from None
    except OSError:
        # another disk, or one without links
        shutil.copyfile(source, file)
        flush(file)
