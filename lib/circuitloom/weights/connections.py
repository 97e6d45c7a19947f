"""Which features of earlier layers a feature reads, by the weights alone, and what they do to it on real tokens."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.capture import CapturedLayer, ModelWeights, capture_pass
from ..attribution.linearized_model import LinearizedModel
from ..core.progress import progress
from ..core.tables import CONNECTION, table_writer
from ..corpus.tokens import Tokens
from ..dictionaries.dictionary import Dictionary
from ..evaluation.held_out import count_sequences
from ..language_model.model import LanguageModel
from .deembedding import checked, head_layers, push, stream_reads, strongest_heads

NUMBERS_AT_ONCE = 2**25
"""Weights (target, source) held at once."""
GATHERED_AT_ONCE = 2**17
"""Numbers of (pair, position) gathered at once: what stays in the cache is summed six times as fast."""
ROWS_AT_ONCE = 2**20
ROW_GROUP = 2**16
DIRECT = -1
"""In the place of a head's layer and number: through none."""


@dataclass(frozen=True)
class Connections:
    """What is kept of what each feature of a layer reads: first direct connections, then those through heads, each
    by falling |weight|."""

    source_layer: Int[Tensor, "feature kept"]
    source: Int[Tensor, "feature kept"]
    """Number of the feature that is read."""
    head_layer: Int[Tensor, "feature kept"]
    head: Int[Tensor, "feature kept"]
    weight: Float[Tensor, "feature kept"]
    """W_dec[i] P(gain * W_enc[j]), or W_dec[i] P(gain * W_V W_O P(gain * W_enc[j])): no denominator."""

    def strongest(self, n: int) -> "Connections":
        """The n of each feature, or all there are, of largest |weight|, by falling |weight|."""
        best = self.weight.abs().topk(min(n, self.weight.shape[1]), dim=1).indices
        return Connections(*(column.gather(1, best) for column in vars(self).values()))

    @staticmethod
    def concatenate(parts: Iterable["Connections"], dim: int) -> "Connections":
        """Connections of the same features one after the other (1), or of more features (0)."""
        return Connections(
            *(torch.cat(columns, dim) for columns in zip(*(vars(p).values() for p in parts), strict=True))
        )


@dataclass(frozen=True)
class Means:
    """What connections do on some tokens; of all of a layer's features."""

    mean: Float[Tensor, "feature kept"]
    """Over all tokens, of what the source adds to the pre-activation."""
    when_active: Float[Tensor, "feature kept"]
    """Over those on which the feature that reads fires; NaN where there are none."""
    n_active: Int[Tensor, " feature"]


