"""Activations of one site, all layers, from the model's forward passes into memory. The writer: one pass of the
training tokens through the model, shard by shard, for all layers of a site."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import zarr
from jaxtyping import Float, Int, Num
from safetensors.torch import save
from torch import Tensor

from ..config.activations import Activations
from ..core.atomic_io import fingerprint, fsync, partial_folder, replace_folder, write_atomically
from ..core.progress import progress
from ..language_model.hooks import Site, capture, capture_each
from ..language_model.model import LanguageModel
from ..language_model.model_files import weights_digest
from .arrays import (
    LARGEST,
    TORCH_DTYPE,
    ZARR_DTYPE,
    NumberFormat,
    Packed,
    create_array,
    pack,
    shard_file,
    write_shard,
)
from .row_order import RowOrder, ShardBatch
from .shards import CacheDescription, finish_layers, group_folder, sums_file, write_description
from .statistics import RowSums


@dataclass
class ShardBuffer:
    """Room for the rows of one shard, of every layer; used again and again."""

    values: Num[Tensor, "layer row d"]
    scales: Float[Tensor, "layer row"] | None

    @classmethod
    def empty(
        cls, layers: int, rows: int, d: int, number_format: NumberFormat, device: torch.device | str = "cpu"
    ) -> "Shard":
        """Room whose content is yet to be written."""
        values = torch.empty(layers, rows, d, dtype=TORCH_DTYPE[number_format], device=device)
        return cls(values, torch.empty(layers, rows, device=device) if number_format == "int8" else None)

    def put(self, batch: "PackedBatch") -> None:
        """Put the rows of a batch in their slots."""
        if batch.copied is not None:
            batch.copied.synchronize()
        slot = batch.slot.to(self.values.device, non_blocking=True)
        for layer, (values, scales) in enumerate(batch.layers):
            self.values[layer].index_copy_(0, slot, values)
            if self.scales is not None and scales is not None:
                self.scales[layer].index_copy_(0, slot, scales)

    def layer(self, layer: int, rows: int) -> Packed:
        """The first rows of a layer, in host memory; what was put is waited for."""
        scales = None if self.scales is None else _fetch(self.scales[layer, :rows])
        return Packed(_fetch(self.values[layer, :rows]), scales)


@dataclass
class PackedBatch:
    """Activations of one batch: where the model is, or in host memory, or on their way there."""

    slot: Int[Tensor, " row"]
    layers: list[Packed] = field(default_factory=list)
    copied: torch.cuda.Event | None = None
    """Happens when they have arrived; None where they never were elsewhere."""


@dataclass(frozen=True)
class Recorder:
    """Runs sequences through the model and packs what it finds at one site of several layers."""

    model: LanguageModel
    site: str
    layers: Sequence[int]
    number_format: NumberFormat
    to_host: bool = True
    """Give out batches in host memory, not where the model is."""

    @property
    def watched(self) -> list[Site]:
        """The site of every layer; after mlp_in, whose rows give mlp_out when read, that of mlp_out too."""
        names = [self.site, "mlp_out"] if self.site == "mlp_in" else [self.site]
        return [Site(name, layer) for name in names for layer in self.layers]

    @cached_property
    def d(self) -> int:
        """Width of the site; ValueError where the model has no such site."""
        first = Site(self.site, self.layers[0])
        return capture(self.model, torch.zeros(1, 1, dtype=torch.int64), [first])[first].shape[-1]

    def record(self, batches: Iterator[ShardBatch], sums: RowSums) -> Iterator[PackedBatch]:
        """The packed activations of each batch; adds those of every watched site to `sums`.

        From a GPU, batches in host memory are given out once the next one's work is queued: copying hides behind it.
        """
        behind: PackedBatch | None = None
        for batch in batches:
            packed = self._batch(batch, sums)
            if packed.copied is None:
                yield packed
                continue
            if behind is not None:
                yield behind
            behind = packed
        if behind is not None:
            yield behind

    @torch.inference_mode()
    def _batch(self, batch: ShardBatch, sums: RowSums) -> PackedBatch:
        source = batch.source.to(self.model.device)
        packed = PackedBatch(batch.slot)
        place = {site: i for i, site in enumerate(self.watched)}
        layers: dict[int, Packed] = {}

        # while the values are in the processor's cache: each site's are dealt with before the next is computed
        def see(site: Site, value: Tensor) -> None:
            x = torch.index_select(value.flatten(0, 1), 0, source)
            sums.add(place[site], x)
            if site.name == self.site:
                packed_site = pack(x, self.number_format)
                layers[site.layer] = _to_host(packed_site) if self.to_host else packed_site

        capture_each(self.model, batch.tokens, self.watched, see)
        packed.layers += [layers[layer] for layer in self.layers]
        if self.to_host and self.model.device.type == "cuda":
            packed.copied = torch.cuda.Event()
            packed.copied.record()
        return packed


def _fetch(values: Tensor) -> Tensor:
    """`values` in host memory; from a GPU beside what it goes on with, once that is done which was queued before."""
    if values.device.type == "cpu":
        return values
    queued, beside = torch.cuda.current_stream(values.device).record_event(), torch.cuda.Stream(values.device)
    beside.wait_event(queued)
    with torch.cuda.stream(beside):
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    beside.synchronize()
    return host


def _to_host(packed: Packed) -> Packed:
    """`packed` in host memory; from a GPU the copy is only begun, into pinned memory."""

    def copy(x: Tensor | None) -> Tensor | None:
        if x is None or x.device.type == "cpu":
            return x
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)

    values = copy(packed.values)
    assert values is not None
    return Packed(values, copy(packed.scales))


GPU_MEMORY_FRACTION = 0.4
"""Of a GPU's free memory, what two shards may take."""
MAX_WRITER_THREADS = 8
"""Threads that write at most: what each takes, the model lacks on a CPU."""


