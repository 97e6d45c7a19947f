"""Which tokens a feature reads, by the weights alone: directly, through layer 0, or through a head.

Gains of norms and what takes off the mean are gone through; denominators are left out, but for that of the norm in
front of layer 0's dictionary, which must fire as it does on an input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel
from ..language_model.residual import Norm

MAX_ELEMENTS = 2**25
"""Effects (feature, token), or pre-activations (token, feature), held at once."""
ROW_GROUP = 2**14
SCALE_TOKENS = 4
"""Tokens on which the scale of the embedding is measured."""
TOLERANCE = 1e-2
"""Share of its norm by which what enters the stream may differ from a multiple of the embedding's row."""


@dataclass(frozen=True)
class EmbeddingActivations:
    """Which layer-0 features fire on each token's embedding alone, without attention or position."""

    start: Int[Tensor, " token"]
    """First entry of each token."""
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    largest: Float[Tensor, " feature"]
    """Each feature's largest activation over the vocabulary; 0 where it fires on no token."""

    def weigh(self, rows: Float[Tensor, "feature n"]) -> Float[Tensor, "token n"]:
        """Sum over a token's features of activation times row."""
        return _weigh(self.start, self.feature, self.value, rows)


@dataclass(frozen=True)
class TokenEmbeddings:
    """What each token brings into the residual stream by itself."""

    embedding: Float[Tensor, "token d"]
    """Embedding, as it enters the stream."""
    code: EmbeddingActivations | None
    """None where the run has no dictionary at layer 0, as is `layer0`."""
    layer0: Float[Tensor, "token d"] | None
    """What layer 0's dictionary adds to the stream, denominator of a norm behind the MLP left out."""


@dataclass(frozen=True)
class TopHeads:
    """What features read through the heads that matter most to each."""

    layer: Int[Tensor, "feature kept"]
    head: Int[Tensor, "feature kept"]
    read: Float[Tensor, "feature kept d"]
    """What they read in the stream in front of the head's layer, the head attending with 1."""


