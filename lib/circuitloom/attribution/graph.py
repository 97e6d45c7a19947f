"""Attribution graphs: nodes, edges, influence, scores and pruning (Ameisen et al. 2025, "Circuit Tracing").

`trace_graph` works in four phases:

1. Rows: `graph_rows` computes the direct effects of all sources on each root and active feature, from the last layer
   to the first. It works in chunks that are then dropped, so the full adjacency matrix is never in memory.
2. Influence: `influence` normalizes the absolute values of each row to sum to 1. It then passes influence from roots to
   sources by back-substitution. `scores` computes replacement and completeness scores from it.
3. Nodes: the most influential nodes that together hold `node_share` of the influence are kept. `_effects_among`
   computes the edges among them.
4. Edges: `prune` keeps the most influential edges that together hold `edge_share`. It then drops features and errors
   that are no longer connected.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direct_effects import AttributionTargets, SourceColumns, direct_effects, feature_targets, source_columns
from .linearized_model import LinearizedModel

Rows = Iterator[tuple[Int[Tensor, " target"], Float[Tensor, "target source"]]]
"""Iterator over chunks of (nodes, their rows of direct effects), from the last layer to the first."""


@dataclass(frozen=True)
class Roots:
    """Targets that a graph explains. These are logits, a logit difference or a feature."""

    targets: AttributionTargets
    weight: Float[Tensor, " root"]
    """Weight of each root when influence is computed: the token's probability for `logits`, else 1."""


@dataclass(frozen=True)
class Influence:
    """Influence of each node on the roots: w (N + N^2 + ...).

    N is the matrix of absolute edge weights, each row normalized to sum to 1. w holds the weights of the roots.
    """

    node: Float[Tensor, " node"]
    """Influence of each source, then of each root. A root's own weight is not included."""
    error_share: Float[Tensor, " node"]
    """Share of each node's absolute input that comes from error nodes."""


@dataclass(frozen=True)
class GraphScores:
    """Scores of a graph before pruning."""

    replacement: float
    """Replacement score: influence of token embeddings divided by the influence of token embeddings and errors."""
    completeness: float
    """Completeness score: share of a node's input that does not come from errors, averaged over nodes.

    Nodes are weighted by their influence (for roots, plus their weight)."""
    completeness_strict: float
    """Completeness score in which error nodes themselves count as unexplained, too."""


def shares(
    effects: Float[Tensor, "target source"], counted: Bool[Tensor, " source"]
) -> Float[Tensor, "target source"]:
    """Share of each source in each target: |effect| divided by the sum of |effect| over counted sources.

    Sources that are not counted have share 0. A row sums to 1, or to 0 if the target has no counted source.
    """
    size = effects.abs() * counted
    return size / size.sum(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)


def counted_sources(columns: SourceColumns) -> Bool[Tensor, " source"]:
    """Mask of the sources that `shares` counts: all but position embeddings and the constant."""
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
    """Compute influence by back-substitution. A node passes its influence on once the influence is complete.

    `rows(reached)` yields targets from the last layer to the first. `reached` is the weight plus the influence found so
    far. Where it is 0, a node's row may be left out.
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
    """Replacement and completeness scores from the influence of all nodes."""
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
    """The largest value such that all values at or above it together hold at least `share` of the sum."""
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum()
    index = int(torch.searchsorted(reached, share))
    return float(ordered[min(index, len(ordered) - 1)])


def cumulative_share(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """For each node, the share of the total influence that it holds together with all nodes of larger influence.

    circuit-tracer's viewer prunes nodes by this share.
    """
    ordered, order = influence.sort(descending=True)
    share = torch.empty_like(influence)
    share[order] = ordered.cumsum(0) / ordered.sum()
    return share


def graph_rows(model: LinearizedModel, roots: Roots) -> Callable[[Float[Tensor, " node"]], Rows]:
    """Function that yields the rows of a prompt's full graph. They are computed on demand and not kept.

    The function's argument is the influence found so far, called `reached` in `influence`. Rows of features where it is
    0 are left out.
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
    """Full adjacency matrix, with one row per active feature, then one per root.

    Its memory is proportional to the square of the number of active features. `trace_graph` does not need it.
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
    """Number of each node, ascending. Sources are numbered by their column in `source_columns(model)`.

    Root i has the number len(source_columns(model)) + i."""
    influence: Float[Tensor, " node"]
    """Influence of each node in the full graph, before pruning."""
    cumulative: Float[Tensor, " node"]
    """Share of the full graph's influence that the node holds together with all nodes of larger influence."""
    value: Float[Tensor, " node"]
    """Pre-activation of a feature or value of a root; 0 for other nodes.

    It is the sum of the effects of all sources, pruned ones included."""
    size: Float[Tensor, " node"]
    """Sum of the absolute effects of all sources. Rounding errors are measured relative to it."""
    source: Int[Tensor, " edge"]
    """Source of each edge, as an index into `node`."""
    target: Int[Tensor, " edge"]
    """Target of each edge, as an index into `node`."""
    effect: Float[Tensor, " edge"]
    remainder: Float[Tensor, " node"]
    """Value of each node minus the sum of its kept incoming edges."""
    scores: GraphScores
    """Scores of the full graph, before pruning."""


@torch.inference_mode()
def trace_graph(
    model: LinearizedModel, roots: Roots, node_share: float = 0.8, edge_share: float = 0.98
) -> AttributionGraph:
    """Build the pruned attribution graph of a prompt.

    First, the most influential nodes that together hold `node_share` of the influence are kept. Then, among these, the
    edges that hold `edge_share` of the influence are kept. Embeddings and roots always stay. Position embeddings and
    the constant have no influence, but they stay, too, with their edges to kept nodes. Memory is proportional to the
    square of the number of kept nodes, not of all nodes.
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
    """Mask of the graph's nodes that `shares` counts. Roots are not counted, since they are not sources.

    `counted` is the mask over all sources, from `counted_sources`.
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
    """Masks of the nodes and edges to keep.

    `effects` is [target, source]. A source has a lower `level` than its target. An edge's score is its share of the
    target times the target's influence. Edges with the largest scores are kept until they hold `edge_share` of the sum.
    Then nodes without outgoing edges are removed, and so are features without incoming edges, until nothing changes.
    Nodes in `always` need no outgoing edge.
    """
    share = shares(effects, counted)
    reached = weight.clone()
    for current in level.unique().flip(0):
        at = level == current
        reached += reached[at] @ share[at]
    score = share * reached[:, None]
    keep = (score >= threshold(score.flatten(), edge_share)) & (score > 0)
    # edges from sources without shares stay as long as their target does
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
    """Effects [target, source] among the nodes `node`, and two sums for each node.

    The sums are those of the effects of all sources on the node, and of the absolute effects.
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
    """Topological level of each node.

    It is layer + 1 for features, 0 for nodes without sources, and the number of layers + 1 for roots.
    """
    level = torch.zeros_like(node)
    features = node < columns.active
    level[features] = model.features.layer[node[features]] + 1
    level[node >= len(columns)] = model.layers + 1
    return level
