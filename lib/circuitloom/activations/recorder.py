"""Activations of one site, all layers, from the model's forward passes into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from ..language_model.model import LanguageModel, Site
from .moments import Sums
from .number_format import TORCH_DTYPE, NumberFormat, Packed, pack
from .order import Placement


@dataclass
class Shard:
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
        return self.model.capture(torch.zeros(1, 1, dtype=torch.int64), [first])[first].shape[-1]

    def record(self, batches: Iterator[Placement], sums: Sums) -> Iterator[PackedBatch]:
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
    def _batch(self, batch: Placement, sums: Sums) -> PackedBatch:
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

        self.model.visit(batch.tokens, self.watched, see)
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
