"""Attribution graphs: nodes, edges, influence, scores and pruning (Ameisen et al. 2025, "Circuit Tracing").

`trace_graph` works in four phases:

1. Rows: `graph_rows` computes the direct effects of all sources on each root and active feature, from the last layer to
   the first. It yields these rows in chunks and keeps no chunk. The full adjacency matrix is thus never in memory.
2. Influence: `influence` divides the absolute values of each row by their sum. It then passes influence from roots to
   sources by back-substitution. `scores` computes the replacement and completeness scores from the influence.
3. Nodes: `trace_graph` keeps the most influential nodes that together hold `node_share` of the influence.
   `_effects_among` computes the edges among the kept nodes.
4. Edges: `prune` keeps the edges with the largest scores that together hold `edge_share` of all scores. It then drops
   features and errors that are no longer connected.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direct_effects import AttributionTargets, SourceColumns, direct_effects, feature_targets, source_columns
from .linearized_model import LinearizedModel

Rows = Iterator[tuple[Int[Tensor, " target"], Float[Tensor, "target source"]]]
"""Iterator over pairs: node numbers, and the rows of direct effects on these nodes.

The pairs come in order from the last layer to the first."""


@dataclass(frozen=True)
class Roots:
    """Targets that a graph explains: logits, a logit difference or a feature."""

    targets: AttributionTargets
    weight: Float[Tensor, " root"]
    """Weight of each root in the computation of influence.

    The weight is the token's probability for the target `logits`, and 1 for other targets."""


@dataclass(frozen=True)
class Influence:
    """Influence of each node on the roots: w (N + N^2 + ...).

    N is the matrix of absolute edge weights, in which each row is divided by its sum. w holds the weights of the roots.
    """

    node: Float[Tensor, " node"]
    """Influence of all sources, followed by the influence of all roots.

    The influence of a root does not include its weight."""
    error_share: Float[Tensor, " node"]
    """Sum of the shares that all errors have in each node. Shares are computed by `shares`."""


@dataclass(frozen=True)
class GraphScores:
    """Scores of a graph before pruning."""

    replacement: float
    """Replacement score: T / (T + E).

    T is the influence of all token embeddings, and E is the influence of all errors."""
    completeness: float
    """Completeness score: mean over nodes of the share of the node's input that does not come from errors.

    The mean is weighted. Each node counts by its influence. A root counts by its influence plus its weight in
    `Roots`."""
    completeness_strict: float
    """Completeness score in which an error node counts as a node whose whole input comes from errors."""


def shares(
    effects: Float[Tensor, "target source"], counted: Bool[Tensor, " source"]
) -> Float[Tensor, "target source"]:
    """Returns the share of each source in each target: |effect| divided by the sum of |effect| over counted sources.

    `counted` marks the counted sources. Other sources have share 0. The shares in a row sum to 1, or to 0 if all
    counted sources have effect 0.
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
    errors: slice,
) -> Influence:
    """Compute influence by back-substitution.

    Each node passes influence on to its sources once its own influence is complete. `rows(reached)` yields nodes and
    their rows of direct effects, from the last layer to the first. `reached` holds the weight of each node plus the
    influence of the node found so far. The rows of nodes for which `reached` is 0 may be left out.
    """
    total, error_share = weight.clone(), torch.zeros_like(weight)
    for nodes, effects in rows(total):
        share = shares(effects, counted)
        error_share[nodes] = share[:, errors].sum(1)
        total[: share.shape[1]] += total[nodes] @ share
    return Influence(total - weight, error_share)


def scores(
    result: Influence, weight: Float[Tensor, " node"], errors: slice, embeddings: slice
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
    """Returns the threshold at which the largest values reach a given share of the sum.

    The threshold is one of the values. The values at or above the threshold sum to at least `share` times the sum of
    all values. No larger value has this property.
    """
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum()
    index = int(torch.searchsorted(reached, share))
    return float(ordered[min(index, len(ordered) - 1)])


def cumulative_share(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Returns the influence of each node plus that of all nodes with larger influence, as a share of the total.

    The viewer of circuit-tracer prunes nodes by this share.
    """
    ordered, order = influence.sort(descending=True)
    share = torch.empty_like(influence)
    share[order] = ordered.cumsum(0) / ordered.sum()
    return share


