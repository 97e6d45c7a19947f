"""Components of a model (features of a dictionary, attention heads, MLP neurons), and passes with some of them ablated.

Only the ablated components change: a dictionary's error is kept unless `keep_error` is False.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionaries.dictionary import Dictionary
from ..language_model.hooks import Edit, Site, edited
from ..language_model.model import LanguageModel
from ..language_model.residual import input_width


class Ablation(NamedTuple):
    """Components that each pass of a prompt ablates, and the positions where it does."""

    ablated: Bool[Tensor, "pass component"]
    at: Bool[Tensor, "pass position"]


@dataclass(frozen=True)
class FeatureComponents:
    """Features of an SAE, ablated at its site, or of a transcoder, ablated at the MLP's output.

    Ablating feature i turns y into y - z_i W_dec[i], with the activation z_i of the same pass.
    """

    run: str
    dictionary: Dictionary
    keep_error: bool = True
    """If False, the site holds the dictionary's reconstruction on every pass."""
    kind: str = "feature"
    size: int = 1
    """Values per component."""

    def __post_init__(self) -> None:
        dictionary = self.dictionary
        if not (dictionary.is_sae or dictionary.is_transcoder):
            raise ValueError(
                f"run {self.run}: features that read {dictionary.site_in} and write {dictionary.site_out} cannot be "
                "ablated; name a run of SAEs, or of transcoders"
            )

    @property
    def site(self) -> Site:
        """Site that the dictionary writes."""
        return Site(self.dictionary.site_out, self.dictionary.layer)

    @property
    def width(self) -> int:
        """Number of features."""
        return self.dictionary.width

    def values(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch value"]:
        """Activations of all features; x is the MLP's input (at sites other than mlp_out: y), y the site's value."""
        return self.dictionary.encode(self.dictionary.encoder_input(x, y))

    def pull_gradient(self, gradient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch value"]:
        """Gradient with respect to activations, given the gradient with respect to the site's value."""
        return gradient.to(self.dictionary.W_dec.dtype) @ self.dictionary.W_dec.T

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: Float[Tensor, "row value"] | None,
    ) -> Float[Tensor, "pass position d_out"]:
        """The site's value y with features ablated; x is the MLP's input (at sites other than mlp_out: y).

        `replacement` holds the values of ablated activations, one row per position or one for all; None for zero.
        `where` marks the positions at which components may be ablated. Only positions that change are encoded.
        """
        ablated, at = ablation
        changed = at & ablated.any(1)[:, None] if self.keep_error else where.expand(len(y), -1)
        number, position = changed.nonzero(as_tuple=True)
        if not len(number):
            return y
        here = at[number, position]
        after = self.dictionary.ablate(
            x[number, position],
            y[number, position],
            lambda token, feature: here[token] & ablated[number[token], feature],
            self.keep_error,
        )
        if replacement is not None:
            if len(replacement) == 1:
                added = self.dictionary.write(ablated * replacement)[number]
            else:
                added = self.dictionary.write(ablated[number] * replacement[position])
            after = after + added * here[:, None]
        return y.index_put((number, position), after.to(y.dtype))


@dataclass(frozen=True)
class UnitComponents:
    """Attention heads or MLP neurons of a layer: slices of the input of W_O or W_out."""

    kind: str
    """head or neuron."""
    site: Site
    width: int
    """Number of components."""
    size: int = 1
    """Values per component: d_head for heads."""
    run: str | None = None

    def values(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch value"]:
        """The site's value y: the input of the output matrix."""
        return y

    def pull_gradient(self, gradient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch value"]:
        """The gradient itself."""
        return gradient

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: Float[Tensor, "row value"] | None,
    ) -> Float[Tensor, "pass position d_out"]:
        """As `FeatureComponents.ablate`."""
        ablated = ablation.ablated.repeat_interleave(self.size, 1)[:, None] & ablation.at[..., None]
        return torch.where(ablated, y.new_zeros(()) if replacement is None else replacement.to(y.dtype), y)


Part = FeatureComponents | UnitComponents
"""Components of one kind at one site."""


@dataclass(frozen=True)
class Basis:
    """Components that a model is decomposed into, numbered consecutively through the parts."""

    name: str
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """Number of components."""
        return sum(part.width for part in self.parts)

    @property
    def slices(self) -> list[slice]:
        """Range of component numbers of each part."""
        stops = torch.tensor([0, *(part.width for part in self.parts)]).cumsum(0).tolist()
        return [slice(start, stop) for start, stop in itertools.pairwise(stops)]

    def locate(
        self, component: Int[Tensor, " component"]
    ) -> tuple[Int[Tensor, " component"], Int[Tensor, " component"]]:
        """Each component's part, and its number within the part."""
        starts = torch.tensor([own.start for own in self.slices], device=component.device)
        part = torch.searchsorted(starts, component, right=True) - 1
        return part, component - starts[part]

    def __add__(self, other: "Basis") -> "Basis":
        """The components of both."""
        return Basis(f"{self.name} + {other.name}", self.parts + other.parts)

    @contextmanager
    def ablating(
        self,
        model: LanguageModel,
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: "ReplacementValues",
    ) -> Iterator[None]:
        """Within the context, pass n of the model runs with row n of `ablation` ablated.

        Downstream components respond: a feature is ablated from the activation that it has in that pass.
        """
        with ExitStack() as stack:
            for part, own, values in zip(self.parts, self.slices, replacement, strict=True):
                ablated = ablation.ablated[:, own]
                if ablated.any() or (isinstance(part, FeatureComponents) and not part.keep_error):
                    edit = _ablation_edit(part, Ablation(ablated, ablation.at), where, values)
                    stack.enter_context(edited(model, {part.site: edit}))
            yield


ReplacementValues = Sequence[Tensor | None]
"""Per part of a basis the values of ablated components, as in `FeatureComponents.ablate`; None for zero ablation."""


def _ablation_edit(part: Part, ablation: Ablation, where: Tensor, replacement: Tensor | None) -> Edit:
    return lambda x, y: part.ablate(x, y, ablation, where, replacement)


def feature_basis(run: str, dictionaries: Mapping[int, Dictionary], keep_error: bool = True) -> Basis:
    """The features of a run, `dictionaries` by layer; ValueError for dictionaries that cannot be ablated."""
    name = run if keep_error else f"{run}, no error"
    return Basis(
        name,
        tuple(FeatureComponents(run, dictionaries[layer], keep_error) for layer in sorted(dictionaries)),
    )


def head_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """The attention heads of `layers`, by default all."""
    heads = model.anatomy.heads
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.attention(layer).get_submodule(model.anatomy.attention_projection)
        parts.append(UnitComponents("head", Site("heads", layer), heads, input_width(projection) // heads))
    return Basis("heads", tuple(parts))


def neuron_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """The MLP neurons of `layers`, by default all."""
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
        parts.append(UnitComponents("neuron", Site("neurons", layer), input_width(projection)))
    return Basis("neurons", tuple(parts))