def cache_site(
    site: str, order: RowOrder, model: LanguageModel, config: Activations, folder: Path, version: str = ""
) -> None:
    """Store the activations of `order`'s tokens at `site`, for every layer that `config` asks for.

    Writes one Zarr group a layer under `folder`: `values`, and `scales` for int8; moments are attributes.
    May be killed at any moment: the next call goes on after the last whole shard, to the same bytes, unless the
    model, the order, a key or `version` (of the code) have changed since.
    Raises ValueError where the model has no such site or layer, or an activation is too large for the format.
    """
    writer, mark = _writer(site, order, model, config, version)
    with partial_folder(folder / site, mark) as work:
        writer.write(work, range(order.shards))
        finish_layers(work, [work], folder)


def cache_shards_of_job(
    site: str,
    order: RowOrder,
    model: LanguageModel,
    config: Activations,
    part: int,
    folder: Path,
    version: str = "",
) -> None:
    """Store the shards of one of `config.jobs` parts of what `cache_site` stores, as `folder`, for `parts.join_parts`.

    As for killing and errors, it is like `cache_site`. Where there are fewer shards than parts, some parts have none.
    """
    writer, mark = _writer(site, order, model, config, version)
    first, stop = (each * order.shards // config.jobs for each in (part, part + 1))
    with partial_folder(folder, fingerprint(whole=mark, shards=[first, stop])) as work:
        writer.write(work / folder.name, range(first, stop))
        replace_folder(work / folder.name, folder)
        shutil.rmtree(work)


def _writer(
    site: str, order: RowOrder, model: LanguageModel, config: Activations, version: str
) -> tuple["Writer", str]:
    """What writes, and a digest of all that it depends on."""
    layers = list(range(model.layers)) if config.layers == "all" else sorted(set(config.layers))
    if layers[-1] >= model.layers:
        raise ValueError(f"activations.layers: no layer {layers[-1]}; choose from 0 to {model.layers - 1}")
    weights = weights_digest(model.module.state_dict())
    mark = fingerprint(
        site=site, layers=layers, dtype=config.dtype, batch=config.batch, order=order.digest, weights=weights,
        version=version,
    )  # fmt: skip
    recorder = Recorder(model, site, layers, config.dtype)
    if _buffers_fit_on_gpu(recorder, min(order.shard_rows, order.rows)):
        recorder = replace(recorder, to_host=False)
    return CacheWriter(order, recorder, config.batch, weights), mark


def _buffers_fit_on_gpu(recorder: Recorder, rows: int) -> bool:
    """Whether the model is on a GPU that has room for two shards beside it: there rows find their slots fastest."""
    device = recorder.model.device
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    values = 2 * len(recorder.layers) * rows * recorder.d * TORCH_DTYPE[recorder.number_format].itemsize
    return values < GPU_MEMORY_FRACTION * free


@dataclass(frozen=True)
class CacheWriter:
    """Fills, writes and records shards; a shard that is recorded is whole."""

    order: RowOrder
    recorder: Recorder
    batch: int
    """Sequences a forward pass."""
    weights: str
    """Digest of the model's weights."""

    def write(self, work: Path, shards: range) -> None:
        """Write those of `shards` that are missing in `work`, then what they are of."""
        work.mkdir(exist_ok=True)
        # zarr writes metadata to a file beside it first, which a kill leaves behind
        for stray in work.rglob("zarr.*.partial"):
            stray.unlink()
        arrays = self._arrays(work)
        done = next((shard for shard in shards if not _is_whole(work, arrays, shard)), shards.stop)
        # after a kill amid moving, later shards have records and yet are written anew
        for shard in range(done, shards.stop):
            sums_file(work, shard).unlink(missing_ok=True)
        first, start, stop = (self._row(shard) for shard in (shards.start, done, shards.stop))
        with progress(
            f"activations: {self.recorder.site}", stop - first, "tokens", done=start - first
        ) as bar:
            self._write_shards(work, arrays, range(done, shards.stop), bar.update)
        write_description(work, self._description)

    def _row(self, shard: int) -> int:
        """The first row of a shard; of the one after the last, the number of rows."""
        return min(shard * self.order.shard_rows, self.order.rows)

    def _write_shards(
        self, work: Path, arrays: "Arrays", shards: range, update: Callable[[float], object]
    ) -> None:
        """Fill the shards; while one is filled, the one before it is written."""
        rooms = [self._room() for _ in range(min(2, len(shards)))]
        written: Future[None] | None = None
        with ThreadPoolExecutor(1) as background, ThreadPoolExecutor(_writers()) as writers:
            for shard in shards:
                room, sums = rooms[shard % len(rooms)], self._no_sums()
                for packed in self.recorder.record(self.order.batches(shard, self.batch), sums):
                    room.put(packed)
                    update(len(packed.slot))
                self._check(sums)
                if written is not None:
                    written.result()
                written = background.submit(self._write, work, arrays, shard, room, sums, writers)
            if written is not None:
                written.result()

    def _room(self) -> ShardBuffer:
        recorder = self.recorder
        rows = min(self.order.shard_rows, self.order.rows)
        device = "cpu" if recorder.to_host else recorder.model.device
        return ShardBuffer.empty(len(recorder.layers), rows, recorder.d, recorder.number_format, device)

    def _no_sums(self) -> RowSums:
        return RowSums.zeros(len(self.recorder.watched), self.recorder.d, self.recorder.model.device)

    def _check(self, sums: RowSums) -> None:
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

    def _write(
        self,
        work: Path,
        arrays: "Arrays",
        shard: int,
        room: ShardBuffer,
        sums: RowSums,
        writers: ThreadPoolExecutor,
    ) -> None:
        """Write a shard of every layer, then its record."""
        start, stop = self.order.bounds(shard)

        def write_layer(i: int) -> None:
            columns = (column for column in room.layer(i, stop - start) if column is not None)
            for array, column in zip(arrays[i], columns, strict=True):
                write_shard(array, shard, _as_numpy(column))

        list(writers.map(write_layer, range(len(arrays))))
        # all at once: while one is written, the disk takes those before it
        list(writers.map(lambda array: fsync(shard_file(array, shard)), chain.from_iterable(arrays)))
        content = {"total": sums.total.cpu(), "square": sums.square.cpu(), "largest": sums.largest.cpu()}
        write_atomically(sums_file(work, shard), save(content))

    def _arrays(self, work: Path) -> "Arrays":
        """The arrays of each layer: values, and scales where the format has them."""
        rows, d, number_format = self.order.rows, self.recorder.d, self.recorder.number_format
        arrays: dict[str, tuple[tuple[int, ...], str]] = {"values": ((rows, d), ZARR_DTYPE[number_format])}
        if number_format == "int8":
            arrays["scales"] = ((rows,), "float32")
        layers = []
        for layer in self.recorder.layers:
            group = group_folder(work, layer)
            zarr.open_group(group, mode="a")
            layers.append(
                [create_array(group, name, *a, self.order.shard_rows) for name, a in arrays.items()]
            )
        return layers

    @cached_property
    def _description(self) -> CacheDescription:
        return CacheDescription(
            self.recorder.site,
            list(self.recorder.layers),
            self.recorder.number_format,
            self.order.digest,
            self.weights,
            self.order.rows,
            self.order.shard_rows,
        )


Arrays = list[list[zarr.Array]]
"""Of each layer."""


def _is_whole(work: Path, arrays: Iterable[Iterable[zarr.Array]], shard: int) -> bool:
    """The shard is recorded, and its layers lie there: a kill may have come while they were moved."""
    return sums_file(work, shard).is_file() and all(
        shard_file(array, shard).is_file() for layer in arrays for array in layer
    )


def _writers() -> int:
    return max(1, min(MAX_WRITER_THREADS, torch.get_num_threads() // 2))


def _as_numpy(values: torch.Tensor) -> np.ndarray:
    """`values` without a copy; the bits of bfloat16 as uint16."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