def graph_rows(model: LinearizedModel, roots: Roots) -> Callable[[Float[Tensor, " node"]], Rows]:
    """Returns a function that yields the rows of a prompt's full graph.

    Rows are computed on demand and not kept. The returned function takes the argument `reached`, as described in
    `influence`. Rows of features for which `reached` is 0 are left out.
    """
    columns = source_columns(model)
    elements = max(model.captured.resid_final.numel(), len(columns))

    def rows(reached: Float[Tensor, " node"]) -> Rows:
        nodes = torch.arange(len(columns), len(columns) + len(roots.weight))
        yield nodes, direct_effects(model, roots.targets)
        for layer in reversed(model.dictionaries):
            in_layer = model.active_in_layer(layer, len(model.captured))
            active = in_layer.start + (reached[in_layer] > 0).nonzero()[:, 0]
            if not len(active):
                continue
            start = 0
            for chunk in feature_targets(model, active).chunks(elements):
                yield active[start : start + len(chunk)], direct_effects(model, chunk)
                start += len(chunk)

    return rows


def adjacency(model: LinearizedModel, roots: Roots) -> Float[Tensor, "target source"]:
    """Returns the full adjacency matrix. It has one row per active feature, followed by one row per root.

    The matrix takes memory proportional to the square of the number of active features. `trace_graph` does not need
    this matrix.
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
    """Number of each node, in ascending order. The number of a source is its column in `source_columns(model)`.

    Root i has the number len(source_columns(model)) + i."""
    influence: Float[Tensor, " node"]
    """Influence of each node in the full graph, before pruning."""
    cumulative: Float[Tensor, " node"]
    """Influence of the node plus that of all nodes with larger influence, as a share of the total in the full graph."""
    value: Float[Tensor, " node"]
    """Pre-activation of a feature or value of a root; 0 for other nodes.

    The value of a feature or root is the sum of the effects of all its sources. Pruned sources are included."""
    size: Float[Tensor, " node"]
    """Sum of the absolute effects of all sources on each node. Rounding errors are measured relative to this sum."""
    source: Int[Tensor, " edge"]
    """Source of each edge, as an index into `node`."""
    target: Int[Tensor, " edge"]
    """Target of each edge, as an index into `node`."""
    effect: Float[Tensor, " edge"]
    remainder: Float[Tensor, " node"]
    """Value of each node minus the sum of the effects of its kept incoming edges."""
    scores: GraphScores
    """Scores of the full graph, before pruning."""


@torch.inference_mode()
def trace_graph(
    model: LinearizedModel, roots: Roots, node_share: float = 0.8, edge_share: float = 0.98
) -> AttributionGraph:
    """Build the pruned attribution graph of a prompt.

    First, the most influential nodes that together hold `node_share` of the influence are kept. Then `prune` keeps the
    edges with the largest scores among these nodes, and removes nodes that are no longer connected. Token embeddings
    and roots are always kept. Position embeddings and the constant have no influence, but they are also kept, with
    their edges to kept nodes. The memory needed is proportional to the square of the number of kept nodes.
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


def counted_nodes(node: Int[Tensor, " node"], counted: Bool[Tensor, " source"]) -> Bool[Tensor, " node"]:
    """Returns a mask of the graph's nodes that count in `shares`. Roots do not count, since roots are not sources.

    `node` holds the numbers of the graph's nodes. `counted` is the result of `counted_sources`.
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
    """Returns two masks: the nodes to keep, and the edges [target, source] to keep.

    In `effects`, rows are targets and columns are sources. The `level` of a source is lower than the level of its
    targets. The score of an edge is its share in the target (see `shares`), times the sum of the target's influence and
    weight. The edges with the largest scores are kept until the kept edges hold `edge_share` of the sum of all scores.
    Edges from sources that are not `counted` are kept, too.

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
    """Returns the effects [target, source] among the nodes `node`, and two sums for each of these nodes.

    The first sum adds up the effects of all sources on the node, including sources outside `node`. The second sum adds
    up the absolute values of these effects.
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
    """Returns the topological level of each node.

    The level is layer + 1 for features, 0 for nodes without sources, and the number of layers + 1 for roots.
    """
    level = torch.zeros_like(node)
    features = node < columns.active
    level[features] = model.features.layer[node[features]] + 1
    level[node >= len(columns)] = model.layers + 1
    return level
