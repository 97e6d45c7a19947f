"""The reader: activations of one site and layer, opened lazily. Batches for training: several sites of the same
tokens, read ahead."""

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

from ..language_model.model import LanguageModel
from .arrays import NumberFormat, Packed, open_array, read_rows, unpack
from .shards import layer_folder
from .statistics import Moments


@dataclass(frozen=True)
class CachedLayer:
    """The Zarr group of one site and layer."""

    folder: Path
    number_format: NumberFormat
    order: str
    """Digest of the row order; arrays that share it have the same token in every row."""
    weights: str
    """Digest of the weights of the model that the rows are of."""
    values: zarr.Array
    scales: zarr.Array | None

    @property
    def origin(self) -> tuple[str, str]:
        """What arrays share that are of the same tokens in the same model."""
        return self.order, self.weights

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.values.shape[0]

    def read(self, start: int, rows: int, device: torch.device | str = "cpu") -> Float[Tensor, "row d"]:
        """`rows` rows from `start` on in float32, the first following the last."""
        start %= self.rows
        pieces = []
        while rows:
            stop = min(start + rows, self.rows)
            pieces.append(self._piece(start, stop, device))
            rows -= stop - start
            start = 0
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _piece(self, start: int, stop: int, device: torch.device | str) -> Float[Tensor, "row d"]:
        remedy = f"delete {self.folder} and run again"
        values = torch.from_numpy(read_rows(self.values, start, stop, remedy))
        if self.number_format == "bfloat16":
            values = values.view(torch.bfloat16)
        scales = (
            None if self.scales is None else torch.from_numpy(read_rows(self.scales, start, stop, remedy))
        )
        # the narrow numbers cross the bus, not the wide ones
        return unpack(Packed(values.to(device), None if scales is None else scales.to(device)))


@dataclass(frozen=True)
class ActivationStore:
    """Activations of one site and layer: stored, or computed from what is stored as they are read."""

    site: str
    layer: int
    moments: Moments
    stored: CachedLayer
    mlp: nn.Module | None
    """What turns stored rows into this site's; None where they are this site's."""

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
        """E x."""
        return self.moments.mean

    @property
    def scale(self) -> float:
        """sqrt(E|x|² / d)."""
        return self.moments.scale

    @property
    def variance(self) -> float:
        """E|x - mean|²."""
        return self.moments.variance

    def batches(
        self, size: int, steps: int | None = None, start_step: int = 0
    ) -> Iterator[Float[Tensor, "row d"]]:
        """`size` rows a step, in stored order; without `steps`, as many as one pass over the rows takes."""

        steps = -(-self.rows // size) if steps is None else steps
        for batch in read_sites({self.site: self}, size, steps, start_step):
            yield batch[self.site]

    def from_stored(self, stored: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """This site's rows, from those that are stored."""
        if self.mlp is None:
            return stored
        weight = next(self.mlp.parameters())
        return self.mlp(stored.to(weight.device, weight.dtype)[None])[0].to(stored.device, torch.float32)


def open_activations(
    folder: Path, site: str, layer: int, model: LanguageModel | None = None
) -> ActivationStore:
    """The activations of `site` and `layer` under the stage's `folder`.

    Where mlp_out is not stored, it is `model`'s own MLP of what mlp_in stores.
    Raises ValueError where they are not stored, not whole, or a model is needed and not given; and where mlp_out
    and mlp_in are both stored, one of them under another model or row order.
    """
    here, source = layer_folder(folder, site, layer), layer_folder(folder, "mlp_in", layer)
    if here.is_dir() or site != "mlp_out":
        attributes, stored = _open(here, site, layer)
        if site == "mlp_out" and source.is_dir():
            # it may be left from a study that listed the site
            check_origins([stored, _open(source, "mlp_in", layer)[1]])
        return ActivationStore(site, layer, Moments.from_json(attributes["moments"]), stored, None)
    attributes, stored = _open(source, "mlp_in", layer)
    if model is None:
        raise ValueError(
            f"{here}: not stored; add mlp_out to activations.sites, or give the model that computes it"
        )
    return ActivationStore(
        site, layer, Moments.from_json(attributes["moments_mlp_out"]), stored, model.mlp(layer)
    )


def check_origins(stored: Sequence[CachedLayer]) -> None:
    """ValueError where `stored` are not all of the same tokens in the same model."""
    if len({each.origin for each in stored}) > 1:
        folders = ", ".join(str(each.folder) for each in stored)
        raise ValueError(
            f"{folders}: cached under different models or row orders; delete what activations.sites does not list, "
            "or all, and run again"
        )


def _open(folder: Path, site: str, layer: int) -> tuple[dict, CachedLayer]:
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


T = TypeVar("T")

AHEAD = 3
"""Batches that are read before they are asked for."""


def read_sites(
    sources: Mapping[str, ActivationStore],
    batch: int,
    steps: int,
    start_step: int = 0,
    *,
    share: slice | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[dict[str, Float[Tensor, "row d"]]]:
    """`batch` rows of every source a step, float32, on `device`, from `start_step` up to `steps`.

    Step i is rows i * batch and on, in stored order, a pure function of i. The first row follows the last: a
    batch across the end of an epoch takes its rest from the next, and every row is read once an epoch.
    With a `share`, only those rows of each batch are read.
    What several sources need is read once; MLPs are applied in the thread that reads ahead.
    Raises ValueError where the sources are of different models or row orders, or one is damaged.
    """
    stored = {source.stored.folder: source.stored for source in sources.values()}
    check_origins(list(stored.values()))
    first, last, _ = (share or slice(None)).indices(batch)

    # no_grad, not inference_mode: autograd may save these tensors
    @torch.no_grad()
    def load(step: int) -> dict[str, Tensor]:
        rows = {
            folder: each.read(step * batch + first, last - first, device) for folder, each in stored.items()
        }
        return {name: source.from_stored(rows[source.stored.folder]) for name, source in sources.items()}

    return read_ahead(load, range(start_step, steps))


def read_ahead(load: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """`load` of each step, in order, computed by another thread up to `AHEAD` steps early."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for step in steps:
                waiting.append(pool.submit(load, step))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
