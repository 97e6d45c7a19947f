"""Caches the activations of one site in all layers, with one pass over the training tokens.

`Recorder` runs the model and packs the activations. `ShardBuffer` collects the rows of a shard. `CacheWriter` writes
the shards, and resumes after a killed run. `cache_site` writes all shards in one job. If several jobs share the work,
each job calls `cache_shards_of_job`. Then `shards.join_shards` combines the shards of all jobs.
"""

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

from ..config.activations import MLP_OUTPUTS, Activations
from ..core.atomic_io import fingerprint, fsync, partial_folder, replace_folder, write_atomically
from ..core.layout import layer_group
from ..core.progress import progress
from ..language_model.batches import sequences_per_pass
from ..language_model.hooks import Site, capture, capture_each
from ..language_model.model import LanguageModel
from ..language_model.model_files import weights_digest
from .arrays import create_array, shard_file, write_shard
from .number_format import LARGEST, TORCH_DTYPE, ZARR_DTYPE, NumberFormat, Packed, pack
from .row_order import RowOrder, ShardBatch
from .shards import CacheDescription, finish_layers, sums_file, write_description
from .statistics import RowSums

GPU_MEMORY_FRACTION = 0.4
"""Maximum fraction of a GPU's free memory that two shard buffers may use."""
MOST_SEQUENCES = 64
"""Largest number of sequences per pass with `batch: auto`."""
MAX_WRITER_THREADS = 8
"""Maximum number of threads that write shards. A model on the CPU shares the cores with these threads."""

Arrays = list[list[zarr.Array]]
"""Zarr arrays of each layer: `values` and, for int8, `scales`."""


@dataclass
class PackedBatch:
    """Packed activations of one batch, on the model's device or in host memory."""

    slot: Int[Tensor, " row"]
    norms: Float[Tensor, "array row"]
    """Norm of each row at each captured site."""
    layers: list[Packed] = field(default_factory=list)
    copied: torch.cuda.Event | None = None
    """CUDA event at the end of the copy to host memory. None if nothing is copied."""


@dataclass
class ShardBuffer:
    """Buffer for the rows of one shard in all layers. Later shards reuse the buffer."""

    values: Num[Tensor, "layer row d"]
    scales: Float[Tensor, "layer row"] | None
    norms: Float[Tensor, "array row"]
    """Norms at all captured sites."""

    @classmethod
    def empty(
        cls,
        layers: int,
        captured: int,
        rows: int,
        d: int,
        number_format: NumberFormat,
        device: torch.device | str = "cpu",
    ) -> "ShardBuffer":
        """Returns an uninitialised buffer. `captured` is the number of captured sites."""
        values = torch.empty(layers, rows, d, dtype=TORCH_DTYPE[number_format], device=device)
        scales = torch.empty(layers, rows, device=device) if number_format == "int8" else None
        return cls(values, scales, torch.empty(captured, rows, device=device))

    def put(self, batch: PackedBatch) -> None:
        """Copy each row of `batch` to its slot in the buffer."""
        if batch.copied is not None:
            batch.copied.synchronize()
        slot = batch.slot.to(self.values.device, non_blocking=True)
        for layer, (values, scales) in enumerate(batch.layers):
            self.values[layer].index_copy_(0, slot, values)
            if self.scales is not None and scales is not None:
                self.scales[layer].index_copy_(0, slot, scales)
        self.norms.index_copy_(1, slot, batch.norms)

    def layer(self, layer: int, rows: int) -> Packed:
        """Returns the first `rows` rows of a layer in host memory. Waits until pending copies are complete."""
        scales = None if self.scales is None else _fetch(self.scales[layer, :rows])
        return Packed(_fetch(self.values[layer, :rows]), scales)