def norm_vjp(norm: Norm | None, v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """What vectors that read behind `norm` are in front of it, the denominator left out."""
    return v if norm is None else norm.vjp(v)


def norm_jvp(norm: Norm | None, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """What a change in front of `norm` is behind it, the denominator left out."""
    return x if norm is None else norm.gain * norm.project(x)


def encoder_in_residual(
    weights: ModelWeights, layer: int, rows: Float[Tensor, "feature d"]
) -> Float[Tensor, "feature d"]:
    """What encoder rows of a layer read in the residual stream in front of its MLP: P(gain * W_enc)."""
    norm = weights.blocks[layer].norm_mlp
    return norm_vjp(norm, rows.to(weights.unembedding.norm.gain))


def head_layers(model: LanguageModel, source: int, target: int) -> range:
    """Layers whose heads lie between what block `source` writes (-1: the embedding) and the MLP of block `target`."""
    return range(source + 1, target + (0 if model.anatomy.parallel else 1))


@torch.inference_mode()
def embedding_rows(model: LanguageModel, weights: ModelWeights) -> Float[Tensor, "vocabulary d"]:
    """The embedding of every token as it enters the residual stream, whatever the model scales it by.

    Raises ValueError where what enters the stream is no multiple of the embedding's row.
    """
    rows = model.module.get_submodule(model.anatomy.embedding).weight
    assert isinstance(rows, Tensor)
    token = torch.linspace(0, len(rows) - 1, SCALE_TOKENS, device=rows.device).round().long()
    rows = rows.detach().to(weights.unembedding.norm.gain)
    entered = capture_pass(model, weights, token).embedding.to(rows)
    found = rows[token]
    if found.shape == entered.shape:
        scale = (entered * found).sum() / found.square().sum()
        if (entered - scale * found).norm() <= TOLERANCE * entered.norm():
            # measured in the model's number format
            return rows if abs(scale - 1) < 1e-5 else rows * scale
    raise ValueError(
        f"{model.anatomy.architecture}: what enters its residual stream is no multiple of the embedding; "
        "choose another model"
    )


@torch.inference_mode()
def embed_vocabulary(
    model: LanguageModel, weights: ModelWeights, first: Dictionary | None, vocabulary: int
) -> TokenEmbeddings:
    """What the first `vocabulary` tokens bring into the stream; `first` is the run's dictionary at layer 0."""
    # a vocabulary that was padded for speed has rows that no text gives
    embedding = embedding_rows(model, weights)[:vocabulary]
    if first is None:
        return TokenEmbeddings(embedding, None, None)
    first = require_transcoder(first, 0).to(embedding.device, embedding.dtype)
    anatomy = model.anatomy
    norm = model.norm(0, anatomy.norm_mlp or anatomy.norm_attention)
    starts, features, values, written = [], [], [], []
    held = 0
    for part in embedding.split(max(1, MAX_ELEMENTS // first.width)):
        dtype = next(model.module.parameters()).dtype
        x = part if norm is None else norm(part.to(dtype)).to(part)
        token, feature, value = first.encode_sparse(x)
        n = torch.bincount(token, minlength=len(x))
        start = n.cumsum(0) - n
        y_hat = _weigh(start, feature, value, first.W_dec) + first.b_dec
        written.append(y_hat if first.W_skip is None else y_hat + x @ first.W_skip.T)
        starts.append(start + held)
        features.append(feature)
        values.append(value)
        held += len(feature)
    feature, value = torch.cat(features), torch.cat(values)
    largest = value.new_zeros(first.width).scatter_reduce_(0, feature, value, "amax")
    layer0 = norm_jvp(weights.blocks[0].norm_mlp_after, torch.cat(written))
    return TokenEmbeddings(embedding, EmbeddingActivations(torch.cat(starts), feature, value, largest), layer0)


def _weigh(
    start: Int[Tensor, " token"],
    feature: Int[Tensor, " entry"],
    value: Float[Tensor, " entry"],
    rows: Float[Tensor, "feature n"],
) -> Float[Tensor, "token n"]:
    return embedding_bag(feature, rows, start, mode="sum", per_sample_weights=value)


def require_transcoder(dictionary: Dictionary, layer: int) -> Dictionary:
    """`dictionary`; ValueError where it is no transcoder."""
    if not dictionary.is_transcoder:
        raise ValueError(
            f"layer {layer}: what weights say is asked of transcoders; this dictionary maps {dictionary.site_in} to "
            f"{dictionary.site_out}; name a run of transcoders"
        )
    return dictionary


def strongest_heads(
    weights: ModelWeights,
    layers: range,
    reads: Float[Tensor, "feature d"],
    moments: Float[Tensor, "d d"],
    wanted: int,
) -> TopHeads:
    """Of the heads of `layers`, the `wanted` through which each feature reads most of what is written in front of them.

    `moments` is X^T X of what is written, X [source, d]: a head counts by the root of the sum of its squared effects
    from all sources.
    """
    blocks = {layer: weights.blocks[layer] for layer in layers}
    queries = {layer: _queries(block, reads) for layer, block in blocks.items()}
    strength = torch.cat([_strength(blocks[layer], queries[layer], moments) for layer in layers])
    best = strength.topk(min(wanted, len(strength)), dim=0).indices.T
    heads = len(strength) // len(layers)
    read = reads.new_empty(*best.shape, reads.shape[1])
    for number in best.unique().tolist():
        layer, head = layers[number // heads], number % heads
        feature, place = (best == number).nonzero(as_tuple=True)
        read[feature, place] = head_vjp(blocks[layer], head, reads[feature])
    return TopHeads(best // heads + layers.start, best % heads, read)


def head_vjp(
    block: BlockWeights, head: int, reads: Float[Tensor, "feature d"]
) -> Float[Tensor, "feature d"]:
    """What vectors that read the stream behind attention read in front of it through a head that attends with 1."""
    v = norm_vjp(block.norm_attention_after, reads) @ block.attention.W_O[head].T.to(reads)
    return norm_vjp(block.norm_attention, v @ block.attention.W_V[head].T.to(reads))


def _queries(block: BlockWeights, reads: Float[Tensor, "feature d"]) -> Float[Tensor, "head feature d_head"]:
    """What vectors that read the stream behind attention read in each head's mix of values."""
    return norm_vjp(block.norm_attention_after, reads) @ block.attention.W_O.movedim(1, 2).to(reads)


def _strength(
    block: BlockWeights, queries: Float[Tensor, "head feature d_head"], moments: Float[Tensor, "d d"]
) -> Float[Tensor, "head feature"]:
    values = norm_vjp(block.norm_attention, block.attention.W_V.movedim(1, 2).to(queries))
    inner = values @ moments @ values.movedim(1, 2)
    return ((queries @ inner) * queries).sum(-1)


@torch.inference_mode()
def write_deembedding(
    run: str,
    dictionaries: Mapping[int, Dictionary],
    model: LanguageModel,
    weights: ModelWeights,
    tokens: TokenEmbeddings,
    strings: Sequence[str],
    paths: Mapping[int, Path],
    wanted: int = 10,
    heads: int = 1,
) -> None:
    """Write, for each layer in `paths`, the `wanted` tokens that raise each feature most, and as many that lower it.

    By way of the embedding, of layer 0's dictionary (for later layers), and of the `heads` heads of a feature through
    which the effects of tokens differ most. `strings` are the tokens as text, by id. Raises ValueError where a
    dictionary is no transcoder.
    """
    mean = tokens.embedding.mean(0)
    moments = tokens.embedding.T @ tokens.embedding - len(tokens.embedding) * mean.outer(mean)
    texts = pa.array(strings)
    for layer, path in paths.items():
        rows = require_transcoder(dictionaries[layer], layer).W_enc
        size = max(1, MAX_ELEMENTS // len(tokens.embedding))
        through = head_layers(model, -1, layer)
        with (
            table_writer(DEEMBEDDING, path) as writer,
            progress(f"de-embedding: {run} layer {layer}", len(rows), "features") as bar,
        ):
            for low in range(0, len(rows), size):
                reads = encoder_in_residual(weights, layer, rows[low : low + size])
                found = [_strongest("direct", reads @ tokens.embedding.T, wanted)]
                if layer > 0 and tokens.layer0_output is not None:
                    found.append(_strongest("layer0", reads @ tokens.layer0_output.T, wanted))
                if through:
                    by_head = strongest_heads(weights, through, reads, moments, heads)
                    found += [
                        _strongest(_names(by_head, k), by_head.read[:, k] @ tokens.embedding.T, wanted)
                        for k in range(by_head.head.shape[1])
                    ]
                writer.write_table(_rows(run, layer, low, found, texts), row_group_size=ROW_GROUP)
                bar.update(len(reads))


_Found = tuple[str | np.ndarray, Tensor, Tensor]
"""Via; tokens and effects, [feature, side, rank]."""


def _strongest(via: str | np.ndarray, effects: Float[Tensor, "feature token"], wanted: int) -> _Found:
    sides = [effects.topk(min(wanted, effects.shape[1]), dim=1, largest=largest) for largest in (True, False)]
    return via, torch.stack([s.indices for s in sides], 1), torch.stack([s.values for s in sides], 1)


def _names(heads: TopHeads, kept: int) -> np.ndarray:
    columns = zip(heads.layer[:, kept].tolist(), heads.head[:, kept].tolist(), strict=True)
    return np.array([f"head {layer}.{head}" for layer, head in columns], object)[:, None, None]


def _rows(run: str, layer: int, low: int, found: Sequence[_Found], texts: pa.StringArray) -> pa.Table:
    token = torch.stack([tokens for _, tokens, _ in found], 1).cpu().numpy()
    effect = torch.stack([effects for _, _, effects in found], 1).float().cpu().numpy()
    via = np.empty(token.shape, object)
    for number, (name, _, _) in enumerate(found):
        via[:, number] = name
    feature, _, side, rank = np.indices(token.shape)
    columns = {
        "run": pa.repeat(run, token.size),
        "layer": np.full(token.size, layer),
        "feature": feature.ravel() + low,
        "via": via.ravel(),
        "sign": 1 - 2 * side.ravel(),
        "rank": rank.ravel(),
        "token_id": token.ravel(),
        "token": texts.take(pa.array(token.ravel())),
        "effect": effect.ravel(),
    }
    return pa.table(columns).cast(DEEMBEDDING.schema)
