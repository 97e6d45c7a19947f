"""Running a language model with a reconstruction, or an ablation, in place of what a site holds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel, Site
from .held_out import HeldOut
from .metrics import FiringSums, ReconstructionSums, firing_sums, reconstruction_sums

StandIn = Callable[[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]], Float[Tensor, "token d_out"]]
"""(MLP input, value of the site), both of the scored tokens and float32, to what stands in for the value.

At a site other than `mlp_out` the first argument is the value itself.
"""


@contextmanager
def splicing(model: LanguageModel, stand_ins: Mapping[Site, StandIn], batch: HeldOut) -> Iterator[None]:
    """Within the context, `batch` run through `model` has each site's stand-in in place of its value.

    The original stays where `batch.kept` says so. With several layers, each stand-in sees the inputs of the
    model whose earlier layers are already replaced. `batch` lies on the model's device.
    """
    with ExitStack() as stack:
        for site, stand_in in stand_ins.items():
            if site.name == "mlp_out":
                stack.enter_context(model.replacing({site.layer: _at_scored(stand_in, batch)}))
            else:
                splice = _at_scored(stand_in, batch)
                stack.enter_context(
                    model.substituting(site, lambda value, splice=splice: splice(value, value))
                )
        yield


def _at_scored(stand_in: StandIn, batch: HeldOut) -> Callable[[Tensor, Tensor], Tensor]:
    def splice(x: Tensor, y: Tensor) -> Tensor:
        spliced = y.clone()
        spliced[batch.scored] = stand_in(x[batch.scored].float(), y[batch.scored].float()).to(y.dtype)
        return torch.where(batch.kept[..., None], y, spliced)

    return splice


def constant(value: Float[Tensor, " d_out"]) -> StandIn:
    """The same value for every token: zero or the mean, in ablations."""
    return lambda _x, y: value.to(y).expand_as(y)


class Substitute:
    """A dictionary as a stand-in, which sums up how well it reconstructs what it stands in for.

    Raises ValueError where the dictionary reads one site and writes another, and they are not the MLP's two.
    """

    reconstruction: ReconstructionSums
    """Sums over the tokens so far."""
    firing: FiringSums
    """Counts over the tokens so far."""

    def __init__(self, dictionary: Dictionary) -> None:
        """Nothing is summed up yet."""
        sites = (dictionary.site_in, dictionary.site_out)
        if sites != ("mlp_in", "mlp_out") and sites[0] != sites[1]:
            raise ValueError(
                f"a dictionary from {sites[0]} to {sites[1]} stands in for nothing; train another"
            )
        self.dictionary = dictionary
        nothing = dictionary.b_dec.new_zeros(0, dictionary.d_out)
        self.reconstruction = reconstruction_sums(nothing, nothing)
        self.firing = firing_sums(nothing.new_zeros(0, dtype=torch.int64), dictionary.width, 0)

    def __call__(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """The reconstruction of y, from x (transcoder) or from y itself (SAE)."""
        transcodes = self.dictionary.site_in != self.dictionary.site_out
        y_hat, firing = reconstruct(self.dictionary, x if transcodes else y)
        self.reconstruction += reconstruction_sums(y, y_hat)
        self.firing += firing
        return y_hat


def reconstruct(
    dictionary: Dictionary, x: Float[Tensor, "token d_in"]
) -> tuple[Float[Tensor, "token d_out"], FiringSums]:
    """Reconstruction of a batch, and how often each feature fired in it; only active features are decoded."""
    token, feature, value = dictionary.encode_sparse(x)
    start = torch.searchsorted(token, torch.arange(len(x), device=x.device))
    y_hat = (
        F.embedding_bag(feature, dictionary.W_dec, start, mode="sum", per_sample_weights=value)
        + dictionary.b_dec
    )
    if dictionary.W_skip is not None:
        y_hat = y_hat + x @ dictionary.W_skip.T
    return y_hat, firing_sums(feature, dictionary.width, len(x))
