"""Components of a model: features of a dictionary, attention heads, neurons; and how each kind is ablated.

No dictionary stands in for anything here: what a dictionary misses, and what is not ablated, is the model's own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..dictionaries.dictionary import Dictionary
from ..language_model.model import Site

HEADS = "heads"
"""Site of the heads' outputs, one after the other: the input of attention's output matrix."""


class Ablation(NamedTuple):
    """What each of some passes of one prompt is without."""

    gone: Bool[Tensor, "pass component"]
    at: Bool[Tensor, "pass position"]
    """Where."""


@dataclass(frozen=True)
class Features:
    """Features of a dictionary: of an SAE on what it reads and writes, or of a transcoder on the MLP's output.

    Without feature i, which fires as strongly as it does on that very pass, y is y - z_i W_dec[i].
    """

    run: str
    dictionary: Dictionary
    keeps_error: bool = True
    """Else what the dictionary misses is gone on every pass: the site holds the reconstruction."""
    kind: str = "feature"
    size: int = 1
    """Values a component, which go together."""

    def __post_init__(self) -> None:
        sites = (self.dictionary.site_in, self.dictionary.site_out)
        if sites != ("mlp_in", "mlp_out") and sites[0] != sites[1]:
            raise ValueError(
                f"run {self.run}: its features read {sites[0]} and write {sites[1]}, on which they cannot be ablated; "
                "name a run of SAEs, or of transcoders"
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
        return self.dictionary.encode(self._read(x, y))

    def pull(self, gradient: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch value"]:
        """Gradient with respect to activations, from that with respect to the site."""
        return gradient.to(self.dictionary.W_dec.dtype) @ self.dictionary.W_dec.T

    def ablate(
        self,
        x: Float[Tensor, "pass position d_in"],
        y: Float[Tensor, "pass position d_out"],
        ablation: Ablation,
        where: Bool[Tensor, " position"],
        fill: Float[Tensor, "place value"] | None,
    ) -> Float[Tensor, "pass position d_out"]:
        """The site's value without the features that are gone; only tokens that this concerns are encoded.

        x is what the MLP reads (at a site other than mlp_out: y), y the site's value. `fill` is what ablated
        activations are set to, at each position or (one row) at all; None for zero. `where` are the positions at
        which components may be ablated.
        """
        gone, at = ablation
        concerned = at & gone.any(1)[:, None] if self.keeps_error else where.expand(len(y), -1)
        number, position = concerned.nonzero(as_tuple=True)
        if not len(number):
            return y
        dictionary = self.dictionary
        x, before = self._read(x[number, position], y[number, position]), y[number, position]
        token, feature, value = dictionary.encode_sparse(x)
        here = at[number, position]
        ablated = here[token] & gone[number[token], feature]
        if self.keeps_error:
            after = before - self._decode(token, feature, value, ablated, len(x))
        else:
            after = self._decode(token, feature, value, ~ablated, len(x)) + dictionary.b_dec
            if dictionary.W_skip is not None:
                after = after + x @ dictionary.W_skip.T
        if fill is not None:
            if len(fill) == 1:
                filled = ((gone * fill) @ dictionary.W_dec)[number]
            else:
                filled = (gone[number] * fill[position]) @ dictionary.W_dec
            after = after + filled * here[:, None]
        return y.index_put((number, position), after.to(y.dtype))

    def _read(self, x: Tensor, y: Tensor) -> Tensor:
        transcodes = self.dictionary.site_in != self.dictionary.site_out
        return (x if transcodes else y).to(self.dictionary.W_enc.dtype)

    def _decode(
        self,
        token: Int[Tensor, " entry"],
        feature: Int[Tensor, " entry"],
        value: Float[Tensor, " entry"],
        chosen: Bool[Tensor, " entry"],
        n: int,
    ) -> Float[Tensor, "token d_out"]:
        """What the chosen entries, which are ordered by token, write at each of n tokens."""
        start = torch.searchsorted(token[chosen], torch.arange(n, device=token.device))
        return F.embedding_bag(
            feature[chosen], self.dictionary.W_dec, start, mode="sum", per_sample_weights=value[chosen]
        )


@dataclass(frozen=True)
class Units:
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
        fill: Float[Tensor, "place value"] | None,
    ) -> Float[Tensor, "pass position d_out"]:
        """As `Features.ablate`."""
        gone = ablation.gone.repeat_interleave(self.size, 1)[:, None] & ablation.at[..., None]
        return torch.where(gone, y.new_zeros(()) if fill is None else fill.to(y.dtype), y)


Part = Features | Units
"""Components of one kind at one site."""
