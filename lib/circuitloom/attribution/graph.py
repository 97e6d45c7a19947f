"""Attribution graphs: direct effects among all that is active on a prompt, how much each node matters, what to keep.

After Ameisen et al. 2025 ("Circuit Tracing"), whose scores and pruning are defined here as free functions on arrays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direct_effects import AttributionTargets, SourceColumns, direct_effects, feature_targets, sources
from .linearized_model import LinearizedModel

Rows = Iterator[tuple[Int[Tensor, " target"], Float[Tensor, "target source"]]]
"""Nodes and their direct effects from every source: targets come before what they are sources to is asked for, that
is, from the end of the model to its beginning."""


@dataclass(frozen=True)
class Roots:
    """What a graph explains."""

    targets: AttributionTargets
    weight: Float[Tensor, " root"]
    """How much each matters: its probability, for logits."""


@dataclass(frozen=True)
class Influence:
    """How much of the roots goes through each node: w (N + N^2 + ...), N the shares of each target's sources."""

    node: Float[Tensor, " node"]
    """Sources first, then roots, whose own weight is not in it."""
    error_share: Float[Tensor, " node"]
    """Share of each node's sources that errors make up."""


@dataclass(frozen=True)
class GraphScores:
    """How much of what a graph explains goes to tokens rather than errors."""

    replacement: float
    """I_token / (I_token + I_error): of the paths that end, those that end in tokens."""
    completeness: float
    """Share of the nodes' sources, weighted by influence, that are no errors."""
    completeness_strict: float
    """The same, an error node counting as wholly unexplained."""


def shares(
    effects: Float[Tensor, "target source"], counted: Bool[Tensor, " source"]
) -> Float[Tensor, "target source"]:
    """Each source's share of a target: |effect|, over those that are counted, rows adding up to 1 (or 0)."""
    size = effects.abs() * counted
    return size / size.sum(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)


def counted_sources(columns: SourceColumns) -> Bool[Tensor, " source"]:
    """What shares are taken of: not positions and constants, which no feature explains."""
    counted = torch.ones(len(columns), dtype=torch.bool)
    counted[columns.learned_positions] = False
    counted[columns.constant] = False
    return counted


def influence(
    rows: Callable[[Float[Tensor, " node"]], Rows],
    weight: Float[Tensor, " node"],
    counted: Bool[Tensor, " source"],
    errors: slice,
) -> Influence:
    """Back-substitution: every node's influence is whole before it is passed on to its sources.

    `rows(reached)` gives the targets from the last to the first; it may leave out those that are not reached, whose
    entry in `reached` (influence and weight so far) is 0.
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
    """The scores of a graph whose influence is known."""
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
    """The value at which the largest, added up, reach `share` of all."""
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum()
    place = int(torch.searchsorted(reached, share))
    return float(ordered[min(place, len(ordered) - 1)])


def cumulative_share(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Share of all influence that a node and the nodes of larger influence hold: what the viewer prunes by."""
    ordered, order = influence.sort(descending=True)
    share = torch.empty_like(influence)
    share[order] = ordered.cumsum(0) / ordered.sum()
    return share


def graph_rows(model: LinearizedModel, roots: Roots) -> Callable[[Float[Tensor, " node"]], Rows]:
    """Rows of the whole graph of a prompt, made as they are asked for and not kept."""
    columns = sources(model)
    numbers = max(model.frozen.resid_final.numel(), len(columns))

    def rows(reached: Float[Tensor, " node"]) -> Rows:
        nodes = torch.arange(len(columns), len(columns) + len(roots.weight))
        yield nodes, direct_effects(model, roots.targets)
        for layer in reversed(model.dictionaries):
            first, last = model.active(layer, 0).start, model.active(layer, len(model.frozen) - 1).stop
            places = first + (reached[first:last] > 0).nonzero()[:, 0]
            if not len(places):
                continue
            start = 0
            for chunk in feature_targets(model, places).chunks(numbers):
                yield places[start : start + len(chunk)], direct_effects(model, chunk)
                start += len(chunk)

    return rows


def adjacency(model: LinearizedModel, roots: Roots) -> Float[Tensor, "target source"]:
    """All direct effects: a row for each active feature, in their order, then one for each root.

    It holds the square of the active features; `influence` and `prune` do without.
    """
    columns = sources(model)
    effects = model.frozen.resid_final.new_zeros(columns.active + len(roots.weight), len(columns))
    for layer in model.dictionaries:
        places = torch.arange(model.active(layer, 0).start, model.active(layer, len(model.frozen) - 1).stop)
        if len(places):
            direct_effects(model, feature_targets(model, places), effects[places[0] : places[-1] + 1])
    direct_effects(model, roots.targets, effects[columns.active :])
    return effects