@dataclass(frozen=True)
class Recorder:
    """Runs sequences through the model and packs the activations of one site in several layers."""

    model: LanguageModel
    site: str
    layers: Sequence[int]
    number_format: NumberFormat
    to_host: bool = True
    """Whether batches are copied to host memory. If false, batches stay on the model's device."""

    @property
    def captured_sites(self) -> list[Site]:
        """Sites to capture: `site` and the sites in `computed`, in every layer."""
        return [Site(name, layer) for name in (self.site, *self.computed) for layer in self.layers]

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """Sites that `ActivationStore` computes from the cached site, for which it needs their moments.

        mlp_added is one of them only if it differs from mlp_out.
        """
        if self.site != "mlp_in":
            return ()
        return MLP_OUTPUTS if self.model.changes_mlp_out else ("mlp_out",)

    @cached_property
    def d(self) -> int:
        """Width of the site. Raises ValueError if the model has no such site."""
        first = Site(self.site, self.layers[0])
        return capture(self.model, torch.zeros(1, 1, dtype=torch.int64), [first])[first].shape[-1]

    def record(self, batches: Iterator[ShardBatch], sums: RowSums) -> Iterator[PackedBatch]:
        """Yields the packed activations of each batch. Adds the activations of all captured sites to `sums`.

        The copy of a batch from a GPU overlaps with the computation of the next batch.
        """
        previous: PackedBatch | None = None
        for batch in batches:
            packed = self._batch(batch, sums)
            if packed.copied is None:
                yield packed
                continue
            if previous is not None:
                yield previous
            previous = packed
        if previous is not None:
            yield previous

    @torch.inference_mode()
    def _batch(self, batch: ShardBatch, sums: RowSums) -> PackedBatch:
        tokens, source = torch.from_numpy(batch.tokens), torch.from_numpy(batch.source).to(self.model.device)
        index = {site: i for i, site in enumerate(self.captured_sites)}
        norms = torch.empty(len(index), len(source), device=source.device)
        layers: dict[int, Packed] = {}

        # the hook is called as soon as a site is computed, while the site's values are still in the CPU's cache
        def hook(site: Site, value: Tensor) -> None:
            x = torch.index_select(value.flatten(0, 1), 0, source)
            sums.add(index[site], x)
            norms[index[site]] = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
            if site.name == self.site:
                packed_site = pack(x, self.number_format)
                layers[site.layer] = packed_site.map(_to_host) if self.to_host else packed_site

        capture_each(self.model, tokens, self.captured_sites, hook)
        packed = PackedBatch(torch.from_numpy(batch.slot), _to_host(norms) if self.to_host else norms)
        packed.layers += [layers[layer] for layer in self.layers]
        if self.to_host and self.model.device.type == "cuda":
            packed.copied = torch.cuda.Event()
            packed.copied.record()
        return packed


def _fetch(values: Tensor) -> Tensor:
    """Returns `values` in host memory. Values on a GPU are copied on a separate CUDA stream, after all queued work."""
    if values.device.type == "cpu":
        return values
    queued, stream = torch.cuda.current_stream(values.device).record_event(), torch.cuda.Stream(values.device)
    stream.wait_event(queued)
    with torch.cuda.stream(stream):
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    stream.synchronize()
    return host


def _to_host(x: Tensor) -> Tensor:
    """Returns `x` in host memory. Values on a GPU are copied to pinned memory asynchronously."""
    if x.device.type == "cpu":
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def cache_site(
    site: str, order: RowOrder, model: LanguageModel, config: Activations, folder: Path, version: str = ""
) -> None:
    """Cache the activations of `site` in the layers of `config`, with rows in the given order.

    Writes one Zarr group per layer under `folder`: the array `values`, the array `scales` for int8, and the moments as
    attributes. After a kill, the next call resumes after the last complete shard, and gives the same bytes. The next
    call starts again if the model, the order, the config or `version` (a hash of the code) has changed.

    Raises ValueError if the model has no such site or layer. Also raises ValueError if an activation is not finite, or
    is too large for the number format.
    """
    writer, digest = _writer(site, order, model, config, version)
    with partial_folder(folder / site, digest) as work:
        writer.write(work, range(order.shards))
        finish_layers(work, [work], folder)