@torch.inference_mode()
def find_connections(
    model: LanguageModel,
    weights: ModelWeights,
    dictionaries: Mapping[int, Dictionary],
    layer: int,
    wanted: int = 10,
    heads: int = 1,
) -> Connections:
    """The strongest `wanted` direct connections of each feature of `layer`, and as many through heads.

    Through heads: for the features of each earlier layer, through the `heads` heads by which the feature reads most of
    what they write, the root of the sum of squared weights. Raises ValueError where a dictionary is no transcoder.
    """
    like = weights.unembedding.norm.gain
    written = {
        source: push(weights.blocks[source].norm_mlp_after, checked(dictionary, source).W_dec.to(like))
        for source, dictionary in dictionaries.items()
        if source < layer
    }
    rows = checked(dictionaries[layer], layer).W_enc
    moments = {source: x.T @ x for source, x in written.items()}
    parts = []
    size = max(1, NUMBERS_AT_ONCE // max([len(x) for x in written.values()], default=1))
    with progress(f"connections: layer {layer}", len(rows), "features") as bar:
        for part in rows.split(size):
            reads = stream_reads(weights, layer, part)
            direct, through = [_none(len(part), like)], [_none(len(part), like)]
            for source, x in written.items():
                direct.append(_strongest(reads, x, source, wanted))
                if layers := head_layers(model, source, layer):
                    found = strongest_heads(weights, layers, reads, moments[source], heads)
                    for k in range(found.head.shape[1]):
                        head = found.layer[:, k], found.head[:, k]
                        through.append(_strongest(found.read[:, k], x, source, wanted, head))
            kinds = [Connections.concatenate(each, 1).strongest(wanted) for each in (direct, through)]
            parts.append(Connections.concatenate(kinds, 1))
            bar.update(len(part))
    return Connections.concatenate(parts, 0)


def _none(features: int, like: Tensor) -> Connections:
    number = torch.empty(features, 0, dtype=torch.int64, device=like.device)
    return Connections(number, number, number, number, like.new_empty(features, 0))


def _strongest(
    reads: Float[Tensor, "feature d"],
    written: Float[Tensor, "source d"],
    source_layer: int,
    wanted: int,
    head: tuple[Tensor, Tensor] | None = None,
) -> Connections:
    weight = reads @ written.T
    source = weight.abs().topk(min(wanted, len(written)), dim=1).indices
    layer, number = (
        torch.full_like(source, DIRECT) if each is None else each[:, None].expand_as(source)
        for each in head or (None, None)
    )
    return Connections(torch.full_like(source, source_layer), source, layer, number, weight.gather(1, source))


def local_models(
    model: LanguageModel,
    weights: ModelWeights,
    dictionaries: Mapping[int, Dictionary],
    tokens: Tokens,
    wanted: int | None,
) -> Iterator[LinearizedModel]:
    """The replacement models of the first sequences of `tokens`, of so many tokens, one after the other.

    Raises ValueError where the tokens are damaged, or circuits do not go through the model or a dictionary.
    """
    rows = range(count_sequences(tokens, wanted))
    with progress("prompts", len(rows), "sequences") as bar:
        for row in rows:
            token = tokens.take(slice(row, row + 1))[0]
            yield LinearizedModel(capture_pass(model, weights, token), dictionaries, tokens.bos_id)
            bar.update(1)


@torch.inference_mode()
def mean_effects(
    prompts: Iterable[LinearizedModel], connections: Mapping[int, Connections]
) -> dict[int, Means]:
    """What the connections of each layer do, in one pass over prompts; memory depends on one prompt alone.

    The effect on a feature at position t is weight z_i(t) / sigma(t) directly, sum_s weight z_i(s) A[t, s] /
    (sigma(s) sigma(t)) through a head: an edge of the prompt's graph, whose other sources are left out.
    """
    sums = {layer: _ConnectionSums(layer, of) for layer, of in connections.items()}
    tokens = 0
    for prompt in prompts:
        tokens += int(prompt.replaced.sum())
        written = _Written(prompt)
        for each in sums.values():
            each.add(prompt, written)
    return {layer: each.means(tokens) for layer, each in sums.items()}


class _Written:
    """Activations of the features that fire on a prompt, as they reach the stream: over the denominator of a norm
    behind the MLP."""

    def __init__(self, prompt: LinearizedModel) -> None:
        active = prompt.features
        self.widest = max(dictionary.width for dictionary in prompt.dictionaries.values())
        number, row = torch.unique(active.layer * self.widest + active.feature, return_inverse=True)
        self._row = torch.full((prompt.layers * self.widest,), -1, device=row.device)
        self._row[number] = torch.arange(len(number), device=row.device)
        sigma = torch.stack([layer.norm_mlp_after.sigma for layer in prompt.frozen.layers])
        self.value: Float[Tensor, "fired position"] = sigma.new_zeros(len(number), len(prompt.frozen))
        self.value[row, active.position] = active.activation / sigma[active.layer, active.position]

    def rows(
        self, layer: Int[Tensor, "feature kept"], feature: Int[Tensor, "feature kept"]
    ) -> Int[Tensor, "feature kept"]:
        """Row of `value` of each feature; -1 where it does not fire on the prompt."""
        return self._row[layer * self.widest + feature]


class _ConnectionSums:
    """Sums, over tokens, of what the connections of one layer do."""

    def __init__(self, layer: int, connections: Connections) -> None:
        self.layer, self.connections = layer, connections
        self.all = connections.weight.new_zeros(connections.weight.shape, dtype=torch.float64)
        self.active = torch.zeros_like(self.all)
        self.n_active = torch.zeros(len(self.all), dtype=torch.int64, device=self.all.device)
        # heads that no connection goes through are passed over
        self.layers = sorted(set(connections.head_layer.unique().tolist()))

    def means(self, tokens: int) -> Means:
        weight = self.connections.weight.double()
        active = weight * self.active / self.n_active[:, None]
        return Means(weight * self.all / max(1, tokens), active, self.n_active)

    def add(self, prompt: LinearizedModel, written: _Written) -> None:
        n, features = len(prompt.frozen), prompt.features
        mine = slice(prompt.active(self.layer, 0).start, prompt.active(self.layer, n - 1).stop)
        feature, position = features.feature[mine], features.position[mine]
        self.n_active += torch.bincount(feature, minlength=len(self.all))
        row = written.rows(self.connections.source_layer, self.connections.source)
        for head_layer in self.layers:
            live = (self.connections.head_layer == head_layer) & (row >= 0)
            block = None if head_layer == DIRECT else prompt.frozen.layers[head_layer]
            reach = self._reach(prompt, block)
            self._add_all(prompt, block, reach, written, live, row)
            # entry by entry, the live connections of its feature
            entry, kept = live.index_select(0, feature).nonzero(as_tuple=True)
            place = feature.index_select(0, entry) * live.shape[1] + kept
            t = position.index_select(0, entry)
            size = max(1, GATHERED_AT_ONCE // n)
            for pair, at in zip(place.split(size), t.split(size), strict=True):
                effect = self._effects(block, written, row.flatten().index_select(0, pair), pair, at)
                self.active.flatten().index_add_(0, pair, (effect * reach.index_select(0, at)).double())

    def _effects(
        self,
        block: CapturedLayer | None,
        written: _Written,
        row: Int[Tensor, " pair"],
        pair: Int[Tensor, " pair"],
        position: Int[Tensor, " pair"],
    ) -> Float[Tensor, " pair"]:
        """What reaches each position of a source's activations, weight and denominators behind left out."""
        if block is None:
            return written.value[row, position]
        head = self.connections.head.flatten().index_select(0, pair)
        seen = block.pattern.flatten(0, 1).index_select(0, head * block.pattern.shape[1] + position)
        seen /= block.norm_attention.sigma
        return torch.linalg.vecdot(seen, written.value.index_select(0, row))

    def _reach(self, prompt: LinearizedModel, block: CapturedLayer | None) -> Float[Tensor, " position"]:
        """What an attention's output at each position counts for in what is read there: denominators behind it."""
        reach = 1 / prompt.frozen.layers[self.layer].norm_mlp.sigma
        return reach if block is None else reach / block.norm_attention_after.sigma

    def _add_all(
        self,
        prompt: LinearizedModel,
        block: CapturedLayer | None,
        reach: Float[Tensor, " position"],
        written: _Written,
        live: Bool[Tensor, "feature kept"],
        row: Int[Tensor, "feature kept"],
    ) -> None:
        reach = reach * prompt.replaced
        if block is None:
            reached = (written.value @ reach)[:, None]
            column = torch.zeros_like(row)
        else:
            seen = (reach @ block.pattern) / block.norm_attention.sigma
            reached, column = written.value @ seen.T, self.connections.head
        self.all[live] += reached[row[live], column[live]]


def write_connections(run: str, layer: int, connections: Connections, means: Means, path: Path) -> None:
    """Write the connections of one layer, and what they do, to `path`."""
    columns = {name: value.cpu().numpy() for name, value in (vars(connections) | vars(means)).items()}
    direct = columns["head_layer"] == DIRECT
    rank = np.where(direct, direct.cumsum(1), (~direct).cumsum(1)) - 1
    size = max(1, ROWS_AT_ONCE // max(1, direct.shape[1]))
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
