"""Attribution graphs: nodes, edges, influence, scores and pruning (Ameisen et al. 2025, "Circuit Tracing").

`trace_graph` works in four phases:

1. Rows: `graph_rows` yields the direct effects on each root and active feature, from the last layer to the first. Rows
   are computed in chunks. The full adjacency matrix is never in memory.
2. Influence: `influence` divides each row of |effect| by the row's sum. Then it passes influence from roots to sources
   by back-substitution. `scores` computes the replacement and completeness scores.
3. Nodes: `trace_graph` keeps the most influential nodes, which together hold `node_share` of the influence.
   `_effects_among` computes the edges among the kept nodes.
4. Edges: `prune` keeps the edges with the largest scores, which together hold `edge_share` of all scores. Then it
   removes unconnected features and errors.

Both the number of rows of phase 1 and the time of a row grow with the number of tokens. With a `row_share` below 1,
rows of the least influential features of each layer are left out (`RowBudget`). The influence that reaches them is not
followed. `Coverage` says how much that is. With more than `DENSE_NODES` nodes, phases 3 and 4 hold edges in a list
instead of a matrix (`edges_by_row`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direct_effects import AttributionTargets, SourceColumns, direct_effects, feature_targets, source_columns
from .linearized_model import LinearizedModel

DENSE_NODES = 4096
"""Largest number of nodes of a matrix [node, node] of effects (64 MB in float32)."""
MAX_EDGES = 2**22
"""Number of edges in a list from which edges with the smallest scores are dropped."""

Columns = slice | Int[Tensor, " column"]
Rows = Iterator[tuple[Int[Tensor, " target"], Float[Tensor, "target source"]]]
"""Yields (node numbers, direct effects on these nodes), from the last layer to the first."""


@dataclass(frozen=True)
class Roots:
    """Targets that a graph explains: logits, a logit difference or a feature."""

    targets: AttributionTargets
    weight: Float[Tensor, " root"]
    """Weight of each root in the influence. For the target `logits`, the token's probability; otherwise 1."""


@dataclass(frozen=True)
class Influence:
    """Influence of each node on the roots: w (N + N^2 + ...).

    w holds the weights of the roots. N holds |effect|, with each row divided by the row's sum.
    """

    node: Float[Tensor, " node"]
    """Influence of all sources, followed by the influence of all roots. Root weights are not included."""
    error_share: Float[Tensor, " node"]
    """Share of each node's input that comes from errors (see `shares`)."""


@dataclass(frozen=True)
class GraphScores:
    """Scores of a graph before pruning."""

    replacement: float
    """Replacement score: T / (T + E), with influence T of token embeddings and influence E of errors."""
    completeness: float
    """Completeness score: share of each node's input that does not come from errors, averaged over nodes.

    Nodes are weighted by influence. Roots are weighted by influence plus `Roots.weight`."""
    completeness_strict: float
    """Completeness score in which error nodes have share 0 instead of 1."""


@dataclass(frozen=True)
class Coverage:
    """How much of the influence a graph follows."""

    rows: int
    """Number of features whose rows were computed to find the influence."""
    unfollowed: float
    """Share of the influence that reaches features without a computed row, and is not followed further. 0 if rows of
    all features with any influence were computed.

    It bounds the error of the replacement score, and of the influence of each node relative to the weight of all
    roots."""


class RowBudget:
    """Chooses the features of each layer whose rows are computed, so that the rest holds little influence.

    Layers come from the last to the first. The influence of a layer's features is complete when their turn comes,
    except for what later layers left out. Each layer may leave out an equal part of what may still be left out.
    """

    def __init__(self, row_share: float, total: float, layers: int) -> None:
        """`row_share` is the smallest share of the influence `total` to follow. `layers` is the number of layers."""
        self._left, self._total, self._layers = (1 - row_share) * total, total, layers
        self.rows = 0
        self.lost = 0.0
        self.left_out: list[Int[Tensor, " active"]] = []
        """Numbers of the features that were left out, by layer."""

    @property
    def coverage(self) -> Coverage:
        """What was followed so far."""
        return Coverage(self.rows, self.lost / self._total if self._total else 0.0)

    def choose(self, start: int, reached: Float[Tensor, " active"]) -> Int[Tensor, " chosen"]:
        """Returns the numbers of a layer's features whose rows are computed, in ascending order.

        `start` is the number of the layer's first feature. `reached` is the influence of the features.
        """
        mask = reached > 0
        if self._left > 0:
            ordered, order = reached.double().sort()
            mask[order[ordered.cumsum(0) <= self._left / self._layers]] = False
            # zeros are left out in any case, and cost nothing
            lost = ~mask & (reached > 0)
            self.left_out.append(start + lost.nonzero()[:, 0])
            own = float(reached.double()[lost].sum())
            self._left, self.lost = self._left - own, self.lost + own
        self._layers -= 1
        chosen = start + mask.nonzero()[:, 0]
        self.rows += len(chosen)
        return chosen