def cache_shards_of_job(
    site: str,
    order: RowOrder,
    model: LanguageModel,
    config: Activations,
    job: int,
    folder: Path,
    version: str = "",
) -> None:
    """Write the shards of job number `job`, from 0 to `config.jobs` - 1, to `folder`.

    If there are fewer shards than jobs, some jobs write no shards. `shards.join_shards` combines the folders of all
    jobs. Resumes and raises errors as `cache_site` does.
    """
    writer, digest = _writer(site, order, model, config, version)
    first, stop = (each * order.shards // config.jobs for each in (job, job + 1))
    with partial_folder(folder, fingerprint(cache=digest, shards=[first, stop])) as work:
        writer.write(work / folder.name, range(first, stop))
        replace_folder(work / folder.name, folder)
        shutil.rmtree(work)


def _writer(
    site: str, order: RowOrder, model: LanguageModel, config: Activations, version: str
) -> tuple["CacheWriter", str]:
    """Returns the writer, and a fingerprint of everything that determines the cached bytes."""
    layers = list(range(model.layers)) if config.layers == "all" else sorted(set(config.layers))
    if layers[-1] >= model.layers:
        raise ValueError(f"activations.layers: no layer {layers[-1]}; choose from 0 to {model.layers - 1}")
    weights = weights_digest(model.module.state_dict())
    batch = sequences_per_pass(model, config.batch, order.token.shape[1], most=MOST_SEQUENCES)
    digest = fingerprint(
        site=site, layers=layers, dtype=config.dtype, batch=batch, order=order.digest, weights=weights,
        version=version,
    )  # fmt: skip
    recorder = Recorder(model, site, layers, config.dtype)
    if _buffers_fit_on_gpu(recorder, min(order.shard_rows, order.rows)):
        recorder = replace(recorder, to_host=False)
    return CacheWriter(order, recorder, batch, weights), digest


def _buffers_fit_on_gpu(recorder: Recorder, rows: int) -> bool:
    """Whether two shard buffers fit into the free memory of the model's GPU. Buffers on the GPU are filled fastest."""
    device = recorder.model.device
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    values = 2 * len(recorder.layers) * rows * recorder.d * TORCH_DTYPE[recorder.number_format].itemsize
    return values < GPU_MEMORY_FRACTION * free


@dataclass(frozen=True)
class CacheWriter:
    """Fills and writes shards. A shard is complete when the file with its sums exists."""

    order: RowOrder
    recorder: Recorder
    batch: int
    """Number of sequences per forward pass."""
    weights: str
    """Digest of the language model's weights."""

    def write(self, work: Path, shards: range) -> None:
        """Write `shards` to `work`, from the first incomplete shard on. Then write the description."""
        work.mkdir(exist_ok=True)
        # if a run is killed, Zarr may leave temporary metadata files
        for temporary in work.rglob("zarr.*.partial"):
            temporary.unlink()
        arrays = self._arrays(work)
        missing = next((shard for shard in shards if not _is_complete(work, arrays, shard)), shards.stop)
        # a run that was killed while it moved layers may leave the sums of later shards without their other files;
        # these shards are written again
        for shard in range(missing, shards.stop):
            sums_file(work, shard).unlink(missing_ok=True)
        first, start, stop = (self._row(shard) for shard in (shards.start, missing, shards.stop))
        with progress(
            f"activations: {self.recorder.site}", stop - first, "tokens", done=start - first
        ) as bar:
            self._write_shards(work, arrays, range(missing, shards.stop), bar.update)
        recorder, order = self.recorder, self.order
        description = CacheDescription(
            recorder.site, list(recorder.layers), list(recorder.computed), recorder.number_format, order.digest,
            self.weights, order.rows, order.shard_rows,
        )  # fmt: skip
        write_description(work, description)

    def _row(self, shard: int) -> int:
        """Returns the index of a shard's first row. The index after the last shard gives the total number of rows."""
        return min(shard * self.order.shard_rows, self.order.rows)

    def _write_shards(
        self, work: Path, arrays: Arrays, shards: range, update: Callable[[float], object]
    ) -> None:
        """Fill and write the shards. Each shard is written while the next shard is filled."""
        buffers = [self._buffer() for _ in range(min(2, len(shards)))]
        written: Future[None] | None = None
        threads = max(1, min(MAX_WRITER_THREADS, torch.get_num_threads() // 2))
        with ThreadPoolExecutor(1) as background, ThreadPoolExecutor(threads) as writers:
            for shard in shards:
                buffer, sums = buffers[shard % len(buffers)], self._zero_sums()
                for packed in self.recorder.record(self.order.batches(shard, self.batch), sums):
                    buffer.put(packed)
                    update(len(packed.slot))
                self._check(sums)
                if written is not None:
                    written.result()
                written = background.submit(self._write, work, arrays, shard, buffer, sums, writers)
            if written is not None:
                written.result()

    def _buffer(self) -> ShardBuffer:
        recorder = self.recorder
        rows = min(self.order.shard_rows, self.order.rows)
        device = "cpu" if recorder.to_host else recorder.model.device
        captured = len(recorder.captured_sites)
        return ShardBuffer.empty(
            len(recorder.layers), captured, rows, recorder.d, recorder.number_format, device
        )

    def _zero_sums(self) -> RowSums:
        return RowSums.zeros(len(self.recorder.captured_sites), self.recorder.d, self.recorder.model.device)

    def _check(self, sums: RowSums) -> None:
        """Raise ValueError if an activation is not finite, or is too large for the number format."""
        number_format = self.recorder.number_format
        model = self.recorder.model
        for site, largest in zip(self.recorder.captured_sites, sums.largest.tolist(), strict=True):
            model.check_finite(torch.tensor(largest), f"layer {site.layer}: {site.name}")
            if site.name == self.recorder.site and largest > LARGEST[number_format]:
                raise ValueError(
                    f"layer {site.layer}: {site.name} reaches {largest:.3g}, beyond {number_format}; "
                    "set activations.dtype to bfloat16"
                )

    def _write(
        self,
        work: Path,
        arrays: Arrays,
        shard: int,
        buffer: ShardBuffer,
        sums: RowSums,
        writers: ThreadPoolExecutor,
    ) -> None:
        """Write one shard of every layer. Then write the file with the shard's sums."""
        start, stop = self.order.bounds(shard)

        def write_layer(i: int) -> None:
            columns = (column for column in buffer.layer(i, stop - start) if column is not None)
            for array, column in zip(arrays[i], columns, strict=True):
                write_shard(array, shard, _as_numpy(column))

        list(writers.map(write_layer, range(len(arrays))))
        # fsync is called after all writes, because by then the disk has already stored some of the files
        list(writers.map(lambda array: fsync(shard_file(array, shard)), chain.from_iterable(arrays)))
        content = {"total": sums.total.cpu(), "square": sums.square.cpu(), "largest": sums.largest.cpu()}
        content["norms"] = _fetch(buffer.norms[:, : stop - start]).contiguous()
        write_atomically(sums_file(work, shard), save(content))

    def _arrays(self, work: Path) -> Arrays:
        """Open the arrays of each layer. Arrays that do not exist are created."""
        rows, d, number_format = self.order.rows, self.recorder.d, self.recorder.number_format
        arrays: dict[str, tuple[tuple[int, ...], str]] = {"values": ((rows, d), ZARR_DTYPE[number_format])}
        if number_format == "int8":
            arrays["scales"] = ((rows,), "float32")
        layers = []
        for layer in self.recorder.layers:
            group = layer_group(work, layer)
            zarr.open_group(group, mode="a")
            layers.append(
                [create_array(group, name, *a, self.order.shard_rows) for name, a in arrays.items()]
            )
        return layers


def _is_complete(work: Path, arrays: Iterable[Iterable[zarr.Array]], shard: int) -> bool:
    """Whether the files with a shard's sums and with its rows in all arrays exist.

    A run that was killed while it moved layers may leave only the sums.
    """
    return sums_file(work, shard).is_file() and all(
        shard_file(array, shard).is_file() for layer in arrays for array in layer
    )


def _as_numpy(values: torch.Tensor) -> np.ndarray:
    """Returns a numpy view of `values`. bfloat16 becomes uint16 with the same bits."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
