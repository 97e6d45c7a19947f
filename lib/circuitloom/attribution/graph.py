"""Attribution graphs: nodes, edges, influence, scores and pruning (Ameisen et al. 2025, "Circuit Tracing").

`trace_graph` works in four phases:

1. Rows: direct effects of all sources on every root and active feature, last layer first, made in chunks and dropped
   (`graph_rows`). The full adjacency matrix is never held.
2. Influence: each row normalized to absolute shares; influence flows from roots to sources by back-substitution
   (`influence`). Replacement and completeness scores follow (`scores`).
3. Nodes: keep the most influential ones up to `node_share`; compute the edges among them (`_effects_among`).
4. Edges: keep the most influential ones up to `edge_share`, then drop features and errors that are no longer
   connected (`prune`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direct_effects import AttributionTargets, SourceColumns, direct_effects, feature_targets, source_columns
from .linearized_model import LinearizedModel

Rows = Iterator[tuple[Int[Tensor, " target"], Float[Tensor, "target source"]]]
"""Nodes and their rows of direct effects, from the last layer to the first."""


@dataclass(frozen=True)
class Roots:
    """Targets that a graph explains: logits, a logit difference or a feature."""

    targets: AttributionTargets
    weight: Float[Tensor, " root"]
    """Weight of each root in influence: the probability for logits, else 1."""


@dataclass(frozen=True)
class Influence:
    """Influence of each node on the roots: w (N + N^2 + ...), with N the normalized absolute adjacency matrix."""

    node: Float[Tensor, " node"]
    """Sources first, then roots. A root's own weight is not included."""
    error_share: Float[Tensor, " node"]
    """Share of error nodes among each node's sources."""


@dataclass(frozen=True)
class GraphScores:
    """Scores of a graph before pruning."""

    replacement: float
    """Replacement score: influence of token embeddings over that of embeddings and errors."""
    completeness: float
    """Completeness score: share of non-error sources, averaged over nodes by influence."""
    completeness_strict: float
    """Completeness score that counts error nodes themselves as unexplained."""


def shares(
    effects: Float[Tensor, "target source"], counted: Bool[Tensor, " source"]
) -> Float[Tensor, "target source"]:
    """Share of each source in each target: |effect|, normalized over counted sources. Rows sum to 1 (or 0)."""
    size = effects.abs() * counted
    return size / size.sum(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)


def counted_sources(columns: SourceColumns) -> Bool[Tensor, " source"]:
    """Sources that shares are normalized over: all but position embeddings and constants."""
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
    """Influence by back-substitution: a node's influence is complete before it passes to the node's sources.

    `rows(reached)` yields targets from the last layer to the first. `reached` is the influence found so far plus the
    weight; rows of nodes where it is 0 may be skipped.
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
    """Smallest of the largest values that together reach `share` of the sum."""
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum()
    index = int(torch.searchsorted(reached, share))
    return float(ordered[min(index, len(ordered) - 1)])


def cumulative_share(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Share of the total influence held by each node and all nodes with more; the viewer prunes by it."""
    ordered, order = influence.sort(descending=True)
    share = torch.empty_like(influence)
    share[order] = ordered.cumsum(0) / ordered.sum()
    return share


def graph_rows(model: LinearizedModel, roots: Roots) -> Callable[[Float[Tensor, " node"]], Rows]:
    """Rows of the full graph of a prompt, computed on demand and not kept."""
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
    """Full adjacency matrix: one row per active feature, then one per root.

    Memory grows with the square of the number of active features; `trace_graph` does not need it.
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
    """Columns of `source_columns`, ascending; then, from `len(source_columns)` on, the roots."""
    influence: Float[Tensor, " node"]
    """Influence in the full graph, before pruning."""
    cumulative: Float[Tensor, " node"]
    """Share of the full graph's influence held by the node and all nodes with more."""
    value: Float[Tensor, " node"]
    """Sum over all sources, pruned ones included: pre-activation of a feature or value of a root; 0 for other nodes."""
    size: Float[Tensor, " node"]
    """Sum of the absolute effects of all sources: the scale for rounding errors."""
    source: Int[Tensor, " edge"]
    """Index into `node`."""
    target: Int[Tensor, " edge"]
    """Index into `node`."""
    effect: Float[Tensor, " edge"]
    remainder: Float[Tensor, " node"]
    """Value minus the effects of kept edges."""
    scores: GraphScores
    """Scores of the full graph."""


@torch.inference_mode()
def trace_graph(
    model: LinearizedModel, roots: Roots, node_share: float = 0.8, edge_share: float = 0.98
) -> AttributionGraph:
    """Pruned attribution graph of a prompt.

    Keeps the nodes that hold `node_share` of the influence, then the edges that hold `edge_share` of the influence
    among them. Embeddings and roots always stay. Position embeddings and constants have no influence; they stay, with
    their edges to kept nodes. Memory grows with the square of the kept nodes, not of all nodes.
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
    """`counted_sources` for the nodes of a graph; roots are never sources."""
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
    """Masks of the nodes and edges to keep; effects are [target, source], and sources have a lower `level`.

    An edge's score is its share of the target times the target's influence; the largest are kept until they hold
    `edge_share` of the sum. Then features and errors without outgoing edges and features without incoming edges are
    removed until nothing changes. Nodes in `always` stay.
    """
    share = shares(effects, counted)
    reached = weight.clone()
    for current in level.unique().flip(0):
        at = level == current
        reached += reached[at] @ share[at]
    score = share * reached[:, None]
    keep = (score >= threshold(score.flatten(), edge_share)) & (score > 0)
    # sources without shares stay as long as their target does
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
    """Effects among `node`, [target, source]; per node the sum over all sources of effects, and of their magnitudes."""
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
    """Topological level: layer + 1 for features, 0 for nodes without sources, layers + 1 for roots."""
    level = torch.zeros_like(node)
    features = node < columns.active
    level[features] = model.features.layer[node[features]] + 1
    level[node >= len(columns)] = model.layers + 1
    return level
