"""Connections (virtual weights) between features of different layers, and mean effects on held-out tokens. A connection
is direct or goes through one attention head."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.capture import CapturedLayer, ModelWeights
from ..attribution.linearized_model import LinearizedModel
from ..core.progress import progress
from ..core.tables import CONNECTION, table_writer
from ..dictionaries.cross_layer import LayerDictionary
from ..language_model.model import LanguageModel
from ..language_model.residual import norm_jvp
from .deembedding import (
    MAX_ELEMENTS,
    encoder_in_residual,
    head_layers,
    require_transcoder,
    strongest_heads,
)

MAX_GATHERED = 2**17
"""Maximum number of elements of a chunk [pair, position]. Chunks that fit into the cache are six times faster."""
MAX_ROWS = 2**20
"""Maximum number of table rows per write."""
ROW_GROUP = 2**16
DIRECT = -1
"""Value of `head_layer` and `head` for a direct connection."""


@dataclass(frozen=True)
class Connections:
    """Strongest connections to each feature of a layer. Direct connections come first, then connections through heads.
    Each group is sorted by descending |weight|."""

    source_layer: Int[Tensor, "feature kept"]
    source: Int[Tensor, "feature kept"]
    """Index of the source feature in its layer."""
    head_layer: Int[Tensor, "feature kept"]
    head: Int[Tensor, "feature kept"]
    weight: Float[Tensor, "feature kept"]
    """Virtual weight from source i to target j, without norm denominators.

    Direct: w_i P(gain * W_enc[j]). Through a head: w_i P(gain * W_V W_O P(gain * W_enc[j])). w_i is W_dec[i] divided by
    its norm, so that sources are compared by what they write. A feature of a cross-layer transcoder is divided by the
    norm of all its rows, and w_i is the sum of its rows to layers before the target's MLP, or before the head. P
    subtracts the mean in a LayerNorm and is the identity in an RMSNorm. For a target that reads resid_mid,
    P(gain * W_enc[j]) is W_enc[j]."""

    def strongest(self, n: int) -> "Connections":
        """Returns up to `n` connections of each feature, by descending |weight|."""
        best = self.weight.abs().topk(min(n, self.weight.shape[1]), dim=1).indices
        return Connections(*(column.gather(1, best) for column in vars(self).values()))

    @staticmethod
    def concatenate(parts: Iterable["Connections"], dim: int) -> "Connections":
        """Concatenate along features (dim 0) or along the connections of each feature (dim 1)."""
        return Connections(
            *(torch.cat(columns, dim) for columns in zip(*(vars(p).values() for p in parts), strict=True))
        )


@dataclass(frozen=True)
class MeanEffects:
    """Mean effects of a layer's connections on held-out tokens."""

    mean: Float[Tensor, "feature kept"]
    """Mean contribution of each connection to the target's pre-activation, over all tokens."""
    when_active: Float[Tensor, "feature kept"]
    """Mean contribution over the tokens on which the target fires. NaN if the target never fires."""
    n_active: Int[Tensor, " feature"]
    """Number of tokens on which each target fires."""


