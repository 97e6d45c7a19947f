"""QK attribution: an attention score as a sum over pairs of sources (Kamath et al. 2025, "Tracing Attention Computation
Through Feature Interactions").

Attribution graphs hold attention patterns fixed: they say what moved through a head, and not why it looked there. The
score of a head at query position t and key position s is scale * q . k. With frozen denominators (also those of norms
of queries and keys) and frozen rotary positions, q is linear in the sources that reach position t, and k in those that
reach s. So the score is bilinear:

    score = sum over i, j of  scale * (what source i adds to q) . (what source j adds to k)

1. `language_model/query_key.py` gives q and k as affine functions of attention's input.
2. `attribute_scores` backpropagates the components of q and k to all sources (`stream_effects`), all heads and
   positions of a layer together. Sources are those of attribution graphs, the constant included.
3. `ScoreAttribution.strongest_pairs` finds the largest products without computing all of them. Its marginals sum over
   one side: what a query source adds over all keys' sources, and the other way round.
4. Softmax compares keys. `relative` marginals are effects on the score minus the mean score over all keys of the query.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..language_model.query_key import FrozenProjection, HeadEdge, LayerScores, PromptScores
from .direct_effects import MAX_ELEMENTS, MAX_TARGETS_ON_CPU, source_columns, stream_effects
from .linearized_model import LinearizedModel
from .paths import HEAD, Paths

FIRST_SOURCES = 64
"""Number of sources per side whose pairs bound the size of the strongest pairs."""
PAIR_ELEMENTS = 2**22
"""Largest number of pairs that are computed at once."""


class SourcePairs(NamedTuple):
    """Pairs of sources, by descending |effect|. Sources are columns of `source_columns(model)`."""

    query_source: Int[Tensor, " pair"]
    key_source: Int[Tensor, " pair"]
    effect: Float[Tensor, " pair"]


@dataclass(frozen=True)
class ScoreAttribution:
    """One attention score and what each source adds to it.

    Scores are those before the cap, if the model caps them. All effects are in units of the score. In an attribution of
    direct effects, `query` and `key` sum over all sources to the model's query and key. If effects are `total`, sources
    without the features do, because a feature's total effect is that of its own sources.
    """

    edge: HeadEdge
    score: float
    """The model's own score, before cap and mask."""
    capped: float
    """What the softmax reads."""
    pattern: float
    """Attention that the key receives, after the softmax."""
    mean_score: float
    """Mean score over all keys of the query, weighted by the pattern."""
    plain_mean_score: float
    """Mean score over all keys that the query may read."""
    scale: float
    total: bool
    """Whether effects flow through active features, too."""
    features: int
    """Number of features among the sources. They come first."""
    query: Float[Tensor, "source d_head"]
    """What each source adds to the query."""
    key: Float[Tensor, "source d_head"]
    """What each source adds to the key."""
    query_vector: Float[Tensor, " d_head"]
    """The model's own query."""
    key_vector: Float[Tensor, " d_head"]
    """The model's own key."""
    mean_key: Float[Tensor, " d_head"]
    """Mean of the model's own keys, weighted by the pattern."""
    plain_mean_key: Float[Tensor, " d_head"]
    """Mean of the model's own keys that the query may read."""
    key_mean_effects: Float[Tensor, " source"]
    """Effect of each source on `mean_score` through the keys."""
    key_plain_mean_effects: Float[Tensor, " source"]
    """Effect of each source on `plain_mean_score` through the keys."""

    @property
    def query_effects(self) -> Float[Tensor, " source"]:
        """What each source adds to the score through the query: its pairs, summed over all sources of the key."""
        return self.scale * (self.query @ self.key_vector)

    @property
    def key_effects(self) -> Float[Tensor, " source"]:
        """What each source adds to the score through the key: its pairs, summed over all sources of the query."""
        return self.scale * (self.key @ self.query_vector)

    def relative_query_effects(self, plain: bool = False) -> Float[Tensor, " source"]:
        """Effect of each query source on the score minus the mean score. With `plain`, all keys have equal weight."""
        return self.scale * (
            self.query @ (self.key_vector - (self.plain_mean_key if plain else self.mean_key))
        )

    def relative_key_effects(self, plain: bool = False) -> Float[Tensor, " source"]:
        """Effect of each key source on the score minus the mean score. With `plain`, all keys have equal weight.

        A source that all keys have in common has the effect 0: it does not tell keys apart.
        """
        return self.key_effects - (self.key_plain_mean_effects if plain else self.key_mean_effects)

    def pairs(
        self, query_source: Int[Tensor, " query_source"], key_source: Int[Tensor, " key_source"]
    ) -> Float[Tensor, "query_source key_source"]:
        """Returns what pairs of sources add to the score."""
        return self.scale * (self.query[query_source] @ self.key[key_source].T)

    def strongest_pairs(self, n: int) -> SourcePairs:
        """Returns the `n` pairs with the largest |effect|, or all pairs that are not 0 if there are fewer.

        In an attribution of total effects, pairs of features are left out. So all pairs always sum to the score.
        """
        query_source, query_size = self._by_size(self.query)
        key_source, key_size = self._by_size(self.key)
        if not len(query_source) or not len(key_source):
            none = torch.zeros(0, dtype=torch.int64, device=self.query.device)
            return SourcePairs(none, none, self.query.new_zeros(0))
        # |q . k| <= |q| |k|: a source whose bound is below the n-th largest pair of some sources is in no such pair
        first = self.pairs(query_source[:FIRST_SOURCES], key_source[:FIRST_SOURCES]).abs().flatten()
        bound = float(first.topk(n).values[-1]) * (1 - 1e-4) if len(first) >= n else 0.0
        query_source = query_source[self.scale * query_size * key_size[0] >= bound]
        key_source = key_source[self.scale * key_size * query_size[0] >= bound]
        best = SourcePairs(query_source[:0], key_source[:0], self.query.new_zeros(0))
        for part in query_source.split(max(1, PAIR_ELEMENTS // len(key_source))):
            effect = self.pairs(part, key_source).flatten()
            index = effect.abs().topk(min(n, len(effect))).indices
            rows, columns = index // len(key_source), index % len(key_source)
            found = (part[rows], key_source[columns], effect[index])
            best = SourcePairs(*(torch.cat(each) for each in zip(best, found, strict=True)))
            order = best.effect.abs().argsort(descending=True)[:n]
            best = SourcePairs(*(each[order] for each in best))
        return SourcePairs(*(each[best.effect != 0] for each in best))

    def _by_size(
        self, side: Float[Tensor, "source d_head"]
    ) -> tuple[Int[Tensor, " nonzero"], Float[Tensor, " nonzero"]]:
        """Returns the sources that add to a query or key, and the norms of what they add, by descending norm."""
        size = side.norm(dim=1)
        if self.total:
            size[: self.features] = 0
        ordered = size.sort(descending=True)
        nonzero = ordered.values > 0
        return ordered.indices[nonzero], ordered.values[nonzero]


def head_edges(paths: Paths) -> dict[HeadEdge, float]:
    """Returns the head edges of a circuit, with what passes through each to the root, by descending |contribution|.

    Attribution graphs have no nodes for heads. A circuit's head edges are those of its greedy paths, in which heads are
    sources: a head that reads `key`, from the position of the node before it. Their contributions are sums over paths.
    """
    found: dict[HeadEdge, float] = {}
    for path in (paths.kind == HEAD).nonzero()[:, 0].tolist():
        query = int(paths.position[int(paths.parent[path])])
        edge = HeadEdge(int(paths.layer[path]), int(paths.index[path]), query, int(paths.position[path]))
        found[edge] = found.get(edge, 0.0) + float(paths.contribution[path])
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


class SideEffects(NamedTuple):
    """Sources of the query or the key of a head edge, by descending |relative_plain|.

    Where the pattern is close to 1, the weighted mean score is close to the score, so `relative` would say little.
    """

    source: Int[Tensor, " source"]
    """Columns of `source_columns(model)`."""
    effect: Float[Tensor, " source"]
    """What each source adds to the score."""
    relative: Float[Tensor, " source"]
    """What each source adds to the score minus the mean score, weighted by the pattern."""
    relative_plain: Float[Tensor, " source"]
    """What each source adds to the score minus the mean score over all keys."""


@dataclass(frozen=True)
class EdgeAttention:
    """Why a head reads a position: the strongest pairs and sources of one head edge's score."""

    edge: HeadEdge
    contribution: float
    """What passes through the edge to the first root, over the circuit's greedy paths."""
    score: float
    """The model's own score, before cap and mask."""
    pattern: float
    mean_score: float
    plain_mean_score: float
    pairs: SourcePairs
    query: SideEffects
    key: SideEffects


def trace_attention(
    model: LinearizedModel, scores: PromptScores, edges: Mapping[HeadEdge, float], n: int, total: bool = False
) -> list[EdgeAttention]:
    """Returns the `n` strongest pairs, query sources and key sources of each head edge, in the order of `edges`.

    `edges` maps each edge to its contribution. `total` and the errors are those of `attribute_scores`.
    """
    found = {}
    for each in attribute_scores(model, scores, edges, total):
        found[each.edge] = EdgeAttention(
            each.edge,
            edges[each.edge],
            each.score,
            each.pattern,
            each.mean_score,
            each.plain_mean_score,
            each.strongest_pairs(n),
            _strongest(
                each.query_effects, each.relative_query_effects(), each.relative_query_effects(plain=True), n
            ),
            _strongest(
                each.key_effects, each.relative_key_effects(), each.relative_key_effects(plain=True), n
            ),
        )
    return [found[edge] for edge in edges]


def _strongest(
    effect: Float[Tensor, " source"],
    relative: Float[Tensor, " source"],
    relative_plain: Float[Tensor, " source"],
    n: int,
) -> SideEffects:
    best = relative_plain.abs().topk(min(n, len(relative_plain))).indices
    best = best[relative_plain[best] != 0]
    return SideEffects(best, effect[best], relative[best], relative_plain[best])


def check_edge(model: LinearizedModel, scores: PromptScores, edge: HeadEdge) -> None:
    """Raise ValueError if the model has no such head, or if the head's mask hides the key from the query."""
    length, heads = len(model.captured), scores.model.anatomy.heads
    for name, value, count in (("layer", edge.layer, model.layers), ("head", edge.head, heads)):
        if not 0 <= value < count:
            raise ValueError(f"{name} {value} does not exist; choose 0 to {count - 1}")
    for name, value in (("query", edge.query), ("key", edge.key)):
        if not 0 <= value < length:
            raise ValueError(f"{name} position {value} is outside the prompt; choose 0 to {length - 1}")
    allowed = scores.recorded[edge.layer].allowed
    if not allowed[edge.query, edge.key]:
        visible = allowed[edge.query].nonzero()[:, 0]
        raise ValueError(
            f"head {edge.layer}.{edge.head} at position {edge.query} cannot read position {edge.key}, which its mask "
            f"hides; choose {int(visible[0])} to {int(visible[-1])}"
        )


@torch.inference_mode()
def attribute_scores(
    model: LinearizedModel, scores: PromptScores, edges: Iterable[HeadEdge], total: bool = False
) -> Iterator[ScoreAttribution]:
    """Yields the attribution of each edge's score, layer by layer.

    Effects are direct (through attention and skip connections, but not through features), or total with `total`
    (through active features with slope 1, too). `scores` are those of the model's prompt. Raises ValueError as
    `check_edge` and `PromptScores.layer` do.
    """
    by_layer: dict[int, list[HeadEdge]] = {}
    for edge in edges:
        check_edge(model, scores, edge)
        by_layer.setdefault(edge.layer, []).append(edge)
    for layer in sorted(by_layer):
        yield from _attribute_layer(model, scores.layer(layer), by_layer[layer], total)


class _Rows(NamedTuple):
    """Gradients of some scalars with respect to a block's input, at positions first to first + len(g) - 1."""

    first: int
    g: Float[Tensor, "position row d"]
    constant: Float[Tensor, " row"]

    @property
    def stop(self) -> int:
        return self.first + len(self.g)


def _attribute_layer(
    model: LinearizedModel, own: LayerScores, edges: Sequence[HeadEdge], total: bool
) -> Iterator[ScoreAttribution]:
    layer = edges[0].layer
    captured = model.captured.layers[layer]
    weights = _key_weights(model, own, edges)
    queries = dict.fromkeys((edge.head, edge.query) for edge in edges)
    keys = dict.fromkeys((own.key_head[edge.head], edge.key) for edge in edges)
    rows = {("query", *each): _component_rows(model, layer, own.query, *each) for each in queries}
    rows |= {("key", *each): _component_rows(model, layer, own.key, *each) for each in keys}
    rows |= {("mean", *each): _mean_rows(model, layer, own, *each, weights[each]) for each in queries}
    effects = dict(zip(rows, _effects(model, layer, list(rows.values()), total), strict=True))
    for edge in edges:
        head, query, key = edge.head, edge.query, edge.key
        mean, plain = weights[head, query] @ own.key.value[head]
        score = own.score[head, query]
        means = weights[head, query] @ score
        yield ScoreAttribution(
            edge=edge,
            score=float(score[key]),
            capped=float(own.capped(score[key])),
            pattern=float(captured.pattern[head, query, key]),
            mean_score=float(means[0]),
            plain_mean_score=float(means[1]),
            scale=own.scale,
            total=total,
            features=source_columns(model).active,
            query=effects["query", head, query].T,
            key=effects["key", own.key_head[head], key].T,
            query_vector=own.query.value[head, query],
            key_vector=own.key.value[head, key],
            mean_key=mean,
            plain_mean_key=plain,
            key_mean_effects=effects["mean", head, query][0],
            key_plain_mean_effects=effects["mean", head, query][1],
        )


def _key_weights(
    model: LinearizedModel, own: LayerScores, edges: Sequence[HeadEdge]
) -> dict[tuple[int, int], Float[Tensor, "two position"]]:
    """Returns the weights of the keys in both means, pattern and equal, for each (head, query)."""
    pattern = model.captured.layers[edges[0].layer].pattern
    found = {}
    for edge in edges:
        allowed = own.allowed[edge.query].to(pattern.dtype)
        own_pattern = pattern[edge.head, edge.query]
        found[edge.head, edge.query] = torch.stack([own_pattern / own_pattern.sum(), allowed / allowed.sum()])
    return found


def _component_rows(
    model: LinearizedModel, layer: int, projection: FrozenProjection, head: int, position: int
) -> _Rows:
    """Returns the gradients of the components of one query or key with respect to the block's input."""
    norm = model.captured.layers[layer].norm_attention
    matrix = projection.matrix(head, position)
    at = torch.tensor(position, device=matrix.device)
    constant = projection.constant(head, position) + (matrix * _column(norm.bias)).sum(0)
    return _Rows(position, norm.vjp(matrix.T, at.expand(matrix.shape[1]))[None], constant)


def _mean_rows(
    model: LinearizedModel,
    layer: int,
    own: LayerScores,
    head: int,
    query: int,
    weights: Float[Tensor, "two position"],
) -> _Rows:
    """Returns the gradients of both mean scores of one query with respect to the block's input, through the keys."""
    norm, n = model.captured.layers[layer].norm_attention, query + 1
    key, vector = own.key, own.scale * own.query.value[head, query]
    # [position, d_head]: what a key's projection has to be multiplied by
    mapped = key.map[head, :n] @ vector
    read = mapped @ key.W[head].T
    constant = mapped @ key.b[head] + key.bias[head, :n] @ vector + (read * norm.bias).sum(-1)
    g = norm.vjp(read, slice(n))
    return _Rows(0, weights[:, :n].T[:, :, None] * g[:, None], weights[:, :n] @ constant)


def _column(bias: Float[Tensor, " d"] | float) -> Float[Tensor, "d one"] | float:
    return bias[:, None] if isinstance(bias, Tensor) else bias


def _effects(
    model: LinearizedModel, layer: int, rows: Sequence[_Rows], total: bool
) -> list[Float[Tensor, "row source"]]:
    """Returns the effects of all sources on each of `rows`."""
    result: dict[int, Tensor] = {}
    # what reads one position is cheaper than what reads several
    for alone in (True, False):
        order = [i for i, each in enumerate(rows) if (len(each.g) == 1) == alone]
        for chunk in _chunks(model, rows, order):
            sizes = [len(rows[i].constant) for i in chunk]
            like = model.captured.resid_final
            g = like.new_zeros(max(rows[i].stop for i in chunk), sum(sizes), like.shape[1])
            for i, part in zip(chunk, g.split(sizes, 1), strict=True):
                part[rows[i].first : rows[i].stop] = rows[i].g
            constant = torch.cat([rows[i].constant for i in chunk])
            only = None
            if alone:
                positions = torch.tensor([rows[i].first for i in chunk], device=like.device)
                only = positions.repeat_interleave(torch.tensor(sizes, device=like.device))
            effects = stream_effects(model, layer, g, constant, total, only)
            result |= dict(zip(chunk, effects.split(sizes), strict=True))
    return [result[i] for i in range(len(rows))]


def _chunks(model: LinearizedModel, rows: Sequence[_Rows], order: Sequence[int]) -> Iterator[list[int]]:
    """Yields the indices in `order` in chunks that are backpropagated together."""
    like = model.captured.resid_final
    chunk: list[int] = []
    count = 0
    # rows that end at similar positions together need less padding
    for i in sorted(order, key=lambda i: rows[i].stop):
        size = len(rows[i].constant)
        most = MAX_ELEMENTS // (rows[i].stop * like.shape[1])
        if like.device.type == "cpu":
            most = min(most, MAX_TARGETS_ON_CPU)
        if chunk and count + size > most:
            yield chunk
            chunk, count = [], 0
        chunk.append(i)
        count += size
    if chunk:
        yield chunk
