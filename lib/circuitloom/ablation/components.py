"""Components of a model (dictionary features, attention heads, MLP neurons), and their ablation."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionaries.cross_layer import (
    CrossLayerDictionary,
    CrossLayerTranscoder,
    LayerDictionary,
    add_by_layer,
)
from ..dictionaries.dictionary import Dictionary
from ..language_model.hooks import Edit, ReadingEdit, Site, edited
from ..language_model.model import LanguageModel
from ..language_model.residual import input_width

Gradients = Mapping[int, Float[Tensor, "*batch d_out"]]
"""Gradients with respect to the values of a site's name, by layer."""
Pending = dict[int, Float[Tensor, "pass position d_out"]]
"""What features change in the outputs of later layers of a running pass, by layer."""


class Ablation(NamedTuple):
    """Masks of the components and positions to ablate in each forward pass."""

    ablated: Bool[Tensor, "pass component"]
    at: Bool[Tensor, "pass position"]


@dataclass(frozen=True)
class FeatureComponents:
    """Features of one dictionary: SAE features at the SAE's site, transcoder features at the MLP's output.

    Ablating feature i changes the site's value y to y - z_i W_dec[i]. z_i is the activation in the ablated pass.
    """

    run: str
    dictionary: Dictionary
    keep_error: bool = True
    """If False, the reconstruction replaces the site's value, even without ablation."""
    kind: str = "feature"
    size: int = 1
    """Number of values per component."""

    def __post_init__(self) -> None:
        dictionary = self.dictionary
        if not (dictionary.is_sae or dictionary.is_transcoder):
            raise ValueError(
                f"run {self.run}: features that read {dictionary.site_in} and write {dictionary.site_out} cannot be "
                "ablated; name a run of SAEs, or of transcoders"
            )

    @property
    def site(self) -> Site:
        """Site to which the dictionary writes."""
        return Site(self.dictionary.site_out, self.dictionary.layer)

    @property
    def reads(self) -> str:
        """Name of the site that the dictionary reads."""
        return self.dictionary.site_in

    @property
    def width(self) -> int:
        """Number of features."""
        return self.dictionary.width

    def values(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch value"]:
        """Returns the activations of all features.

        y is the site's value. x is the value of the site that the dictionary reads.
        """
        return self.dictionary.encode(self.dictionary.encoder_input(x, y))

    @property
    def outputs(self) -> tuple[int, ...]:
        """Layers whose values of the site's name the features write to."""
        return (self.dictionary.layer,)

    def pull_gradient(self, gradients: Gradients) -> Float[Tensor, "*batch value"]:
        """Convert gradients with respect to the values of `outputs` to one with respect to the activations."""
        gradient = gradients[self.dictionary.layer]
        return gradient.to(self.dictionary.dtype) @ self.dictionary.W_dec.T

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: Float[Tensor, "row value"] | None,
        pending: Pending,
    ) -> Float[Tensor, "pass position d_out"]:
        """Returns the site's value y with features ablated.

        x and y are defined as in `values`. `pending` is for features that write to several layers, and not used here.
        `replacement` holds the values of ablated features: one row per position, or
        one row for all positions. If `replacement` is None, ablated features are set to zero. `where` marks the
        positions that may be ablated. If `keep_error` is False, the reconstruction replaces y at the positions in
        `where`.
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
class CrossLayerComponents:
    """Features of a cross-layer transcoder that read one layer.

    Ablating feature i changes the outputs y_m of all its layers m to y_m - z_i W_dec[i, m]. z_i is the activation in
    the ablated pass.
    """

    run: str
    transcoder: CrossLayerTranscoder
    layer: int
    keep_error: bool = True
    """If False, the reconstructions replace the outputs of all layers, even without ablation. A basis has the
    components of all layers then."""
    kind: str = "feature"
    size: int = 1
    """Number of values per component."""

    @property
    def dictionary(self) -> CrossLayerDictionary:
        """The features."""
        return self.transcoder.layers[self.layer]

    @property
    def site(self) -> Site:
        """The MLP's output of the layer that the features read, which they write to as well."""
        return Site(self.dictionary.site_out, self.layer)

    @property
    def reads(self) -> str:
        """Name of the site that the features read."""
        return self.dictionary.site_in

    @property
    def width(self) -> int:
        """Number of features."""
        return self.dictionary.width

    @property
    def outputs(self) -> tuple[int, ...]:
        """Layers whose values of the site's name the features write to."""
        return self.dictionary.outputs

    def values(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch value"]:
        """Returns the activations of all features. x is the value of the site that they read."""
        return self.dictionary.encode(x.to(self.dictionary.dtype))

    def pull_gradient(self, gradients: Gradients) -> Float[Tensor, "*batch value"]:
        """Convert gradients with respect to the values of `outputs` to one with respect to the activations."""
        dictionary = self.dictionary
        wide = torch.cat([gradients[output] for output in dictionary.outputs], -1)
        return wide.to(dictionary.dtype) @ dictionary.W_dec.flatten(1).T

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: Float[Tensor, "row value"] | None,
        pending: Pending,
    ) -> Float[Tensor, "pass position d_out"]:
        """Returns y of this layer with the features of all layers so far ablated. The other arguments are those of
        `FeatureComponents.ablate`.

        `pending` has what these features change in the outputs of this layer and later ones, in the running pass. The
        changes by the features of this layer are added. If `keep_error` is False, `pending` has all that the features
        write, and y_hat replaces y at the positions in `where`.
        """
        if self.layer == self.transcoder.first.layer:
            pending.clear()
        ablated, at = ablation
        changed = at & ablated.any(1)[:, None] if self.keep_error else where.expand(len(y), -1)
        place = changed.nonzero(as_tuple=True)
        if len(place[0]):
            written = self._written(x[place], place, ablation, replacement)
            for output, vector in written.items():
                before = pending.get(output)
                empty = vector.new_zeros(*y.shape[:2], vector.shape[-1]) if before is None else before
                pending[output] = empty.index_put(place, vector, accumulate=True)
        complete = pending.pop(self.layer, None)
        if complete is None:
            return y
        if self.keep_error:
            return y + complete.to(y.dtype)
        y_hat = self.dictionary.add_bias(complete[place], x[place].to(self.dictionary.dtype))
        return y.index_put(place, y_hat.to(y.dtype))

    def _written(
        self,
        x: Float[Tensor, "entry d_in"],
        place: tuple[Int[Tensor, " entry"], ...],
        ablation: Ablation,
        replacement: Float[Tensor, "row value"] | None,
    ) -> dict[int, Float[Tensor, "entry d_out"]]:
        """Returns what ablation adds to each output at some places (pass, position), or, if `keep_error` is False, all
        that the features write there."""
        (ablated, at), (number, position) = ablation, place
        here = at[place]
        token, feature, value = self.dictionary.encode_sparse(x.to(self.dictionary.dtype))
        removed = here[token] & ablated[number[token], feature]
        kept, sign = (removed, -1) if self.keep_error else (~removed, 1)
        written = self.dictionary.write_sparse(token[kept], feature[kept], sign * value[kept], len(x))
        if replacement is not None:
            rows = replacement if len(replacement) == 1 else replacement[position]
            add_by_layer(written, self.dictionary.write(ablated[number] * rows * here[:, None]))
        return written