def shares(
    effects: Float[Tensor, "target source"], counted: Bool[Tensor, " source"]
) -> Float[Tensor, "target source"]:
    """Returns |effect| divided by the sum of |effect| over the row's counted sources.

    `counted` marks the counted sources. Other sources have share 0. Each row sums to 1, or to 0 if all counted effects
    are 0.
    """
    size = effects.abs() * counted
    return size / size.sum(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)


def counted_sources(columns: SourceColumns) -> Bool[Tensor, " source"]:
    """Returns a mask of the sources that count in `shares`: all sources except position embeddings and the constant."""
    counted = torch.ones(len(columns), dtype=torch.bool)
    counted[columns.position_embeddings] = False
    counted[columns.constant] = False
    return counted


def influence(
    rows: Callable[[Float[Tensor, " node"]], Rows],
    weight: Float[Tensor, " node"],
    counted: Bool[Tensor, " source"],
    errors: Columns,
) -> Influence:
    """Compute influence by back-substitution, from the last layer to the first.

    `rows(reached)` yields the rows of direct effects. reached[node] is the node's weight plus the node's influence so
    far. Rows of nodes with reached[node] = 0 may be left out.
    """
    total, error_share = weight.clone(), torch.zeros_like(weight)
    for nodes, effects in rows(total):
        share = shares(effects, counted)
        error_share[nodes] = share[:, errors].sum(1)
        total[: share.shape[1]] += total[nodes] @ share
    return Influence(total - weight, error_share)


def scores(
    result: Influence,
    weight: Float[Tensor, " node"],
    errors: Columns,
    embeddings: slice,
    left_out: Sequence[Int[Tensor, " _"]] = (),
) -> GraphScores:
    """Compute the replacement and completeness scores from the influence of all nodes.

    `left_out` are numbers of nodes whose inputs are unknown. They do not count in the completeness scores.
    """
    reached = result.node + weight
    for nodes in left_out:
        reached[nodes] = 0
    explained = (1 - result.error_share) * reached
    token, error = float(result.node[embeddings].sum()), float(result.node[errors].sum())
    total = float(reached.sum())
    return GraphScores(
        replacement=token / (token + error) if token + error else 0.0,
        completeness=float(explained.sum()) / total,
        completeness_strict=(float(explained.sum()) - float(explained[errors].sum())) / total,
    )


def threshold(values: Float[Tensor, " value"], share: float) -> float:
    """Returns the largest element t of `values` such that the elements >= t sum to at least `share` of the total."""
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum()
    index = int(torch.searchsorted(reached, share))
    return float(ordered[min(index, len(ordered) - 1)])


