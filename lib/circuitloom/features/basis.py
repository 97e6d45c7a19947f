"""Feature bases. A basis has the features of one dictionary, or the MLP neurons of one layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries.cross_layer import LayerDictionary
from ..language_model.hooks import Site
from ..language_model.model import LanguageModel
from ..language_model.model_files import weights_digest
from ..language_model.residual import neuron_output_weights

Entries = tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Float[Tensor, " entry"]]
"""Token, feature and value of each non-zero activation. The activations are ordered by token."""


@dataclass(frozen=True)
class FeatureBasis:
    """Features of one run and layer."""

    run: str
    layer: int
    site: Site
    """Site that provides the input of `encode`."""
    width: int
    """Number of features, F."""
    encode: Callable[[Float[Tensor, "token d_in"]], Entries]
    """Returns the non-zero feature activations, given the values at `site`. No feature activation is negative."""
    decoders: Mapping[int, Float[Tensor, "feature d_out"]]
    """Decoder row of each feature, by the layer that it writes to. Those of a mapped dictionary are views of its
    file, in the file's number format."""
    decoder_norm: Float[Tensor, " feature"]
    site_out: str
    """Name of the site that the features write."""
    encoder_norm: Float[Tensor, " feature"] | None
    bias: Float[Tensor, " feature"] | None
    digest: str
    """Digest of the weights and settings that determine the feature activations."""
    mapped: bool = False
    """Whether `encode` reads the encoder from its file at each call, and computes some features at a time."""


def dictionary_basis(run: str, layer: int, dictionary: LayerDictionary) -> FeatureBasis:
    """Returns a basis with the features of a trained dictionary, or of one layer of a cross-layer transcoder."""
    weights = {name: value for name, value in vars(dictionary).items() if isinstance(value, Tensor)}
    digest = weights_digest(weights)
    dictionary.release()
    return FeatureBasis(
        run=run,
        layer=layer,
        site=Site(dictionary.site_in, layer),
        width=dictionary.width,
        encode=dictionary.encode_sparse,
        decoders={output: dictionary.stored_decoder(output) for output in dictionary.outputs},
        decoder_norm=dictionary.decoder_norm,
        site_out=dictionary.site_out,
        encoder_norm=dictionary.encoder_norm,
        bias=dictionary.b_enc,
        digest=f"{digest} {dictionary.act} {dictionary.k} {dictionary.site_in}",
        mapped=dictionary.file is not None,
    )


def neuron_basis(run: str, layer: int, model: LanguageModel, kept: int | None) -> FeatureBasis:
    """Returns a basis with the MLP neurons of `layer` as features. A neuron fires if its activation is positive.

    If `kept` is not None, at most `kept` neurons fire per token. The neurons with the largest activation times norm of
    the output weights are chosen.
    """
    decoder = neuron_output_weights(model, layer)
    norm = torch.linalg.vector_norm(decoder, dim=1)

    def encode(z: Float[Tensor, "token neuron"]) -> Entries:
        if kept is None or kept >= z.shape[1]:
            token, neuron = (z > 0).nonzero(as_tuple=True)
            return token, neuron, z[token, neuron]
        neurons = (z * norm).topk(kept, dim=1).indices
        values = z.gather(1, neurons)
        token, rank = (values > 0).nonzero(as_tuple=True)
        return token, neurons[token, rank], values[token, rank]

    digest = f"{weights_digest(model.mlp(layer).state_dict())} {kept}"
    return FeatureBasis(
        run, layer, Site("neurons", layer), len(decoder), encode, {layer: decoder}, norm, "mlp_out", None, None, digest
    )  # fmt: skip
