"""Combines the shards of a site into one Zarr group per layer. One or several jobs have written the shards."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Float
from safetensors import safe_open

from ..core.atomic_io import fingerprint, fsync, partial_folder, replace_folder, write_atomically
from ..core.layout import layer_group
from ..core.zarr_groups import consolidate
from .arrays import shard_file
from .statistics import RowSums, moments, norm_statistics

_DESCRIPTION = "description.json"


@dataclass(frozen=True)
class CacheDescription:
    """Source and layout of the shards in a folder. All jobs that cache the same site have the same description."""

    site: str
    layers: list[int]
    computed: list[str]
    """Sites that are computed from `site` when they are read. The sums and norms of these sites follow those of `site`,
    one site after the other."""
    number_format: str
    order: str
    """Digest of the order of rows."""
    weights: str
    """Digest of the language model's weights."""
    rows: int
    """Total number of rows in the shards of all jobs."""
    shard_rows: int

    @property
    def shards(self) -> int:
        """Total number of shards of all jobs."""
        return -(-self.rows // self.shard_rows)


def sums_file(folder: Path, shard: int) -> Path:
    """Returns the path of the file with the sums over a shard's rows. This file is the last that is written for a
    shard."""
    return folder / f"shard{shard}.safetensors"


def write_description(folder: Path, description: CacheDescription) -> None:
    """Write the description of the shards in `folder`."""
    write_atomically(folder / _DESCRIPTION, json.dumps(asdict(description)).encode())


def join_shards(job_folders: Sequence[Path], folder: Path) -> None:
    """Combine the shards of several jobs into Zarr groups under `folder`. `cache.cache_site` writes the same bytes.

    Files are hard-linked, or copied if hard links are impossible. The job folders are not changed. Raises ValueError if
    the jobs have different descriptions, or if shards are missing.
    """
    descriptions = [_read_description(job) for job in job_folders]
    for job, each in zip(job_folders, descriptions, strict=True):
        if each != descriptions[0]:
            raise ValueError(
                f"{job}: cached with another model, row order or config than {job_folders[0]}; "
                "delete both and run again"
            )
    description = descriptions[0]
    job_of = _job_of_shard(job_folders, description)
    digest = fingerprint(parts=list(map(str, job_folders)), description=asdict(description))
    with partial_folder(folder / description.site, digest) as work:
        for layer in description.layers:
            group = layer_group(work, layer)
            shutil.rmtree(group, ignore_errors=True)
            shutil.copytree(layer_group(job_folders[0], layer), group, ignore=shutil.ignore_patterns("c"))
            for _, array in zarr.open_group(group, mode="r").arrays():
                for shard in range(description.shards):
                    _link(job_of[shard], work, shard_file(array, shard))
        finish_layers(work, job_folders, folder)


def finish_layers(work: Path, job_folders: Sequence[Path], folder: Path) -> None:
    """Write the attributes of each layer's Zarr group in `work`. Then move the groups to `folder` and remove `work`.

    The attributes are the description of the shards, and the moments and norms from the sums in `job_folders`.
    """
    description = _read_description(job_folders[0])
    job_of = _job_of_shard(job_folders, description)
    files = [sums_file(job_of[shard], shard) for shard in range(description.shards)]
    sums: RowSums | None = None
    # sums are added in the order of shards, because floating-point sums depend on the order
    for file in files:
        with safe_open(file, "pt") as tensors:
            shard_sums = RowSums(*map(tensors.get_tensor, ("total", "square", "largest")))
        sums = shard_sums if sums is None else sums + shard_sums
    assert sums is not None
    for i, layer in enumerate(description.layers):
        attributes = {
            "site": description.site,
            "layer": layer,
            "number_format": description.number_format,
            "order": description.order,
            "weights": description.weights,
            "moments": moments(sums, i, description.rows).to_json(),
            "norms": norm_statistics(_read_norms(files, i)).to_json(),
        }
        for number, site in enumerate(description.computed, 1):
            array = number * len(description.layers) + i
            attributes[f"moments_{site}"] = moments(sums, array, description.rows).to_json()
            attributes[f"norms_{site}"] = norm_statistics(_read_norms(files, array)).to_json()
        zarr.open_group(layer_group(work, layer), mode="r+").attrs.put(attributes)
        consolidate(layer_group(work, layer))
    for layer in description.layers:
        replace_folder(layer_group(work, layer), layer_group(folder / description.site, layer))
    shutil.rmtree(work)


def _read_norms(files: Sequence[Path], array: int) -> Float[np.ndarray, " row"]:
    """Returns the norms of all rows of array number `array`. `files` are the files with the sums of all shards."""
    parts = []
    for file in files:
        with safe_open(file, "np") as tensors:
            # the norms of all arrays together may not fit into memory
            parts.append(tensors.get_slice("norms")[array : array + 1][0])
    return np.concatenate(parts)


def _read_description(job: Path) -> CacheDescription:
    try:
        return CacheDescription(**json.loads((job / _DESCRIPTION).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{job}: no cached activations ({error}); delete it and run again") from error


def _job_of_shard(job_folders: Sequence[Path], description: CacheDescription) -> list[Path]:
    """Returns the job folder of each shard. Raises ValueError if a shard is missing."""
    found = {file.name: job for job in job_folders for file in job.glob("shard*.safetensors")}
    jobs = [found.get(sums_file(Path(), shard).name) for shard in range(description.shards)]
    if None in jobs:
        missing = sums_file(Path(), jobs.index(None))
        raise ValueError(
            f"{missing}: missing from all folders in {job_folders[0].parent}; delete that folder and run again"
        )
    return [job for job in jobs if job is not None]


def _link(job: Path, work: Path, file: Path) -> None:
    """Create `file` as a hard link, or as a copy. The path of the source under `job` is the path of `file` under
    `work`."""
    source = job / file.relative_to(work)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, file)
    except FileNotFoundError:
        raise ValueError(f"{source}: missing; delete {job} and run again") from None
    except OSError:
        # the job folder is on another file system, or the file system has no hard links
        shutil.copyfile(source, file)
        fsync(file)
