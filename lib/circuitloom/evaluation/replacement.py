"""Replaces activations of the model while it runs: by reconstructions (splicing) or by constants (ablation)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config.activations import MLP_OUTPUTS
from ..dictionaries.dictionary import Dictionary, Encoder
from ..language_model.hooks import Edit, ReadingEdit, Site, edited
from ..language_model.model import LanguageModel
from .held_out import HeldOut
from .metrics import (
    FiringSums,
    ReconstructionSums,
    firing_sums,
    fractions_unexplained,
    reconstruction_sums,
)

ENCODE_ELEMENTS = 2**26
"""Largest number of pre-activations [token, feature] in memory, 256 MB."""

Replacement = Callable[
    [Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]], Float[Tensor, "token d_out"]
]
"""Function (x, y) that returns a replacement of y. x and y are float32 activations at the scored tokens.

y is the activation at the replaced site. For mlp_out and mlp_added, x is what the transcoder reads, or the MLP's input.
For other sites, x equals y.
"""


class NormBounds(NamedTuple):
    """Largest norms of the tokens that are scored at a site. Tokens beyond a bound are outliers."""

    x: float
    """Bound at the site `reads`. Infinite for sites other than mlp_out and mlp_added."""
    y: float
    reads: str = "mlp_in"
    """Site that the transcoders read whose scores leave tokens out. `mlp_in` for SAEs."""

    def within(
        self, x: Float[Tensor, "*token d_in"], y: Float[Tensor, "*token d_out"]
    ) -> Bool[Tensor, "*token"]:
        """Returns whether each token is within both bounds."""
        norm_x, norm_y = (torch.linalg.vector_norm(each, dim=-1, dtype=torch.float32) for each in (x, y))
        return (norm_x <= self.x) & (norm_y <= self.y)


Bounds = Mapping[Site, NormBounds]
"""Bounds of the sites from which outliers are left out. All tokens of other sites are scored."""


@contextmanager
def replacing_activations(
    model: LanguageModel,
    replacements: Mapping[Site, Replacement],
    batch: HeldOut,
    bounds: Bounds | None = None,
) -> Iterator[None]:
    """Replaces the activations of each site while `model` runs `batch` inside this context.

    Activations at positions where `batch.keeps_original` is true are not replaced, nor are those beyond `bounds`.
    `batch` must be on the model's device.
    """
    bounds = bounds or {}
    edits = {site: _at_scored(site, each, batch, bounds.get(site)) for site, each in replacements.items()}
    with edited(model, edits):
        yield


def _at_scored(site: Site, replacement: Replacement, batch: HeldOut, bounds: NormBounds | None) -> Edit:
    def edit(x: Tensor, y: Tensor) -> Tensor:
        scored = batch.scored if bounds is None else batch.scored & bounds.within(x, y)
        replaced = y.clone()
        replaced[scored] = replacement(x[scored].float(), y[scored].float()).to(y.dtype)
        return torch.where(batch.keeps_original[..., None], y, replaced)

    if site.name not in MLP_OUTPUTS:
        return edit
    reads = "mlp_in" if bounds is None else bounds.reads
    if isinstance(replacement, Reconstruction) and replacement.reads is not None:
        own = replacement.reads
        # x is both what the dictionary encodes and what is bounded
        assert bounds is None or own == reads, f"the bounds are those of {reads}, the dictionary reads {own}"
        reads = own
    return ReadingEdit(reads, edit)


def constant_replacement(value: Float[Tensor, " d_out"]) -> Replacement:
    """Returns a replacement with `value` at every token. Zero and mean ablation use this function."""
    return lambda _x, y: value.to(y).expand_as(y)


class Reconstruction(ABC):
    """Base class of replacements of y by its reconstruction. Each call also updates `reconstruction`, `firing` and
    `unexplained`."""

    reads: str | None
    """Site that the features read, if the replaced site is an MLP's output. None if they read the replaced site."""
    reconstruction: ReconstructionSums
    """Sums over all tokens so far."""
    firing: FiringSums
    """Counts over all tokens so far."""

    unexplained: list[Float[Tensor, " token"]]
    """Fraction unexplained of each token, by call. Empty without a mean."""

    def __init__(
        self,
        width: int,
        b_dec: Float[Tensor, " d_out"],
        reads: str | None,
        mean: Float[Tensor, " d_out"] | None = None,
    ) -> None:
        """`width` is the number of features. `b_dec` gives the dimension of y, and the device and dtype of sums."""
        self.reads, self.mean, self.unexplained = reads, mean, []
        empty = b_dec.new_zeros(0, len(b_dec))
        self.reconstruction = reconstruction_sums(empty, empty)
        self.firing = firing_sums(empty.new_zeros(0, dtype=torch.int64), width, 0)

    def record(
        self, y: Float[Tensor, "token d_out"], y_hat: Float[Tensor, "token d_out"], firing: FiringSums
    ) -> Float[Tensor, "token d_out"]:
        """Add a batch to the sums. Returns `y_hat`."""
        self.reconstruction += reconstruction_sums(y, y_hat)
        self.firing += firing
        if self.mean is not None:
            self.unexplained.append(fractions_unexplained(y, y_hat, self.mean))
        return y_hat

    @abstractmethod
    def __call__(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """Returns the reconstruction of y."""


class DictionaryReplacement(Reconstruction):
    """Replaces y by a dictionary's reconstruction of y.

    Raises ValueError if the dictionary is neither an SAE nor an MLP transcoder.
    """

    def __init__(self, dictionary: Dictionary, mean: Float[Tensor, " d_out"] | None = None) -> None:
        """`mean` is the mean of y, to which fractions unexplained refer."""
        if not (dictionary.is_sae or dictionary.is_transcoder):
            raise ValueError(
                f"a dictionary from {dictionary.site_in} to {dictionary.site_out} replaces no site; "
                "train an SAE or a transcoder"
            )
        reads = dictionary.site_in if dictionary.is_transcoder else None
        super().__init__(dictionary.width, dictionary.b_dec, reads, mean)
        self.dictionary = dictionary

    def __call__(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """Returns the reconstruction of y. A transcoder encodes x. An SAE encodes y."""
        return self.record(y, *reconstruct(self.dictionary, self.dictionary.encoder_input(x, y)))


def tokens_at_once(dictionary: Encoder) -> int:
    """Returns the number of tokens to encode at once, so that at most `ENCODE_ELEMENTS` pre-activations are in memory.

    A mapped dictionary, whose encoder is read for each call, takes any number: it computes some features at a time.
    """
    return max(1, ENCODE_ELEMENTS // (dictionary.width if dictionary.file is None else dictionary.d_in))


def reconstruct(
    dictionary: Dictionary, x: Float[Tensor, "token d_in"]
) -> tuple[Float[Tensor, "token d_out"], FiringSums]:
    """Returns the reconstruction for the input `x`, and the firing counts. Only active features are decoded."""
    y_hat, firing = [], firing_sums(x.new_zeros(0, dtype=torch.int64), dictionary.width, 0)
    for part in x.split(tokens_at_once(dictionary)):
        token, feature, value = dictionary.encode_sparse(part)
        y_hat.append(dictionary.decode_sparse(token, feature, value, part))
        firing += firing_sums(feature, dictionary.width, len(part))
    return torch.cat(y_hat), firing