@dataclass(frozen=True)
class UnitComponents:
    """Attention heads (slices of the input of W_O) or MLP neurons (elements of the input of W_out) of a layer."""

    kind: str
    """`head` or `neuron`."""
    site: Site
    width: int
    """Number of components."""
    size: int = 1
    """Number of values per component: d_head for heads, 1 for neurons."""
    run: str | None = None

    @property
    def reads(self) -> str:
        """Name of the site that holds the components' values."""
        return self.site.name

    def values(
        self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch value"]:
        """Returns y, the input of W_O or W_out."""
        return y

    @property
    def outputs(self) -> tuple[int, ...]:
        """The layer of the site."""
        return (self.site.layer,)

    def pull_gradient(self, gradients: Gradients) -> Float[Tensor, "*batch value"]:
        """Returns the gradient at the site unchanged, because the site holds the components' values."""
        return gradients[self.site.layer]

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: Float[Tensor, "row value"] | None,
        pending: Pending,
    ) -> Float[Tensor, "pass position d_out"]:
        """Returns y with components ablated (see `FeatureComponents.ablate`). x, `where` and `pending` are not used."""
        ablated = ablation.ablated.repeat_interleave(self.size, 1)[:, None] & ablation.at[..., None]
        return torch.where(ablated, y.new_zeros(()) if replacement is None else replacement.to(y.dtype), y)


