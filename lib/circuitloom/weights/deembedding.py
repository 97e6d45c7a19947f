"""De-embedding (Dunefsky et al. 2024): effects of token embeddings on features, computed from weights only.

An effect is direct, through the layer-0 dictionary, or through one attention head. Effects include the gains and the
centering of norms. Effects leave out norm denominators, because denominators depend on the input. Only the norm before
the layer-0 dictionary keeps its denominator. Dictionaries that read resid_mid have no norm before them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..attribution.capture import BlockWeights, ModelWeights, capture_pass
from ..core.progress import progress
from ..core.tables import DEEMBEDDING, table_writer
from ..dictionaries.cross_layer import LayerDictionary
from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel
from ..language_model.residual import norm_jvp, norm_vjp
from ..language_model.strongest_tokens import StrongestTokens, strongest_tokens

MAX_ELEMENTS = 2**25
"""Maximum number of elements of a chunk [token, feature]."""
FEATURES = 4096
"""Number of features whose effects are listed at once."""
ROW_GROUP = 2**14
SCALE_TOKENS = 4
"""Number of tokens that are used to measure the model's scaling of the embedding."""
TOLERANCE = 1e-2
"""Maximum relative distance between the residual stream's input and a multiple of the embedding."""


@dataclass(frozen=True)
class EmbeddingActivations:
    """Activations of layer-0 features on each token's embedding, without attention and position embeddings. Sparse CSR
    format: entries are sorted by token."""

    start: Int[Tensor, " token"]
    """Index of the first entry of each token."""
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    largest: Float[Tensor, " feature"]
    """Largest activation of each feature over the vocabulary; 0 if the feature fires on no token."""

    def weighted_sum(self, rows: Float[Tensor, "feature n"]) -> Float[Tensor, "token n"]:
        """Returns the matrix product of the activations [token, feature] and `rows`."""
        return embedding_bag(self.feature, rows, self.start, mode="sum", per_sample_weights=self.value)


@dataclass(frozen=True)
class TokenEmbeddings:
    """What each vocabulary token adds to the residual stream by itself."""

    embedding: Float[Tensor, "token d"]
    """Embedding of each token, including any scaling by the model."""
    layer0_activations: EmbeddingActivations | None
    """None if the run has no dictionary at layer 0."""
    layer0_output: Float[Tensor, "token d"] | None
    """What the output of the layer-0 dictionary adds for each token, at layer 0. Any norm between the two is applied
    without its denominator. None if the run has no dictionary at layer 0, or if it was not asked for."""
    layer0_rows: Mapping[int, Float[Tensor, "feature d"]] = field(default_factory=dict)
    """What features of the layer-0 dictionary of a cross-layer transcoder add to each later layer, per unit of z."""

    def layer0_before(self, layer: int) -> Float[Tensor, "token d"] | None:
        """Returns what the layer-0 dictionary adds before the MLP of `layer` for each token, or None if
        `layer0_output` is None."""
        rows = [each for output, each in self.layer0_rows.items() if output < layer]
        if self.layer0_output is None or self.layer0_activations is None or not rows:
            return self.layer0_output
        return self.layer0_output + self.layer0_activations.weighted_sum(torch.stack(rows).sum(0))


@dataclass(frozen=True)
class TopHeads:
    """The heads with the strongest effects on each feature."""

    layer: Int[Tensor, "feature kept"]
    head: Int[Tensor, "feature kept"]
    vector: Float[Tensor, "feature kept d"]
    """Result of `head_vjp` for the feature's direction in the residual stream."""


def encoder_in_residual(
    weights: ModelWeights, layer: int, dictionary: LayerDictionary, features: slice | Int[Tensor, " feature"]
) -> Float[Tensor, "feature d"]:
    """Returns P(gain * W_enc[features]): encoder rows as directions in the residual stream before the MLP's norm.

    For a dictionary that reads resid_mid, the result is W_enc[features].
    """
    norm = weights.blocks[layer].norm_before(dictionary)
    return norm_vjp(norm, dictionary.encoder_rows(features).to(weights.unembedding.norm.gain))


def head_layers(model: LanguageModel, source: int, target: int) -> range:
    """Returns the layers of the heads between block `source` and the MLP of block `target`. `source` is -1 for the
    embedding."""
    return range(source + 1, target + (0 if model.anatomy.parallel else 1))


