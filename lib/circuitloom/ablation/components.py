"""Components of a model: features of a dictionary, attention heads, neurons; and how each kind is ablated.

No dictionary stands in for anything here: what a dictionary misses, and what is not ablated, is the model's own.
Bases: what a model is taken to be made of, and passes of the model without some of it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..dictionaries.dictionary import Dictionary
from ..language_model.hooks import Edit, Site, edited
from ..language_model.model import LanguageModel


class Ablation(NamedTuple):
    """What each of some passes of one prompt is without."""

    ablated: Bool[Tensor, "pass component"]
    at: Bool[Tensor, "pass position"]
    """Where."""


@dataclass(frozen=True)
class FeatureComponents:
    """Features of a dictionary: of an SAE on what it reads and writes, or of a transcoder on the MLP's output.

    Without feature i, which fires as strongly as it does on that very pass, y is y - z_i W_dec[i].
    """

    run: str
    dictionary: Dictionary
    keep_error: bool = True
    """Else what the dictionary misses is ablated on every pass: the site holds the reconstruction."""
    kind: str = "feature"
    size: int = 1
    """Values a component, which go together."""

    def __post_init__(self) -> None:
        dictionary = self.dictionary
        if not (dictionary.is_sae or dictionary.is_transcoder):
            raise ValueError(
                f"run {self.run}: its features read {dictionary.site_in} and write {dictionary.site_out}, on which "
                "they cannot be ablated; name a run of SAEs, or of transcoders"
            )

    @property
    def site(self) -> Site:
        """What the dictionary writes."""
        return Site(self.dictionary.site_out, self.dictionary.layer)

    @property
    def width(self) -> int:
        """F."""
        return self.dictionary.width

    def values(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch value"]:
        """Activations of all features, from what the MLP reads and what the site holds."""
        return self.dictionary.encode(self.dictionary.encoder_input(x, y))

    def pull(self, gradient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch value"]:
        """Gradient with respect to activations, from that with respect to the site."""
        return gradient.to(self.dictionary.W_dec.dtype) @ self.dictionary.W_dec.T

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: Float[Tensor, "place value"] | None,
    ) -> Float[Tensor, "pass position d_out"]:
        """The site's value without the features that are ablated; only tokens that this concerns are encoded.

        x is what the MLP reads (at a site other than mlp_out: y), y the site's value. `replacement` is what ablated
        activations are set to, at each position or (one row) at all; None for zero. `where` are the positions at
        which components may be ablated.
        """
        ablated, at = ablation
        concerned = at & ablated.any(1)[:, None] if self.keep_error else where.expand(len(y), -1)
        number, position = concerned.nonzero(as_tuple=True)
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
                filled = self.dictionary.write(ablated * replacement)[number]
            else:
                filled = self.dictionary.write(ablated[number] * replacement[position])
            after = after + filled * here[:, None]
        return y.index_put((number, position), after.to(y.dtype))


@dataclass(frozen=True)
class UnitComponents:
    """Attention heads or MLP neurons of a layer: slices of what an output matrix reads."""

    kind: str
    """head or neuron."""
    site: Site
    width: int
    """Number of components."""
    size: int = 1
    """Values a component: the dimensions of a head."""
    run: str | None = None

    def values(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch value"]:
        """What the output matrix reads."""
        return y

    def pull(self, gradient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch value"]:
        """The gradient itself."""
        return gradient

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: Float[Tensor, "place value"] | None,
    ) -> Float[Tensor, "pass position d_out"]:
        """As `Features.ablate`."""
        ablated = ablation.ablated.repeat_interleave(self.size, 1)[:, None] & ablation.at[..., None]
        return torch.where(ablated, y.new_zeros(()) if replacement is None else replacement.to(y.dtype), y)


Part = FeatureComponents | UnitComponents
"""Components of one kind at one site."""


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
        self,
        model: LanguageModel,
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: "ReplacementValues",
    ) -> Iterator[None]:
        """Within the context, pass n of the model is without the components that `ablation` says.

        Components behind an ablation answer to it; a feature is taken away as strong as it then is.
        """
        with ExitStack() as stack:
            for part, own, filled in zip(self.parts, self.slices, replacement, strict=True):
                ablated = ablation.ablated[:, own]
                if ablated.any() or (isinstance(part, FeatureComponents) and not part.keep_error):
                    edit = _ablate(part, Ablation(ablated, ablation.at), where, filled)
                    stack.enter_context(edited(model, {part.site: edit}))
            yield


ReplacementValues = Sequence[Tensor | None]
"""For each part of a basis what ablated values are set to, [place, value] as in `Features.ablate`; None for zero."""


def _ablate(part: Part, ablation: Ablation, where: Tensor, replacement: Tensor | None) -> Edit:
    return lambda x, y: part.ablate(x, y, ablation, where, replacement)


def feature_basis(run: str, dictionaries: Mapping[int, Dictionary], keep_error: bool = True) -> Basis:
    """The features of a run in the layers given; ValueError where they cannot be ablated."""
    name = run if keep_error else f"{run}, no error"
    return Basis(
        name,
        tuple(FeatureComponents(run, dictionaries[layer], keep_error) for layer in sorted(dictionaries)),
    )


def head_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """The attention heads of some layers, by default of all."""
    heads = model.anatomy.heads
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.attention(layer).get_submodule(model.anatomy.attention_projection)
        parts.append(UnitComponents("head", Site("heads", layer), heads, _inputs(projection) // heads))
    return Basis("heads", tuple(parts))


def neuron_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """The MLP neurons of some layers, by default of all."""
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
        parts.append(UnitComponents("neuron", Site("neurons", layer), _inputs(projection)))
    return Basis("neurons", tuple(parts))


def _inputs(projection: nn.Module) -> int:
    """Width of what a matrix reads."""
    weight = next(projection.parameters())
    # a Linear holds [out, in], GPT-2's Conv1D [in, out]
    return weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0]