def cumulative_share(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Returns each node's influence plus all larger influences, divided by the total influence.

    The viewer of circuit-tracer prunes nodes by this share.
    """
    ordered, order = influence.sort(descending=True)
    share = torch.empty_like(influence)
    share[order] = ordered.cumsum(0) / ordered.sum()
    return share


def graph_rows(
    model: LinearizedModel,
    roots: Roots,
    budget: RowBudget | None = None,
    within: Bool[Tensor, " active"] | None = None,
) -> Callable[[Float[Tensor, " node"]], Rows]:
    """Returns the function `rows(reached)` that `influence` needs, for a prompt's full graph.

    Rows are computed on demand. Rows of features with reached[node] = 0 are left out, and those that `budget` leaves
    out or `within` does not mark. Rows come in the order of positions, because a chunk's gradients cover all positions
    up to its last one.
    """
    columns = source_columns(model)
    elements = max(model.captured.resid_final.numel(), len(columns))

    def rows(reached: Float[Tensor, " node"]) -> Rows:
        nodes = torch.arange(len(columns), len(columns) + len(roots.weight))
        yield nodes, direct_effects(model, roots.targets)
        for layer in reversed(model.dictionaries):
            in_layer = model.active_in_layer(layer, len(model.captured))
            own = reached[in_layer] if within is None else reached[in_layer] * within[in_layer]
            if budget is None:
                active = in_layer.start + (own > 0).nonzero()[:, 0]
            else:
                active = budget.choose(in_layer.start, own)
            if not len(active):
                continue
            start = 0
            for chunk in feature_targets(model, active).chunks(elements):
                yield active[start : start + len(chunk)], direct_effects(model, chunk)
                start += len(chunk)

    return rows


def adjacency(model: LinearizedModel, roots: Roots) -> Float[Tensor, "target source"]:
    """Returns the full adjacency matrix: one row per active feature, followed by one row per root.

    Memory grows with the square of the number of active features. `trace_graph` does not need this matrix.
    """
    columns = source_columns(model)
    effects = model.captured.resid_final.new_zeros(columns.active + len(roots.weight), len(columns))
    for layer in model.dictionaries:
        rows = model.active_in_layer(layer, len(model.captured))
        if rows.stop > rows.start:
            direct_effects(model, feature_targets(model, torch.arange(rows.start, rows.stop)), effects[rows])
    direct_effects(model, roots.targets, effects[columns.active :])
    return effects


@dataclass(frozen=True)
class AttributionGraph:
    """Pruned attribution graph of a prompt."""

    node: Int[Tensor, " node"]
    """Node numbers in ascending order.

    The number of a source is its column in `source_columns(model)`. Root i follows with len(source_columns(model)) +
    i."""
    influence: Float[Tensor, " node"]
    """Influence of each node in the full graph, before pruning."""
    cumulative: Float[Tensor, " node"]
    """`cumulative_share` of each node in the full graph."""
    value: Float[Tensor, " node"]
    """Pre-activation of a feature, or value of a root; 0 for other nodes. Includes effects of pruned sources."""
    size: Float[Tensor, " node"]
    """Sum of |effect| over all sources of each node, including pruned sources."""
    source: Int[Tensor, " edge"]
    """Source of each edge, as an index into `node`."""
    target: Int[Tensor, " edge"]
    """Target of each edge, as an index into `node`."""
    effect: Float[Tensor, " edge"]
    remainder: Float[Tensor, " node"]
    """`value` of each node minus the sum of the effects of the node's kept incoming edges."""
    scores: GraphScores
    """Scores of the full graph, before pruning."""
    coverage: Coverage
    """How much of the influence was followed."""


@torch.inference_mode()
def trace_graph(
    model: LinearizedModel,
    roots: Roots,
    node_share: float = 0.8,
    edge_share: float = 0.98,
    row_share: float = 1.0,
) -> AttributionGraph:
    """Build the pruned attribution graph of a prompt. The module docstring describes the four phases.

    Embeddings, position embeddings, the constant and roots are always kept. At least `row_share` of the influence is
    followed; with 1, all of it.
    """
    columns = source_columns(model)
    weight = torch.cat([roots.weight.new_zeros(len(columns)), roots.weight])
    counted = counted_sources(columns).to(weight.device)
    budget = RowBudget(row_share, float(weight.sum()), len(model.dictionaries))
    full = influence(graph_rows(model, roots, budget), weight, counted, columns.errors)
    kept = full.node >= threshold(full.node, node_share)
    kept[columns.embeddings] = True
    kept[len(columns) :] = True
    kept[columns.position_embeddings] = model.captured.position_embedding is not None
    kept[columns.constant] = True
    node = kept.nonzero()[:, 0]
    always, feature = node >= columns.embeddings.start, node < columns.active
    if len(node) <= DENSE_NODES:
        effects, value, size = _effects_among(model, roots, node, columns)
        keep_node, keep_edge = prune(
            effects, _level(model, node, columns), weight[node], counted_nodes(node, counted), edge_share,
            always, feature,
        )  # fmt: skip
        target, source = keep_edge.nonzero(as_tuple=True)
        effect = effects[target, source]
    else:
        edges = edges_by_row(model, roots, node, columns, weight, counted, edge_share)
        value, size = edges.value, edges.size
        keep_node, target, source, effect = edges.connected(always, feature)
    renumbered = keep_node.cumsum(0) - 1
    explained = torch.zeros_like(value).index_add_(0, target, effect)
    return AttributionGraph(
        node=node[keep_node],
        influence=full.node[node][keep_node],
        cumulative=cumulative_share(full.node)[node][keep_node],
        value=value[keep_node],
        size=size[keep_node],
        source=renumbered[source],
        target=renumbered[target],
        effect=effect,
        remainder=(value - explained)[keep_node],
        scores=scores(full, weight, columns.errors, columns.embeddings, budget.left_out),
        coverage=budget.coverage,
    )


@torch.inference_mode()
def full_influence(model: LinearizedModel, roots: Roots) -> Float[Tensor, " active"]:
    """Returns the influence of each active feature on the roots, in the graph of all active features."""
    columns = source_columns(model)
    weight = torch.cat([roots.weight.new_zeros(len(columns)), roots.weight])
    counted = counted_sources(columns).to(weight.device)
    return influence(graph_rows(model, roots), weight, counted, columns.errors).node[: columns.active]


@torch.inference_mode()
def subgraph_scores(model: LinearizedModel, roots: Roots, kept: Bool[Tensor, " active"]) -> GraphScores:
    """Returns the scores of the graph in which the features that are not `kept` count as errors.

    Their influence is not followed further. With all features kept, these are the scores of the full graph. The
    subgraph scores of circuit-tracer (its pull request 42) are defined in the same way.
    """
    columns = source_columns(model)
    weight = torch.cat([roots.weight.new_zeros(len(columns)), roots.weight])
    counted = counted_sources(columns).to(weight.device)
    errors = torch.arange(columns.errors.start, columns.errors.stop, device=weight.device)
    errors = torch.cat([(~kept).nonzero()[:, 0], errors])
    result = influence(graph_rows(model, roots, within=kept), weight, counted, errors)
    return scores(result, weight, errors, columns.embeddings)


def counted_nodes(node: Int[Tensor, " node"], counted: Bool[Tensor, " source"]) -> Bool[Tensor, " node"]:
    """Returns a mask of the nodes that count as sources in `shares`. Roots do not count.

    `node` holds node numbers. `counted` is the result of `counted_sources`.
    """
    result = torch.zeros_like(node, dtype=torch.bool)
    is_source = node < len(counted)
    result[is_source] = counted[node[is_source]]
    return result


def prune(
    effects: Float[Tensor, "node node"],
    level: Int[Tensor, " node"],
    weight: Float[Tensor, " node"],
    counted: Bool[Tensor, " node"],
    edge_share: float,
    always: Bool[Tensor, " node"],
    feature: Bool[Tensor, " node"],
) -> tuple[Bool[Tensor, " node"], Bool[Tensor, "node node"]]:
    """Returns masks of the nodes and of the edges [target, source] to keep.

    Rows of `effects` are targets, and columns are sources. A source has a lower `level` than its targets. The score of
    an edge is the share of its source (see `shares`) times (influence + weight) of its target. The edges with the
    largest scores are kept. Together, the kept edges hold `edge_share` of all scores. Edges from sources that are not
    `counted` are kept, too.

    Then nodes without outgoing edges and features without incoming edges are removed, until nothing changes. Only edges
    from `counted` sources prevent a removal. Nodes in `always` need no outgoing edge.
    """
    share = shares(effects, counted)
    reached = weight.clone()
    for current in level.unique().flip(0):
        at = level == current
        reached += reached[at] @ share[at]
    score = share * reached[:, None]
    keep = (score >= threshold(score.flatten(), edge_share)) & (score > 0)
    # edges from sources that are not counted stay as long as their target stays
    keep |= (effects != 0) & ~counted
    node = torch.ones_like(always)
    while True:
        counting = keep & counted
        remaining = node & (always | counting.any(0)) & (~feature | counting.any(1))
        keep &= remaining[:, None] & remaining
        if torch.equal(remaining, node):
            return node, keep
        node = remaining


def _effects_among(
    model: LinearizedModel, roots: Roots, node: Int[Tensor, " node"], columns: SourceColumns
) -> tuple[Float[Tensor, "node node"], Float[Tensor, " node"], Float[Tensor, " node"]]:
    """Returns effects[target, source] among `node`, the sum of effects per node, and the sum of |effect| per node.

    The sums run over all sources, including sources outside `node`.
    """
    effects = roots.weight.new_zeros(len(node), len(node))
    value, size = roots.weight.new_zeros(2, len(node))
    is_source = node < len(columns)
    reached = roots.weight.new_zeros(len(columns) + len(roots.weight))
    reached[node] = 1
    index = torch.full_like(reached, -1, dtype=torch.int64)
    index[node] = torch.arange(len(node), device=node.device)
    for nodes, row in graph_rows(model, roots)(reached):
        at = index[nodes]
        effects[at[:, None], is_source.nonzero()[:, 0]] = row[:, node[is_source]]
        value[at], size[at] = row.sum(1), row.abs().sum(1)
    return effects, value, size


@dataclass(frozen=True)
class EdgeList:
    """Edges among some nodes, and sums over all sources of each node. Ends are indices into the nodes."""

    target: Int[Tensor, " edge"]
    source: Int[Tensor, " edge"]
    effect: Float[Tensor, " edge"]
    counted: Bool[Tensor, " edge"]
    """Whether the source of an edge counts in `shares`."""
    value: Float[Tensor, " node"]
    size: Float[Tensor, " node"]

    def connected(
        self, always: Bool[Tensor, " node"], feature: Bool[Tensor, " node"]
    ) -> tuple[Bool[Tensor, " node"], Int[Tensor, " edge"], Int[Tensor, " edge"], Float[Tensor, " edge"]]:
        """Returns a mask of the nodes to keep as in `prune`, and target, source and effect of their edges, sorted by
        target, then by source."""
        node, edge = torch.ones_like(always), torch.ones_like(self.counted)
        while True:
            counting = edge & self.counted
            has_target, has_source = torch.zeros_like(node), torch.zeros_like(node)
            has_target[self.source[counting]] = True
            has_source[self.target[counting]] = True
            remaining = node & (always | has_target) & (~feature | has_source)
            edge &= remaining[self.target] & remaining[self.source]
            if torch.equal(remaining, node):
                break
            node = remaining
        index = edge.nonzero()[:, 0]
        index = index[(self.target[index] * len(node) + self.source[index]).argsort()]
        return node, self.target[index], self.source[index], self.effect[index]


def edges_by_row(
    model: LinearizedModel,
    roots: Roots,
    node: Int[Tensor, " node"],
    columns: SourceColumns,
    weight: Float[Tensor, " all"],
    counted: Bool[Tensor, " source"],
    edge_share: float,
) -> EdgeList:
    """Returns the edges among `node` with the largest scores, which together hold at least `edge_share` of all scores,
    and all edges from sources that do not count. `prune` defines the scores. `weight` is that of all nodes.

    Rows are computed and dropped, so memory grows with the number of edges. If there are more than `MAX_EDGES`, those
    with the smallest scores so far are dropped, as long as they hold no more than 1 - `edge_share` of all scores so
    far. Then a few more edges than in `prune` can be kept.
    """
    value, size = weight.new_zeros(2, len(node))
    sources = node[node < len(columns)]
    is_counted = counted[sources]
    wanted = torch.zeros_like(weight)
    wanted[node] = 1
    index = torch.full_like(weight, -1, dtype=torch.int64)
    index[node] = torch.arange(len(node), device=node.device)
    reached = weight[node]
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    others: list[tuple[Tensor, Tensor, Tensor]] = []
    total = dropped = 0.0
    n, limit = 0, MAX_EDGES
    for nodes, row in graph_rows(model, roots)(wanted):
        at = index[nodes]
        value[at], size[at] = row.sum(1), row.abs().sum(1)
        effects = row[:, sources]
        share = shares(effects, is_counted)
        reached[: len(sources)] += reached[at] @ share
        score = share * reached[at][:, None]
        total += float(score.sum(dtype=torch.float64))
        target, source = (score > 0).nonzero(as_tuple=True)
        kept.append((at[target], source, effects[target, source], score[target, source]))
        n += len(target)
        target, source = ((effects != 0) & ~is_counted).nonzero(as_tuple=True)
        others.append((at[target], source, effects[target, source]))
        if n > limit:
            largest, lost = _largest(kept, (1 - edge_share) * total - dropped)
            kept, dropped, n = [largest], dropped + lost, len(largest[0])
            # without room to drop, sorting again for each chunk would take long
            limit = max(MAX_EDGES, 2 * n)
    (target, source, effect, _), _ = _largest(kept, (1 - edge_share) * total - dropped)
    target_other, source_other, effect_other = map(torch.cat, zip(*others, strict=True))
    return EdgeList(
        torch.cat([target, target_other]),
        torch.cat([source, source_other]),
        torch.cat([effect, effect_other]),
        torch.arange(len(target) + len(target_other), device=target.device) < len(target),
        value,
        size,
    )


def _largest(
    edges: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], room: float
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], float]:
    """Returns (target, source, effect, score) without the smallest scores, which hold at most `room`, and their sum."""
    target, source, effect, score = map(torch.cat, zip(*edges, strict=True))
    order = score.argsort()
    held = score[order].double().cumsum(0)
    cut = int(torch.searchsorted(held, max(room, 0.0), right=True))
    keep = order[cut:]
    lost = float(held[cut - 1]) if cut else 0.0
    return (target[keep], source[keep], effect[keep], score[keep]), lost


def _level(
    model: LinearizedModel, node: Int[Tensor, " node"], columns: SourceColumns
) -> Int[Tensor, " node"]:
    """Returns the level of each node: 0 without sources, layer + 1 for features, number of layers + 1 for roots."""
    level = torch.zeros_like(node)
    features = node < columns.active
    level[features] = model.features.layer[node[features]] + 1
    level[node >= len(columns)] = model.layers + 1
    return level
