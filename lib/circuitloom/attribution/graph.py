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
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direct_effects import AttributionTargets, SourceColumns, direct_effects, feature_targets, source_columns
from .linearized_model import LinearizedModel

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
    result: Influence, weight: Float[Tensor, " node"], errors: Columns, embeddings: slice
) -> GraphScores:
    """Compute the replacement and completeness scores from the influence of all nodes."""
    reached = result.node + weight
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
    model: LinearizedModel, roots: Roots, within: Bool[Tensor, " active"] | None = None
) -> Callable[[Float[Tensor, " node"]], Rows]:
    """Returns the function `rows(reached)` that `influence` needs, for a prompt's full graph.

    Rows are computed on demand. Rows of features with reached[node] = 0 are left out, and rows of features that
    `within` does not mark.
    """
    columns = source_columns(model)
    elements = max(model.captured.resid_final.numel(), len(columns))

    def rows(reached: Float[Tensor, " node"]) -> Rows:
        nodes = torch.arange(len(columns), len(columns) + len(roots.weight))
        yield nodes, direct_effects(model, roots.targets)
        for layer in reversed(model.dictionaries):
            in_layer = model.active_in_layer(layer, len(model.captured))
            wanted = reached[in_layer] > 0 if within is None else (reached[in_layer] > 0) & within[in_layer]
            active = in_layer.start + wanted.nonzero()[:, 0]
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


@torch.inference_mode()
def trace_graph(
    model: LinearizedModel, roots: Roots, node_share: float = 0.8, edge_share: float = 0.98
) -> AttributionGraph:
    """Build the pruned attribution graph of a prompt. The module docstring describes the four phases.

    Embeddings, position embeddings, the constant and roots are always kept. Memory grows with the square of the number
    of kept nodes.
    """
    columns = source_columns(model)
    weight = torch.cat([roots.weight.new_zeros(len(columns)), roots.weight])
    counted = counted_sources(columns).to(weight.device)
    full = influence(graph_rows(model, roots), weight, counted, columns.errors)
    kept = full.node >= threshold(full.node, node_share)
    kept[columns.embeddings] = True
    kept[len(columns) :] = True
    kept[columns.position_embeddings] = model.captured.position_embedding is not None
    kept[columns.constant] = True
    node = kept.nonzero()[:, 0]
    effects, value, size = _effects_among(model, roots, node, columns)
    keep_node, keep_edge = prune(
        effects, _level(model, node, columns), weight[node], counted_nodes(node, counted), edge_share,
        always=(node >= columns.embeddings.start), feature=node < columns.active,
    )  # fmt: skip
    target, source = keep_edge.nonzero(as_tuple=True)
    renumbered = keep_node.cumsum(0) - 1
    effect = effects[target, source]
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
        scores=scores(full, weight, columns.errors, columns.embeddings),
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
    result = influence(graph_rows(model, roots, kept), weight, counted, errors)
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


def _level(
    model: LinearizedModel, node: Int[Tensor, " node"], columns: SourceColumns
) -> Int[Tensor, " node"]:
    """Returns the level of each node: 0 without sources, layer + 1 for features, number of layers + 1 for roots."""
    level = torch.zeros_like(node)
    features = node < columns.active
    level[features] = model.features.layer[node[features]] + 1
    level[node >= len(columns)] = model.layers + 1
    return level