@torch.inference_mode()
def embedding_rows(model: LanguageModel, weights: ModelWeights) -> Float[Tensor, "vocabulary d"]:
    """Returns the embedding of each token, including any scaling by the model. Raises ValueError if the input of the
    residual stream is not a multiple of the embedding matrix."""
    rows = model.module.get_submodule(model.anatomy.embedding).weight
    assert isinstance(rows, Tensor)
    token = torch.linspace(0, len(rows) - 1, SCALE_TOKENS, device=rows.device).round().long()
    rows = rows.detach().to(weights.unembedding.norm.gain)
    entered = capture_pass(model, weights, token).embedding.to(rows)
    expected = rows[token]
    if expected.shape == entered.shape:
        scale = (entered * expected).sum() / expected.square().sum()
        if (entered - scale * expected).norm() <= TOLERANCE * entered.norm():
            # the scale is measured in the model's dtype; a scale that differs from 1 only by rounding is taken as 1
            return rows if abs(scale - 1) < 1e-5 else rows * scale
    raise ValueError(
        f"{model.anatomy.architecture}: the input of its residual stream is not a multiple of the embedding; "
        "choose another model"
    )


@torch.inference_mode()
def embed_vocabulary(
    model: LanguageModel,
    weights: ModelWeights,
    layer0: LayerDictionary | None,
    vocabulary: int,
    with_output: bool = True,
) -> TokenEmbeddings:
    """Compute `TokenEmbeddings` of the first `vocabulary` tokens. `layer0` is the run's dictionary at layer 0.

    Without `with_output`, `layer0_output` is None. It has the size of the embedding matrix.
    """
    # rows after `vocabulary` are padding
    embedding = embedding_rows(model, weights)[:vocabulary]
    if layer0 is None:
        return TokenEmbeddings(embedding, None, None)
    require_transcoder(layer0, 0)
    layer0 = layer0.to(embedding.device, embedding.dtype)
    anatomy = model.anatomy
    norm = model.norm(0, anatomy.norm_mlp or anatomy.norm_attention) if layer0.is_after_norm else None
    starts, features, values = [], [], []
    entries = done = 0
    output = torch.empty(len(embedding), layer0.d_out).to(embedding) if with_output else None
    for part in embedding.split(max(1, MAX_ELEMENTS // layer0.width)):
        dtype = next(model.module.parameters()).dtype
        x = part if norm is None else norm(part.to(dtype)).to(part)
        token, feature, value = layer0.encode_sparse(x)
        n = torch.bincount(token, minlength=len(x))
        start = n.cumsum(0) - n
        if output is not None:
            y_hat = _own_output(layer0, token, feature, value, x)
            output[done : done + len(x)] = norm_jvp(weights.blocks[0].norm_after(layer0), y_hat)
        done += len(x)
        starts.append(start + entries)
        features.append(feature)
        values.append(value)
        entries += len(feature)
    feature, value = torch.cat(features), torch.cat(values)
    largest = value.new_zeros(layer0.width).scatter_reduce_(0, feature, value, "amax")
    activations = EmbeddingActivations(torch.cat(starts), feature, value, largest)
    rows = {
        later: norm_jvp(weights.blocks[later].norm_after(layer0), layer0.decoder(later))
        for later in layer0.outputs[1:]
        if with_output
    }
    return TokenEmbeddings(embedding, activations, output, rows)


def _own_output(
    layer0: LayerDictionary, token: Tensor, feature: Tensor, value: Tensor, x: Float[Tensor, "token d_in"]
) -> Float[Tensor, "token d_out"]:
    """Returns y_hat of layer 0 for the active features of each token."""
    if isinstance(layer0, Dictionary):
        return layer0.decode_sparse(token, feature, value, x)
    return layer0.add_bias(layer0.write_sparse(token, feature, value, len(x))[0], x)


def require_transcoder(dictionary: LayerDictionary, layer: int) -> LayerDictionary:
    """Returns `dictionary`. Raises ValueError if `dictionary` is not a transcoder."""
    if not dictionary.is_transcoder:
        raise ValueError(
            f"layer {layer}: weight tables need transcoders; this dictionary maps {dictionary.site_in} to "
            f"{dictionary.site_out}; name a run of transcoders"
        )
    return dictionary


def strongest_heads(
    weights: ModelWeights,
    layers: range,
    encoder: Float[Tensor, "feature d"],
    moments: Callable[[int], Float[Tensor, "d d"]],
    n: int,
) -> TopHeads:
    """Find the `n` heads of `layers` with the strongest effects on each feature.

    The strength of a head is the sum of the squared effects of all sources through the head. `encoder` has the
    features' directions in the residual stream. `moments` returns X^T X for heads of a layer. Each row of X is the
    vector that one source writes before this layer.
    """
    blocks = {layer: weights.blocks[layer] for layer in layers}
    head_vectors = {layer: _head_vectors(block, encoder) for layer, block in blocks.items()}
    strength = torch.cat([_strength(blocks[layer], head_vectors[layer], moments(layer)) for layer in layers])
    best = strength.topk(min(n, len(strength)), dim=0).indices.T
    heads = len(strength) // len(layers)
    vector = encoder.new_empty(*best.shape, encoder.shape[1])
    for number in best.unique().tolist():
        layer, head = layers[number // heads], number % heads
        feature, rank = (best == number).nonzero(as_tuple=True)
        vector[feature, rank] = head_vjp(blocks[layer], head, encoder[feature])
    return TopHeads(best // heads + layers.start, best % heads, vector)


def head_vjp(block: BlockWeights, head: int, g: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    """Returns the vector-Jacobian product from the attention output through one head to the head's residual stream
    input. The attention weight is 1. Norm denominators are left out."""
    v = norm_vjp(block.norm_attention_after, g) @ block.attention.W_O[head].T.to(g)
    return norm_vjp(block.norm_attention, v @ block.attention.W_V[head].T.to(g))


def _head_vectors(block: BlockWeights, g: Float[Tensor, "feature d"]) -> Float[Tensor, "head feature d_head"]:
    """Returns the vector-Jacobian product from the attention output to the input of W_O, per head."""
    return norm_vjp(block.norm_attention_after, g) @ block.attention.W_O.movedim(1, 2).to(g)


def _strength(
    block: BlockWeights, head_vectors: Float[Tensor, "head feature d_head"], moments: Float[Tensor, "d d"]
) -> Float[Tensor, "head feature"]:
    values = norm_vjp(block.norm_attention, block.attention.W_V.movedim(1, 2).to(head_vectors))
    inner = values @ moments @ values.movedim(1, 2)
    return ((head_vectors @ inner) * head_vectors).sum(-1)


@torch.inference_mode()
def write_deembedding(
    run: str,
    dictionaries: Mapping[int, LayerDictionary],
    model: LanguageModel,
    weights: ModelWeights,
    tokens: TokenEmbeddings,
    strings: Sequence[str],
    paths: Mapping[int, Path],
    n: int = 10,
    heads: int = 1,
) -> None:
    """Write the table `deembedding` of each layer in `paths`.

    For each feature, the table lists the `n` tokens with the largest effects and the `n` tokens with the smallest
    effects. Of equal effects, those of lower token ids come first. Direct effects, effects through the layer-0
    dictionary, and effects through each of `heads` heads have separate lists. The heads are those whose effects vary
    most between tokens. `strings` are the vocabulary's tokens as text. Raises ValueError if a dictionary is not a
    transcoder.
    """
    mean = tokens.embedding.mean(0)
    moments = tokens.embedding.T @ tokens.embedding - len(tokens.embedding) * mean.outer(mean)
    texts = pa.array(strings)
    for layer, path in paths.items():
        dictionary = require_transcoder(dictionaries[layer], layer)
        width = dictionary.width
        layers = head_layers(model, -1, layer)
        with (
            table_writer(DEEMBEDDING, path) as writer,
            progress(f"de-embedding: {run} layer {layer}", width, "features") as bar,
        ):
            layer0 = tokens.layer0_before(layer) if layer > 0 else None
            for low in range(0, width, FEATURES):
                encoder = encoder_in_residual(weights, layer, dictionary, slice(low, low + FEATURES))
                found: list[_Found] = [("direct", strongest_tokens(encoder, tokens.embedding, n))]
                if layer0 is not None:
                    found.append(("layer0", strongest_tokens(encoder, layer0, n)))
                if layers:
                    by_head = strongest_heads(weights, layers, encoder, lambda _: moments, heads)
                    found += [
                        (_head_names(by_head, k), strongest_tokens(by_head.vector[:, k], tokens.embedding, n))
                        for k in range(by_head.head.shape[1])
                    ]
                writer.write_table(_rows(run, layer, low, found, texts), row_group_size=ROW_GROUP)
                bar.update(len(encoder))


_Found = tuple[str | np.ndarray, StrongestTokens]
"""Value of the column `via`, and the tokens of each feature with the largest and the smallest effects."""


def _head_names(heads: TopHeads, kept: int) -> np.ndarray:
    columns = zip(heads.layer[:, kept].tolist(), heads.head[:, kept].tolist(), strict=True)
    return np.array([f"head {layer}.{head}" for layer, head in columns], object)[:, None, None]


def _rows(run: str, layer: int, low: int, found: Sequence[_Found], texts: pa.StringArray) -> pa.Table:
    token = np.stack([each.token for _, each in found], 1)
    effect = np.stack([each.product for _, each in found], 1).astype(np.float32)
    via = np.empty(token.shape, object)
    for number, (name, _) in enumerate(found):
        via[:, number] = name
    feature, _, negative, rank = np.indices(token.shape)
    columns = {
        "run": pa.repeat(run, token.size),
        "layer": np.full(token.size, layer),
        "feature": feature.ravel() + low,
        "via": via.ravel(),
        "sign": 1 - 2 * negative.ravel(),
        "rank": rank.ravel(),
        "token_id": token.ravel(),
        "token": texts.take(pa.array(token.ravel())),
        "effect": effect.ravel(),
    }
    return pa.table(columns).cast(DEEMBEDDING.schema)
