"""Replaces MLP outputs by the reconstructions of a cross-layer transcoder while the model runs.

With all layers replaced, the features of each layer read the stream as the replaced layers before it left it, as with
transcoders of one layer. What they write to later outputs waits until the pass arrives there (`PendingWrites`). With
one output replaced, the features of all layers read the original model (`OriginalReconstruction`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..dictionaries.cross_layer import CrossLayerDictionary, CrossLayerTranscoder, add_by_layer
from ..language_model.hooks import Site, observed
from ..language_model.model import LanguageModel
from .held_out import HeldOut
from .metrics import FiringSums, firing_sums
from .replacement import Reconstruction, tokens_at_once

Mean = Float64[Tensor, " d_out"] | None


class OneOutput(NamedTuple):
    """A cross-layer transcoder of which only the output of `layer` is replaced."""

    transcoder: CrossLayerTranscoder
    layer: int


class PendingWrites:
    """Reconstructs the outputs of all layers in the order in which a pass arrives at them."""

    def __init__(self, transcoder: CrossLayerTranscoder) -> None:
        self.transcoder = transcoder
        self._written: dict[int, Tensor] = {}

    def arrive(
        self, layer: int, x: Float[Tensor, "token d_in"]
    ) -> tuple[Float[Tensor, "token d_out"], FiringSums]:
        """Returns y_hat of `layer`, and the firing counts of the features that read it. `x` is the input of `layer`.

        The same tokens must arrive at all layers. At the first layer, a new pass begins.
        """
        own = self.transcoder.layers[layer]
        if layer == self.transcoder.first.layer:
            self._written = {}
        written, firing = _write(own, x)
        add_by_layer(self._written, written)
        # the output is complete, because no later layer writes to it
        return own.add_bias(self._written.pop(layer), x), firing


def _write(
    dictionary: CrossLayerDictionary, x: Float[Tensor, "token d_in"]
) -> tuple[dict[int, Float[Tensor, "token d_out"]], FiringSums]:
    """Returns what the features add to each output for the input `x`, and the firing counts."""
    parts, firing = [], firing_sums(x.new_zeros(0, dtype=torch.int64), dictionary.width, 0)
    for part in x.split(tokens_at_once(dictionary)):
        token, feature, value = dictionary.encode_sparse(part)
        parts.append(dictionary.write_sparse(token, feature, value, len(part)))
        firing += firing_sums(feature, dictionary.width, len(part))
    return {output: torch.cat([part[output] for part in parts]) for output in dictionary.outputs}, firing


class OriginalReconstruction:
    """Reconstructions of all outputs on one batch, from what the original model computes."""

    def __init__(self, transcoder: CrossLayerTranscoder) -> None:
        self.transcoder = transcoder
        self.result: dict[int, tuple[Float[Tensor, "token d_out"], FiringSums]] = {}
        """y_hat and firing counts of each layer."""

    @contextmanager
    def reading(self, model: LanguageModel, batch: HeldOut) -> Iterator[None]:
        """Within the context, the next pass of the original model over `batch` computes `result`."""
        pending = PendingWrites(self.transcoder)
        self.result = {}

        def reconstruct(site: Site, value: Tensor) -> None:
            self.result[site.layer] = pending.arrive(site.layer, value[batch.scored].float())

        sites = [Site(each.site_in, layer) for layer, each in self.transcoder.layers.items()]
        with observed(model, sites, reconstruct):
            yield


class CrossLayerReplacement(Reconstruction):
    """Replaces the output of one layer while the outputs of all layers are replaced, which share `pending`."""

    def __init__(self, pending: PendingWrites, layer: int, mean: Mean = None) -> None:
        """`mean` is the mean of y, to which fractions unexplained refer."""
        own = pending.transcoder.layers[layer]
        super().__init__(own.width, own.b_dec, own.site_in, mean)
        self._pending, self._layer = pending, layer

    def __call__(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """Returns the reconstruction of y, from x and from what the features of earlier layers wrote in this pass."""
        return self.record(y, *self._pending.arrive(self._layer, x))


class OneOutputReplacement(Reconstruction):
    """Replaces the output of one layer by its reconstruction from the original model."""

    def __init__(self, original: OriginalReconstruction, layer: int, mean: Mean = None) -> None:
        """`mean` is the mean of y, to which fractions unexplained refer."""
        own = original.transcoder.layers[layer]
        super().__init__(own.width, own.b_dec, own.site_in, mean)
        self._original, self._layer = original, layer

    def __call__(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """Returns the reconstruction of y."""
        return self.record(y, *self._original.result[self._layer])


def cross_layer_replacements(
    run: CrossLayerTranscoder | OneOutput,
    originals: Sequence[OriginalReconstruction],
    means: Mapping[Site, Float64[Tensor, " d"]],
) -> dict[Site, Reconstruction]:
    """Returns the replacement of each site that `run` replaces. `originals` has the reconstruction of each transcoder
    of which single outputs are replaced."""
    if isinstance(run, OneOutput):
        [original] = [each for each in originals if each.transcoder is run.transcoder]
        site = Site(run.transcoder.first.site_out, run.layer)
        return {site: OneOutputReplacement(original, run.layer, means[site])}
    pending = PendingWrites(run)
    sites = {layer: Site(each.site_out, layer) for layer, each in run.layers.items()}
    return {site: CrossLayerReplacement(pending, layer, means[site]) for layer, site in sites.items()}