@dataclass(frozen=True)
class AttributionGraph:
    """What is left of a prompt's graph: nodes, and the edges between them."""

    node: Int[Tensor, " node"]
    """Columns of `sources`, ascending; then, from `len(sources)` on, the roots."""
    influence: Float[Tensor, " node"]
    """Of the whole graph, before anything was taken away."""
    cumulative: Float[Tensor, " node"]
    """Share of the whole graph's influence that the node and those of larger influence hold."""
    value: Float[Tensor, " node"]
    """Pre-activation of a feature, value of a root: what its sources add up to, pruned ones included; else 0."""
    size: Float[Tensor, " node"]
    """What the sources add up to by their absolute values: what rounding is measured against."""
    source: Int[Tensor, " edge"]
    """Place in `node`."""
    target: Int[Tensor, " edge"]
    """Place in `node`."""
    effect: Float[Tensor, " edge"]
    remainder: Float[Tensor, " node"]
    """What of `value` no kept edge makes up."""
    scores: GraphScores
    """Of the whole graph."""


@torch.inference_mode()
def trace_graph(
    model: LinearizedModel, roots: Roots, node_share: float = 0.8, edge_share: float = 0.98
) -> AttributionGraph:
    """The graph of a prompt, pruned: memory grows with what is kept and with chunks, not with the square of all.

    Nodes stay that hold `node_share` of the influence; edges that hold `edge_share` of what goes through the rest.
    Embeddings and roots always stay; positions and constants, which take no part in shares, stay with what is left of
    their edges.
    """
    columns = sources(model)
    weight = torch.cat([roots.weight.new_zeros(len(columns)), roots.weight])
    counted = counted_sources(columns).to(weight.device)
    whole = influence(graph_rows(model, roots), weight, counted, columns.errors)
    kept = whole.node >= threshold(whole.node, node_share)
    kept[columns.embeddings] = True
    kept[len(columns) :] = True
    kept[columns.learned_positions] = model.frozen.positions is not None
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
        influence=whole.node[node][keep_node],
        cumulative=cumulative_share(whole.node)[node][keep_node],
        value=value[keep_node],
        size=size[keep_node],
        source=renumbered[source],
        target=renumbered[target],
        effect=effect,
        remainder=(value - explained)[keep_node],
        scores=scores(whole, weight, columns.errors, columns.embeddings),
    )


def counted_nodes(node: Int[Tensor, " node"], counted: Bool[Tensor, " source"]) -> Bool[Tensor, " node"]:
    """Which nodes of a graph shares are taken of; roots are sources of nothing."""
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
    """Nodes and edges of a small graph that stay; effects are [target, source], sources being of a lower `level`.

    Edges by their share of the target times the target's influence, until `edge_share` of all is reached; then,
    until nothing changes, features and errors that lead nowhere and features that nothing leads to are taken away.
    Nodes in `always` stay.
    """
    share = shares(effects, counted)
    reached = weight.clone()
    for step in level.unique().flip(0):
        at = level == step
        reached += reached[at] @ share[at]
    score = share * reached[:, None]
    keep = (score >= threshold(score.flatten(), edge_share)) & (score > 0)
    # what shares leave out goes with its target
    keep |= (effects != 0) & ~counted
    node = torch.ones_like(always)
    while True:
        counting = keep & counted
        left = node & (always | counting.any(0)) & (~feature | counting.any(1))
        keep &= left[:, None] & left
        if torch.equal(left, node):
            return node, keep
        node = left


def _effects_among(
    model: LinearizedModel, roots: Roots, node: Int[Tensor, " node"], columns: SourceColumns
) -> tuple[Float[Tensor, "node node"], Float[Tensor, " node"], Float[Tensor, " node"]]:
    """Effects among some nodes, [target, source], and what all sources of each add up to, signed and absolute."""
    effects = roots.weight.new_zeros(len(node), len(node))
    value, size = roots.weight.new_zeros(2, len(node))
    is_source = node < len(columns)
    reached = roots.weight.new_zeros(len(columns) + len(roots.weight))
    reached[node] = 1
    place = torch.full_like(reached, -1, dtype=torch.int64)
    place[node] = torch.arange(len(node), device=node.device)
    for nodes, row in graph_rows(model, roots)(reached):
        at = place[nodes]
        effects[at[:, None], is_source.nonzero()[:, 0]] = row[:, node[is_source]]
        value[at], size[at] = row.sum(1), row.abs().sum(1)
    return effects, value, size


def _level(
    model: LinearizedModel, node: Int[Tensor, " node"], columns: SourceColumns
) -> Int[Tensor, " node"]:
    """Layer and one more for features, 0 for what has no sources, the highest for roots."""
    level = torch.zeros_like(node)
    features = node < columns.active
    level[features] = model.features.layer[node[features]] + 1
    level[node >= len(columns)] = model.layers + 1
    return level