@torch.inference_mode()
def find_connections(
    model: LanguageModel,
    weights: ModelWeights,
    dictionaries: Mapping[int, LayerDictionary],
    layer: int,
    n: int = 10,
    heads: int = 1,
) -> Connections:
    """Find the strongest connections from features of earlier layers to each feature of `layer`.

    Each feature gets `n` direct connections and `n` connections through heads. For each feature and source layer, only
    `heads` heads are considered: the heads with the largest sum of squared weights. Raises ValueError if a dictionary
    is not a transcoder.
    """
    like = weights.unembedding.norm.gain
    written = {
        source: SourceVectors(model, weights, dictionary, source, like)
        for source, dictionary in dictionaries.items()
        if source < layer
    }
    target = require_transcoder(dictionaries[layer], layer)
    chunks = []
    size = max(1, MAX_ELEMENTS // max([dictionaries[source].width for source in written], default=1))
    with progress(f"connections: layer {layer}", target.width, "features") as bar:
        for low in range(0, target.width, size):
            encoder = encoder_in_residual(weights, layer, target, slice(low, low + size))
            none = _none(len(encoder), like)
            direct, through_heads = [none], [none]
            for source, vectors in written.items():
                direct.append(_strongest(encoder @ vectors.before(layer).T, source, n))
                if layers := head_layers(model, source, layer):
                    top = strongest_heads(weights, layers, encoder, vectors.moments, heads)
                    for k in range(top.head.shape[1]):
                        head = top.layer[:, k], top.head[:, k]
                        weight = vectors.products(top.vector[:, k], head[0])
                        through_heads.append(_strongest(weight, source, n, head))
            kinds = [Connections.concatenate(each, 1).strongest(n) for each in (direct, through_heads)]
            chunks.append(Connections.concatenate(kinds, 1))
            bar.update(len(encoder))
    return Connections.concatenate(chunks, 0)


class SourceVectors:
    """What the features of one dictionary write to the residual stream, per unit of norm, without denominators."""

    def __init__(
        self,
        model: LanguageModel,
        weights: ModelWeights,
        dictionary: LayerDictionary,
        layer: int,
        like: Tensor,
    ) -> None:
        """`like` has the dtype and the device of the vectors. Raises ValueError if the dictionary is not a transcoder,
        or if its outputs in several layers go through norms with denominators of their own."""
        require_transcoder(dictionary, layer)
        norms = {output: weights.blocks[output].norm_after(dictionary) for output in dictionary.outputs}
        crosses_norms = dictionary.is_before_norm and any(
            model.norm_after_mlp(output) is not None for output in norms
        )
        if len(norms) > 1 and crosses_norms:
            raise ValueError(
                f"layer {layer}: a cross-layer transcoder of mlp_out goes through the norm after each MLP, whose "
                "denominators differ between layers, so it has no weight tables; train it with site: mlp_added"
            )
        self._rows = {
            output: norm_jvp(norm, (dictionary.decoder(output) / dictionary.row_norm[:, None]).to(like))
            for output, norm in norms.items()
        }
        self._moments: dict[int, Tensor] = {}

    def before(self, layer: int) -> Float[Tensor, "source d"]:
        """Returns the sum of what each feature writes to layers before `layer`."""
        rows = [each for output, each in self._rows.items() if output < layer]
        return rows[0] if len(rows) == 1 else torch.stack(rows).sum(0)

    def moments(self, layer: int) -> Float[Tensor, "d d"]:
        """Returns X^T X for the rows X of `before(layer)`."""
        number = sum(output < layer for output in self._rows)
        if number not in self._moments:
            x = self.before(layer)
            self._moments[number] = x.T @ x
        return self._moments[number]

    def products(
        self, vector: Float[Tensor, "feature d"], layer: Int[Tensor, " feature"]
    ) -> Float[Tensor, "feature source"]:
        """Returns the products of each vector with the rows of `before`, for the layer of this vector."""
        if len(self._rows) == 1:
            return vector @ self.before(int(layer[0])).T
        product = vector.new_empty(len(vector), len(next(iter(self._rows.values()))))
        for each in layer.unique().tolist():
            product[layer == each] = vector[layer == each] @ self.before(each).T
        return product


def _none(features: int, like: Tensor) -> Connections:
    number = torch.empty(features, 0, dtype=torch.int64, device=like.device)
    return Connections(number, number, number, number, like.new_empty(features, 0))


def _strongest(
    weight: Float[Tensor, "feature source"],
    source_layer: int,
    n: int,
    head: tuple[Tensor, Tensor] | None = None,
) -> Connections:
    source = weight.abs().topk(min(n, weight.shape[1]), dim=1).indices
    layer, number = (
        torch.full_like(source, DIRECT) if each is None else each[:, None].expand_as(source)
        for each in head or (None, None)
    )
    return Connections(torch.full_like(source, source_layer), source, layer, number, weight.gather(1, source))


@torch.inference_mode()
def mean_effects(
    prompts: Iterable[LinearizedModel], connections: Mapping[int, Connections]
) -> dict[int, MeanEffects]:
    """Returns the mean effects of the connections of each layer. The iterable `prompts` is consumed once.

    Let t be a position of the target feature, and z_i the activation of source i times the norm of its decoder row. The
    effect of a direct connection is weight z_i(t) / sigma(t). The effect of a connection through a head is
    sum_s weight z_i(s) A[t, s] / (sigma(s) sigma(t)). A is the head's attention pattern. sigma(p) is the product of the
    denominators of all norms on the path that act at position p.
    """
    sums = {layer: _ConnectionSums(layer, kept) for layer, kept in connections.items()}
    n_tokens = 0
    for prompt in prompts:
        n_tokens += int(prompt.replaced.sum())
        sources = _SourceActivations(prompt)
        for each in sums.values():
            each.add(prompt, sources)
    return {layer: each.means(n_tokens) for layer, each in sums.items()}


class _SourceActivations:
    """Activations of the features of a prompt times the norms of their decoder rows, divided by the denominator of any
    norm between their output and the residual stream."""

    def __init__(self, prompt: LinearizedModel) -> None:
        active = prompt.features
        self.widest = max(dictionary.width for dictionary in prompt.dictionaries.values())
        number, row = torch.unique(active.layer * self.widest + active.feature, return_inverse=True)
        self._row = torch.full((prompt.layers * self.widest,), -1, device=row.device)
        self._row[number] = torch.arange(len(number), device=row.device)
        sigma = torch.stack([prompt.norm_after(layer).sigma for layer in range(prompt.layers)])
        self.value: Float[Tensor, "source position"] = sigma.new_zeros(len(number), len(prompt.captured))
        norm = sigma.new_ones(prompt.layers, self.widest)
        for layer, dictionary in prompt.dictionaries.items():
            norm[layer, : dictionary.width] = dictionary.row_norm
        written = active.activation * norm[active.layer, active.feature]
        self.value[row, active.position] = written / sigma[active.layer, active.position]

    def rows(
        self, layer: Int[Tensor, "feature kept"], feature: Int[Tensor, "feature kept"]
    ) -> Int[Tensor, "feature kept"]:
        """Returns the row of `value` for each feature, or -1 if the feature does not fire on the prompt."""
        return self._row[layer * self.widest + feature]


class _ConnectionSums:
    """Sums of the effects of one layer's connections over tokens. The sums leave out the weights of the connections.
    `means` multiplies the sums by the weights."""

    def __init__(self, layer: int, connections: Connections) -> None:
        self.layer, self.connections = layer, connections
        self.all_tokens = connections.weight.new_zeros(connections.weight.shape, dtype=torch.float64)
        self.active_tokens = torch.zeros_like(self.all_tokens)
        self.n_active = torch.zeros(len(self.all_tokens), dtype=torch.int64, device=self.all_tokens.device)
        # all values of head_layer; DIRECT is one of them if there are direct connections
        self.head_layers = sorted(set(connections.head_layer.unique().tolist()))

    def means(self, n_tokens: int) -> MeanEffects:
        weight = self.connections.weight.double()
        active = weight * self.active_tokens / self.n_active[:, None]
        return MeanEffects(weight * self.all_tokens / max(1, n_tokens), active, self.n_active)

    def add(self, prompt: LinearizedModel, sources: _SourceActivations) -> None:
        n, features = len(prompt.captured), prompt.features
        mine = prompt.active_in_layer(self.layer, n)
        feature, position = features.feature[mine], features.position[mine]
        self.n_active += torch.bincount(feature, minlength=len(self.all_tokens))
        row = sources.rows(self.connections.source_layer, self.connections.source)
        for head_layer in self.head_layers:
            live = (self.connections.head_layer == head_layer) & (row >= 0)
            block = None if head_layer == DIRECT else prompt.captured.layers[head_layer]
            scale = self._scale(prompt, block)
            self._add_all_tokens(prompt, block, scale, sources, live, row)
            # for each active feature and position, all live connections of this feature
            entry, kept = live.index_select(0, feature).nonzero(as_tuple=True)
            pairs = feature.index_select(0, entry) * live.shape[1] + kept
            targets = position.index_select(0, entry)
            size = max(1, MAX_GATHERED // n)
            for pair, at in zip(pairs.split(size), targets.split(size), strict=True):
                effect = self._effects(block, sources, row.flatten().index_select(0, pair), pair, at)
                self.active_tokens.flatten().index_add_(
                    0, pair, (effect * scale.index_select(0, at)).double()
                )

    def _effects(
        self,
        block: CapturedLayer | None,
        sources: _SourceActivations,
        row: Int[Tensor, " pair"],
        pair: Int[Tensor, " pair"],
        position: Int[Tensor, " pair"],
    ) -> Float[Tensor, " pair"]:
        """Returns the effect of each connection in `pair` at `position`, without the weight and the factor of `_scale`.
        `pair` has indices into the flattened connections [feature, kept]."""
        if block is None:
            return sources.value[row, position]
        head = self.connections.head.flatten().index_select(0, pair)
        pattern = block.pattern.flatten(0, 1).index_select(0, head * block.pattern.shape[1] + position)
        pattern /= block.norm_attention.sigma
        return torch.linalg.vecdot(pattern, sources.value.index_select(0, row))

    def _scale(self, prompt: LinearizedModel, block: CapturedLayer | None) -> Float[Tensor, " position"]:
        """Returns 1 / the product of the denominators of the norms that act at the target position."""
        scale = 1 / prompt.norm_before(self.layer).sigma
        return scale if block is None else scale / block.norm_attention_after.sigma

    def _add_all_tokens(
        self,
        prompt: LinearizedModel,
        block: CapturedLayer | None,
        scale: Float[Tensor, " position"],
        sources: _SourceActivations,
        live: Bool[Tensor, "feature kept"],
        row: Int[Tensor, "feature kept"],
    ) -> None:
        scale = scale * prompt.replaced
        if block is None:
            effect = (sources.value @ scale)[:, None]
            head = torch.zeros_like(row)
        else:
            attended = (scale @ block.pattern) / block.norm_attention.sigma
            effect, head = sources.value @ attended.T, self.connections.head
        self.all_tokens[live] += effect[row[live], head[live]]


def write_connections(run: str, layer: int, connections: Connections, means: MeanEffects, path: Path) -> None:
    """Write the connections of one layer and their mean effects to `path`."""
    columns = {name: value.cpu().numpy() for name, value in (vars(connections) | vars(means)).items()}
    direct = columns["head_layer"] == DIRECT
    rank = np.where(direct, direct.cumsum(1), (~direct).cumsum(1)) - 1
    size = max(1, MAX_ROWS // max(1, direct.shape[1]))
    with table_writer(CONNECTION, path) as writer:
        for low in range(0, len(direct), size):
            part = {name: value[low : low + size] for name, value in columns.items()}
            rows = _rows(run, layer, low, part, rank[low : low + size])
            writer.write_table(rows, row_group_size=ROW_GROUP)


def _rows(run: str, layer: int, low: int, part: dict[str, np.ndarray], rank: np.ndarray) -> pa.Table:
    feature = np.broadcast_to(np.arange(len(rank))[:, None], rank.shape)
    heads = zip(part["head_layer"].flat, part["head"].flat, strict=True)
    columns = {
        "run": pa.repeat(run, rank.size),
        "layer": np.full(rank.size, layer),
        "feature": feature.ravel() + low,
        "via": ["direct" if at == DIRECT else f"head {at}.{head}" for at, head in heads],
        "rank": rank.ravel(),
        "source_layer": part["source_layer"].ravel(),
        "source_feature": part["source"].ravel(),
        "weight": part["weight"].ravel(),
        "mean_effect": part["mean"].ravel(),
        "mean_effect_when_active": pa.array(part["when_active"].ravel(), from_pandas=True),
        "n_active": np.broadcast_to(part["n_active"][:, None], rank.shape).ravel(),
    }
    return pa.table(columns).cast(CONNECTION.schema)
