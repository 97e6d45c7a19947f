"""Bases: what a model is taken to be made of, and passes of the model without some of it."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel, Site
from .components import HEADS, Ablation, Features, Part, Units

Edit = Callable[[Tensor, Tensor], Tensor]
"""(what the MLP reads, value of the site), each [pass, position, d], to what the value becomes. At a site other than
`mlp_out` both are the value."""


@dataclass(frozen=True)
class Basis:
    """What a model is taken to be made of: components are numbered through its parts, one after the other."""

    name: str
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """Number of components."""
        return sum(part.width for part in self.parts)

    @property
    def slices(self) -> list[slice]:
        """Numbers of each part's components."""
        stops = torch.tensor([0, *(part.width for part in self.parts)]).cumsum(0).tolist()
        return [slice(start, stop) for start, stop in itertools.pairwise(stops)]

    def locate(
        self, component: Int[Tensor, " component"]
    ) -> tuple[Int[Tensor, " component"], Int[Tensor, " component"]]:
        """Part of each component, and its number within it."""
        starts = torch.tensor([own.start for own in self.slices], device=component.device)
        part = torch.searchsorted(starts, component, right=True) - 1
        return part, component - starts[part]

    def __add__(self, other: "Basis") -> "Basis":
        """The components of both."""
        return Basis(f"{self.name} + {other.name}", self.parts + other.parts)

    @contextmanager
    def ablating(
        self, model: LanguageModel, ablation: Ablation, where: Bool[Tensor, " position"], fill: "Fill"
    ) -> Iterator[None]:
        """Within the context, pass n of the model is without the components that `ablation` says.

        Components behind an ablation answer to it; a feature is taken away as strong as it then is.
        """
        with ExitStack() as stack:
            for part, own, filled in zip(self.parts, self.slices, fill, strict=True):
                gone = ablation.gone[:, own]
                if gone.any() or (isinstance(part, Features) and not part.keeps_error):
                    edit = _ablate(part, Ablation(gone, ablation.at), where, filled)
                    stack.enter_context(editing(model, part.site, edit))
            yield


Fill = Sequence[Tensor | None]
"""For each part of a basis what ablated values are set to, [place, value] as in `Features.ablate`; None for zero."""


def _ablate(part: Part, ablation: Ablation, where: Tensor, fill: Tensor | None) -> Edit:
    return lambda x, y: part.ablate(x, y, ablation, where, fill)


def editing(model: LanguageModel, site: Site, edit: Edit) -> AbstractContextManager[None]:
    """Within the context, all that follows from `site` follows from what `edit` makes of its value."""
    if site.name == HEADS:
        return _editing_heads(model, site.layer, edit)
    if site.name == "mlp_out":
        return model.replacing({site.layer: edit})
    return model.substituting(site, lambda value: edit(value, value))


@contextmanager
def _editing_heads(model: LanguageModel, layer: int, edit: Edit) -> Iterator[None]:
    projection = model.attention(layer).get_submodule(model.anatomy.attention_projection)
    handle = projection.register_forward_pre_hook(lambda _module, args: (edit(args[0], args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def feature_basis(run: str, dictionaries: Mapping[int, Dictionary], keeps_error: bool = True) -> Basis:
    """The features of a run in the layers given; ValueError where they cannot be ablated."""
    name = run if keeps_error else f"{run}, no error"
    return Basis(
        name, tuple(Features(run, dictionaries[layer], keeps_error) for layer in sorted(dictionaries))
    )


def head_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """The attention heads of some layers, by default of all."""
    heads = model.anatomy.heads
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.attention(layer).get_submodule(model.anatomy.attention_projection)
        parts.append(Units("head", Site(HEADS, layer), heads, _inputs(projection) // heads))
    return Basis("heads", tuple(parts))


def neuron_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """The MLP neurons of some layers, by default of all."""
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
        parts.append(Units("neuron", Site("neurons", layer), _inputs(projection)))
    return Basis("neurons", tuple(parts))


def _inputs(projection: nn.Module) -> int:
    """Width of what a matrix reads."""
    weight = next(projection.parameters())
    # a Linear holds [out, in], GPT-2's Conv1D [in, out]
    return weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0]
