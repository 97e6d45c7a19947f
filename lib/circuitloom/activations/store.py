"""Reads cached activations. `CachedLayer` reads rows of one site and layer on demand. For training, `read_sites`
prefetches batches of several sites."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import zarr
from jaxtyping import Float
from torch import Tensor, nn

from ..config.activations import MLP_OUTPUTS
from ..core.layout import layer_group
from ..language_model.model import LanguageModel
from .arrays import open_array, read_rows
from .number_format import NumberFormat, Packed, unpack
from .statistics import Moments, NormStatistics

T = TypeVar("T")

PREFETCH = 3
"""Number of batches that are loaded in advance."""


@dataclass(frozen=True)
class CachedLayer:
    """Cached activations of one site and layer, stored in a Zarr group."""

    folder: Path
    number_format: NumberFormat
    order: str
    """Digest of the order of rows (`RowOrder.digest`)."""
    weights: str
    """Digest of the language model's weights."""
    values: zarr.Array
    scales: zarr.Array | None

    @property
    def source(self) -> tuple[str, str]:
        """Digests of the order of rows and of the language model's weights."""
        return self.order, self.weights

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.values.shape[0]

    def read(self, start: int, rows: int, device: torch.device | str = "cpu") -> Float[Tensor, "row d"]:
        """Returns `rows` rows in float32, from row `start` on. Row 0 follows the last cached row."""
        start %= self.rows
        ranges = []
        while rows:
            stop = min(start + rows, self.rows)
            ranges.append(self._read_range(start, stop, device))
            rows -= stop - start
            start = 0
        return ranges[0] if len(ranges) == 1 else torch.cat(ranges)

    def _read_range(self, start: int, stop: int, device: torch.device | str) -> Float[Tensor, "row d"]:
        remedy = f"delete {self.folder} and run again"
        values = torch.from_numpy(read_rows(self.values, start, stop, remedy))
        if self.number_format == "bfloat16":
            values = values.view(torch.bfloat16)
        scales = (
            None if self.scales is None else torch.from_numpy(read_rows(self.scales, start, stop, remedy))
        )
        # rows are unpacked after the copy to the device, so that fewer bytes are copied
        return unpack(Packed(values.to(device), None if scales is None else scales.to(device)))


