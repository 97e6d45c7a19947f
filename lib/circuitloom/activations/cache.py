"""The writer: one pass of the training tokens through the model, shard by shard, for all layers of a site."""

import math
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import zarr
from safetensors.torch import load_file, save

from ..config.activations import Activations
from ..language_model.model import LanguageModel
from ..language_model.weights import weights_digest
from ..partial import fingerprint, flush, move, partial_folder, replace
from ..progress import progress
from .arrays import create_array, shard_file, write_shard
from .moments import Sums, moments
from .number_format import LARGEST, ZARR_DTYPE
from .order import RowOrder
from .recorder import Recorder, Shard


def layer_folder(folder: Path, site: str, layer: int) -> Path:
    """Where the activations of one site and layer lie under the stage's `folder`: a Zarr group."""
    return folder / site / f"layer{layer}.zarr"


def cache_site(
    site: str, order: RowOrder, model: LanguageModel, config: Activations, folder: Path, version: str = ""
) -> None:
    """Store the activations of `order`'s tokens at `site`, for every layer that `config` asks for.

    Writes one Zarr group a layer under `folder`: `values`, and `scales` for int8; moments are attributes.
    May be killed at any moment: the next call goes on after the last whole shard, to the same bytes, unless the
    model, the order, a key or `version` (of the code) have changed since.
    Raises ValueError where the model has no such site or layer, or an activation is too large for the format.
    """
    layers = list(range(model.layers)) if config.layers == "all" else sorted(set(config.layers))
    if layers[-1] >= model.layers:
        raise ValueError(f"activations.layers: no layer {layers[-1]}; choose from 0 to {model.layers - 1}")
    weights = weights_digest(model.module.state_dict())
    mark = fingerprint(
        site=site, layers=layers, dtype=config.dtype, batch=config.batch, order=order.digest, weights=weights,
        version=version,
    )  # fmt: skip
    with partial_folder(folder / site, mark) as work:
        Writer(work, order, Recorder(model, site, layers, config.dtype), config.batch, weights).run()
        for layer in layers:
            move(work / f"layer{layer}.zarr", layer_folder(folder, site, layer))
        shutil.rmtree(work)


@dataclass(frozen=True)
class Writer:
    """Fills, writes and records shards in `work`; a shard that is recorded is whole."""

    work: Path
    order: RowOrder
    recorder: Recorder
    batch: int
    """Sequences a forward pass."""
    weights: str
    """Digest of the model's weights."""

    def run(self) -> None:
        """Write the shards that are missing, then the attributes."""
        # zarr writes metadata to a file beside it first, which a kill leaves behind
        for stray in self.work.rglob("zarr.*.partial"):
            stray.unlink()
        shards = range(self.order.shards)
        done = next((shard for shard in shards if not self._is_whole(shard)), len(shards))
        # after a kill amid moving, later shards have records and yet are written anew
        for shard in range(done, self.order.shards):
            self._record(shard).unlink(missing_ok=True)
        start = min(done * self.order.shard_rows, self.order.rows)
        with progress(f"activations: {self.recorder.site}", self.order.rows, "tokens", done=start) as bar:
            self._write_shards(done, bar.update)
        self._write_attributes()

    def _write_shards(self, done: int, update: Callable[[float], object]) -> None:
        """Fill shards from `done` on; while one is filled, the one before it is written."""
        rooms = [self._room() for _ in range(min(2, self.order.shards - done))]
        written: Future[None] | None = None
        with ThreadPoolExecutor(1) as background:
            for shard in range(done, self.order.shards):
                room, sums = rooms[shard % len(rooms)], self._no_sums()
                for packed in self.recorder.record(self.order.batches(shard, self.batch), sums):
                    room.put(packed)
                    update(len(packed.slot))
                self._check(sums)
                if written is not None:
                    written.result()
                written = background.submit(self._write, shard, room, sums)
            if written is not None:
                written.result()

    def _room(self) -> Shard:
        rows = min(self.order.shard_rows, self.order.rows)
        return Shard.empty(len(self.recorder.layers), rows, self.recorder.d, self.recorder.number_format)

    def _no_sums(self) -> Sums:
        return Sums.zeros(len(self.recorder.watched), self.recorder.d, self.recorder.model.device)

    def _check(self, sums: Sums) -> None:
        """ValueError where an activation does not fit the number format."""
        number_format = self.recorder.number_format
        for site, largest in zip(self.recorder.watched, sums.largest.tolist(), strict=True):
            if not math.isfinite(largest):
                raise ValueError(
                    f"layer {site.layer}: {site.name} is not finite; check the weights, or load in float32"
                )
            if site.name == self.recorder.site and largest > LARGEST[number_format]:
                raise ValueError(
                    f"layer {site.layer}: {site.name} reaches {largest:.3g}, beyond {number_format}; "
                    "set activations.dtype to bfloat16"
                )

    def _write(self, shard: int, room: Shard, sums: Sums) -> None:
        """Write a shard of every layer, then its record."""
        start, stop = self.order.bounds(shard)
        for i, arrays in enumerate(self._arrays):
            write_shard(arrays[0], shard, _as_numpy(room.values[i, : stop - start]))
            if room.scales is not None:
                write_shard(arrays[1], shard, room.scales[i, : stop - start].numpy())
        # all at once: while one is compressed, the disk takes those before it
        for array in (array for arrays in self._arrays for array in arrays):
            flush(shard_file(array, shard))
        replace(
            self._record(shard),
            save({"total": sums.total.cpu(), "square": sums.square.cpu(), "largest": sums.largest.cpu()}),
        )

    @cached_property
    def _arrays(self) -> list[list[zarr.Array]]:
        """The arrays of each layer: values, and scales where the format has them."""
        rows, d, number_format = self.order.rows, self.recorder.d, self.recorder.number_format
        arrays: dict[str, tuple[tuple[int, ...], str]] = {"values": ((rows, d), ZARR_DTYPE[number_format])}
        if number_format == "int8":
            arrays["scales"] = ((rows,), "float32")
        layers = []
        for layer in self.recorder.layers:
            group = self.work / f"layer{layer}.zarr"
            zarr.open_group(group, mode="a")
            layers.append(
                [create_array(group, name, *a, self.order.shard_rows) for name, a in arrays.items()]
            )
        return layers

    def _record(self, shard: int) -> Path:
        return self.work / f"shard{shard}.safetensors"

    def _is_whole(self, shard: int) -> bool:
        """The shard is recorded, and its layers lie here: a kill may have come while they were moved."""
        return self._record(shard).is_file() and all(
            shard_file(array, shard).is_file() for arrays in self._arrays for array in arrays
        )

    def _write_attributes(self) -> None:
        """Say in each layer's group what its rows are, and their moments over all shards."""
        sums = self._no_sums()
        for shard in range(self.order.shards):
            sums = sums + Sums(**load_file(self._record(shard), device=str(sums.total.device)))
        for i, layer in enumerate(self.recorder.layers):
            attributes = {
                "site": self.recorder.site,
                "layer": layer,
                "number_format": self.recorder.number_format,
                "order": self.order.digest,
                "weights": self.weights,
                "moments": moments(sums, i, self.order.rows).to_json(),
            }
            if self.recorder.site == "mlp_in":
                output = moments(sums, len(self.recorder.layers) + i, self.order.rows)
                attributes["moments_mlp_out"] = output.to_json()
            zarr.open_group(self.work / f"layer{layer}.zarr", mode="r+").attrs.put(attributes)


def _as_numpy(values: torch.Tensor) -> np.ndarray:
    """`values` without a copy; the bits of bfloat16 as uint16."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
