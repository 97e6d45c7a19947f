"""Influence and scores of a pruned graph whose nodes are grouped into supernodes, from rows of its tables.

The report and the explorer import this module too, so it does not import torch. docs/method.md defines the scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Row = Mapping[str, Any]
HELD = 0.8
"""Share of the influence for which `GraphSummary.n_holding` counts nodes."""
UNCOUNTED = ("position", "constant")
"""Kinds of nodes that do not count as sources."""


@dataclass(frozen=True)
class GraphFlow:
    """Influence that flows along each edge of a graph, from the roots to the sources."""

    source: Int[np.ndarray, " edge"]
    target: Int[np.ndarray, " edge"]
    """Ends of each edge, as indices into the nodes."""
    flow: Float[np.ndarray, " edge"]
    """Influence and weight of the target, times the edge's share of |effect| among the target's edges."""
    weight: Float[np.ndarray, " node"]
    """Weight of each root, and 0 for other nodes."""

    @property
    def influence(self) -> Float[np.ndarray, " node"]:
        """Influence of each node on the roots: the flow along all its outgoing edges."""
        return _sums(self.source, self.flow, len(self.weight))


def graph_flow(nodes: Sequence[Row], edges: Sequence[Row]) -> GraphFlow:
    """Returns the flow along the edges between `nodes`.

    `nodes` and `edges` are rows of the query `graph_nodes` and of the macro `circuit_edges`. Position embeddings and
    the constant are not counted, as in `attribution.graph.shares`.
    """
    number = {row["node"]: i for i, row in enumerate(nodes)}
    counted = {row["node"] for row in nodes if row["kind"] not in UNCOUNTED}
    kept = [row for row in edges if row["source_node"] in counted and row["target_node"] in number]
    source = np.array([number[row["source_node"]] for row in kept], np.int64)
    target = np.array([number[row["target_node"]] for row in kept], np.int64)
    size = np.abs(np.array([row["effect"] for row in kept], float))
    total = _sums(target, size, len(nodes))
    share = size / np.where(total[target] > 0, total[target], 1.0)
    weight = np.array([float(row["probability"] or 0.0) if row["is_root"] else 0.0 for row in nodes])
    if not weight.any():
        weight = np.array([float(row["is_root"]) for row in nodes])
    reached, flow = weight.copy(), np.zeros(len(kept))
    level = np.array(_levels(nodes))
    # an edge leads to a higher level, so that all flow into a level is known before it is passed on
    for current in np.unique(level)[::-1]:
        at = level[target] == current
        flow[at] = reached[target[at]] * share[at]
        np.add.at(reached, source[at], flow[at])
    return GraphFlow(source, target, flow, weight)


def _levels(nodes: Sequence[Row]) -> list[int]:
    above = 1 + max((row["layer"] for row in nodes if row["layer"] is not None), default=0)
    return [above if row["is_root"] else -1 if row["layer"] is None else row["layer"] for row in nodes]


@dataclass(frozen=True)
class GraphSummary:
    """Size and scores of a pruned graph, grouped or not. A supernode counts as one node."""

    n_nodes: int
    """Number of nodes without roots, position embeddings and the constant."""
    n_edges: int
    n_holding: int
    """Smallest number of nodes that together hold `HELD` of the influence."""
    replacement: float
    completeness: float


def summarize(flow: GraphFlow, nodes: Sequence[Row], groups: Mapping[str, Sequence[int]]) -> GraphSummary:
    """Returns the summary of a graph after grouping. `nodes` are those of `graph_flow`, and `groups` maps the name of a
    supernode to the numbers of its nodes. A node in two groups belongs to the later one."""
    number = {row["node"]: i for i, row in enumerate(nodes)}
    owner = np.arange(len(nodes))
    for i, members in enumerate(groups.values()):
        owner[[number[member] for member in members if member in number]] = len(nodes) + i
    source, target = owner[flow.source], owner[flow.target]
    outer = source != target
    leaving = _sums(source[outer], flow.flow[outer], len(nodes) + len(groups))
    kind = np.array([row["kind"] for row in nodes], object)
    counted = ~np.isin(kind, UNCOUNTED) & ~np.array([bool(row["is_root"]) for row in nodes], bool)
    # the influence of a supernode is what leaves it, so that flow between its members counts once
    ordered = np.sort(leaving[np.unique(owner[counted])])[::-1]
    influence = flow.influence
    token, error = (float(influence[kind == name].sum()) for name in ("embedding", "error"))
    unexplained = float(flow.flow[outer & (kind[flow.source] == "error")].sum())
    total = float(leaving.sum() + flow.weight.sum())
    return GraphSummary(
        n_nodes=len(ordered),
        n_edges=len({*zip(source[outer].tolist(), target[outer].tolist(), strict=True)}),
        n_holding=int(np.searchsorted(ordered.cumsum(), HELD * ordered.sum() * (1 - 1e-12))) + 1
        if len(ordered)
        else 0,
        replacement=token / (token + error) if token + error else 0.0,
        completeness=1 - unexplained / total if total else 0.0,
    )


def _sums(
    place: Int[np.ndarray, " edge"], value: Float[np.ndarray, " edge"], n: int
) -> Float[np.ndarray, " place"]:
    """Returns the sum of the values at each of `n` places. np.bincount gives integers if there are no values."""
    sums = np.zeros(n)
    np.add.at(sums, place, value)
    return sums