@dataclass(frozen=True)
class ActivationStore:
    """Activations of one site and layer. They are cached, or computed from the cached MLP input when rows are read."""

    site: str
    layer: int
    moments: Moments
    norms: NormStatistics
    stored: CachedLayer
    mlp: nn.Module | None
    """Module that computes mlp_out or mlp_added from the stored rows of mlp_in. None if the rows of this site are
    stored."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stored.rows

    @property
    def d(self) -> int:
        """Width of a row."""
        return len(self.moments.mean)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the rows."""
        return self.moments.mean

    @property
    def scale(self) -> float:
        """sqrt(E|x|² / d) for rows x of width d."""
        return self.moments.scale

    @property
    def variance(self) -> float:
        """E|x - mean|² for rows x."""
        return self.moments.variance

    def batches(
        self, size: int, steps: int | None = None, start_step: int = 0
    ) -> Iterator[Float[Tensor, "row d"]]:
        """Yields a batch of `size` rows for each step from `start_step` to `steps` - 1, in stored order.

        By default, the steps cover one epoch.
        """
        steps = -(-self.rows // size) if steps is None else steps
        for batch in read_sites({self.site: self}, size, steps, start_step):
            yield batch[self.site]

    def from_stored(self, stored: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns the rows of this site for the given stored rows."""
        if self.mlp is None:
            return stored
        weight = next(self.mlp.parameters())
        return self.mlp(stored.to(weight.device, weight.dtype)[None])[0].to(stored.device, torch.float32)


def must_compute(folder: Path, site: str, layer: int) -> bool:
    """Whether the activations of `site` must be computed from mlp_in: those of mlp_out and mlp_added are computed if
    they are not cached."""
    return site in MLP_OUTPUTS and not layer_group(folder / site, layer).is_dir()


def open_activations(
    folder: Path, site: str, layer: int, model: LanguageModel | None = None
) -> ActivationStore:
    """Open the activations of `site` in `layer` under `folder`, which the activations stage writes.

    If mlp_out or mlp_added is not cached, `model` computes it from the cached mlp_in. Raises ValueError if activations
    are missing or incomplete, or if `model` is needed but is None. Also raises ValueError if one of these two sites was
    cached with another model or order of rows than mlp_in.
    """
    own, mlp_in = layer_group(folder / site, layer), layer_group(folder / "mlp_in", layer)
    if not must_compute(folder, site, layer):
        attributes, stored = open_layer(own, site, layer)
        if site in MLP_OUTPUTS and mlp_in.is_dir():
            # the site may be left over from an earlier study whose config listed it
            check_same_source([stored, open_layer(mlp_in, "mlp_in", layer)[1]])
        return ActivationStore(site, layer, *cached_statistics(attributes, stored), stored, None)
    attributes, stored = open_layer(mlp_in, "mlp_in", layer)
    if model is None:
        raise ValueError(
            f"{own}: not cached; add {site} to activations.sites, or give the model that computes it"
        )
    # the cache holds the statistics of mlp_added only if it differs from mlp_out
    measured = site if model.changes_mlp_out else "mlp_out"
    statistics = cached_statistics(attributes, stored, f"_{measured}")
    return ActivationStore(site, layer, *statistics, stored, model.map_to(site, layer))


def cached_statistics(
    attributes: dict, stored: CachedLayer, suffix: str = ""
) -> tuple[Moments, NormStatistics]:
    """Returns the moments and the norms in the attributes of a cache. A cache of mlp_in also has those of mlp_out, with
    the suffix `_mlp_out`, and those of mlp_added where it differs from mlp_out."""
    if f"norms{suffix}" not in attributes:
        raise ValueError(f"{stored.folder}: cached by an older version; delete it and run again")
    moments, norms = (attributes[f"{key}{suffix}"] for key in ("moments", "norms"))
    return Moments.from_json(moments), NormStatistics.from_json(norms)


def check_same_source(stored: Sequence[CachedLayer]) -> None:
    """Raise ValueError unless all caches have the same order of rows and the same language model."""
    if len({each.source for each in stored}) > 1:
        folders = ", ".join(str(each.folder) for each in stored)
        raise ValueError(
            f"{folders}: cached under different models or row orders; delete what activations.sites does not list, "
            "or all, and run again"
        )


def open_layer(folder: Path, site: str, layer: int) -> tuple[dict, CachedLayer]:
    """Open the Zarr group `folder` with the activations of `site` in `layer`. Returns its attributes, and its arrays.

    Raises ValueError if the group is missing or damaged.
    """
    remedy = f"delete {folder} and run again"
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: not cached; add {site} to activations.sites and {layer} to activations.layers"
        )
    try:
        attributes = dict(zarr.open_group(folder, mode="r").attrs)
        number_format, order, weights = (attributes[key] for key in ("number_format", "order", "weights"))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no cached activations ({error}); {remedy}") from error
    values = open_array(folder / "values", remedy)
    scales = open_array(folder / "scales", remedy) if number_format == "int8" else None
    stored = CachedLayer(folder, number_format, str(order), str(weights), values, scales)  # type: ignore[arg-type]
    return attributes, stored


def read_sites(
    sources: Mapping[str, ActivationStore],
    batch: int,
    steps: int,
    start_step: int = 0,
    *,
    rows: slice | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[dict[str, Float[Tensor, "row d"]]]:
    """For each step from `start_step` to `steps` - 1, yields a dict with one batch of rows per source.

    Batches are float32 and on `device`. Step i reads rows i * `batch` to (i + 1) * `batch` (exclusive) in stored order.
    Row 0 follows the last cached row. If the slice `rows` is given, only this part of each batch is read. Rows that
    several sources need are read once. MLPs run in the thread that prefetches batches.

    Raises ValueError if a file is damaged, or if the sources were cached with different models or orders of rows.
    """
    stored = {source.stored.folder: source.stored for source in sources.values()}
    check_same_source(list(stored.values()))
    first, last, _ = (rows or slice(None)).indices(batch)

    # no_grad instead of inference_mode, because autograd may save these tensors
    @torch.no_grad()
    def load(step: int) -> dict[str, Tensor]:
        read = {
            folder: each.read(step * batch + first, last - first, device) for folder, each in stored.items()
        }
        return {name: source.from_stored(read[source.stored.folder]) for name, source in sources.items()}

    return prefetch(load, range(start_step, steps))


def prefetch(load: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """Yields `load(step)` for each step, in order. A thread calls `load` up to `PREFETCH` steps in advance."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for step in steps:
                pending.append(pool.submit(load, step))
                if len(pending) > PREFETCH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