Part = FeatureComponents | CrossLayerComponents | UnitComponents
"""All components of one kind at one site."""


@dataclass(frozen=True)
class Basis:
    """Components into which a model is decomposed. Component numbers run through all parts in order."""

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
        """Returns the index of each component's part, and the component's number within this part."""
        starts = torch.tensor([own.start for own in self.slices], device=component.device)
        part = torch.searchsorted(starts, component, right=True) - 1
        return part, component - starts[part]

    def __add__(self, other: "Basis") -> "Basis":
        """Returns a basis with the components of `self`, followed by the components of `other`."""
        return Basis(f"{self.name} + {other.name}", self.parts + other.parts)

    @contextmanager
    def ablating(
        self,
        model: LanguageModel,
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        replacement: "ReplacementValues",
    ) -> Iterator[None]:
        """Context manager: pass n of a batch ablates the components in row n of `ablation`.

        Ablating a feature removes its activation in pass n. This activation responds to ablations in earlier layers.
        """
        pending: Pending = {}
        # features of earlier layers change the outputs of later ones, whose own features may all stay
        crossing = any(
            isinstance(part, CrossLayerComponents) and bool(ablation.ablated[:, own].any())
            for part, own in zip(self.parts, self.slices, strict=True)
        )
        with ExitStack() as stack:
            for part, own, values in zip(self.parts, self.slices, replacement, strict=True):
                ablated = ablation.ablated[:, own]
                replaced = not isinstance(part, UnitComponents) and not part.keep_error
                if ablated.any() or replaced or (crossing and isinstance(part, CrossLayerComponents)):
                    edit = _ablation_edit(part, Ablation(ablated, ablation.at), where, values, pending)
                    stack.enter_context(edited(model, {part.site: edit}))
            yield


ReplacementValues = Sequence[Tensor | None]
"""The argument `replacement` of `FeatureComponents.ablate` for each part of a basis."""


def _ablation_edit(
    part: Part, ablation: Ablation, where: Tensor, replacement: Tensor | None, pending: Pending
) -> Edit:
    def edit(x: Tensor, y: Tensor) -> Tensor:
        return part.ablate(x, y, ablation, where, replacement, pending)

    return ReadingEdit(part.reads, edit)


def feature_basis(run: str, dictionaries: Mapping[int, LayerDictionary], keep_error: bool = True) -> Basis:
    """Returns a basis of the features of a run.

    Raises ValueError if a dictionary is neither an SAE nor a transcoder, or if layers of a cross-layer transcoder are
    missing.
    """
    name = run if keep_error else f"{run}, no error"
    alone = [each for each in dictionaries.values() if isinstance(each, Dictionary)]
    across = [each for each in dictionaries.values() if not isinstance(each, Dictionary)]
    if across:
        transcoder = CrossLayerTranscoder(across)
        return Basis(
            name,
            tuple(CrossLayerComponents(run, transcoder, layer, keep_error) for layer in transcoder.layers),
        )
    alone.sort(key=lambda each: each.layer)
    return Basis(name, tuple(FeatureComponents(run, dictionary, keep_error) for dictionary in alone))


def head_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """Returns a basis of the attention heads of `layers`. None means all layers."""
    heads = model.anatomy.heads
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.attention(layer).get_submodule(model.anatomy.attention_projection)
        parts.append(UnitComponents("head", Site("heads", layer), heads, input_width(projection) // heads))
    return Basis("heads", tuple(parts))


def neuron_basis(model: LanguageModel, layers: Sequence[int] | None = None) -> Basis:
    """Returns a basis of the MLP neurons of `layers`. None means all layers."""
    parts = []
    for layer in range(model.layers) if layers is None else layers:
        projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
        parts.append(UnitComponents("neuron", Site("neurons", layer), input_width(projection)))
    return Basis("neurons", tuple(parts))
