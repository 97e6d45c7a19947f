"""Attribution graphs of many prompts as one graph. Nodes are matched by role: the place of their token in the template.

A node of the aggregate graph is a feature of a layer at a role, an error of a layer at a role, the token embedding at a
role, or a root. Attention heads are no nodes, because the edges of an attribution graph go through them. Position
embeddings and the constant are left out.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.intervals import half_interval
from .direct_effects import source_columns
from .graph import AttributionGraph
from .linearized_model import LinearizedModel


class RoleNode(NamedTuple):
    """A node that is the same on all prompts."""

    kind: str
    """`feature`, `error`, `embedding` or `root`."""
    layer: int | None
    feature: int | None
    """Number of the feature; of a root, its place among the roots."""
    role: int
    """Place of the token in the template, in the order of the tokens."""


class RoleFeature(NamedTuple):
    """A feature at a role."""

    layer: int
    role: int
    feature: int


@dataclass(frozen=True)
class PromptGraph:
    """The pruned graph of one prompt, and the role of each of its tokens."""

    model: LinearizedModel
    graph: AttributionGraph
    roles: Sequence[int]
    """The role of each position. No role occurs twice."""


@dataclass(frozen=True)
class AggregateNode:
    """A node of the aggregate graph. Means of values are over the prompts whose graphs have the node."""

    node: RoleNode
    n_prompts: int
    """Number of prompts whose graphs have the node."""
    influence: float
    """Mean over all prompts of the influence on the roots, 0 where a graph does not have the node."""
    activation: float | None
    """Mean activation of a feature; None for other kinds."""


@dataclass(frozen=True)
class AggregateEdge:
    """An edge of the aggregate graph. All values are over the prompts whose graphs have the edge."""

    source: int
    target: int
    """Ends of the edge, as indices into `AggregateGraph.nodes`."""
    n_prompts: int
    """Number of prompts whose graphs have the edge."""
    effect: float
    """Mean direct effect."""
    deviation: float | None
    """Standard deviation of the effect (n - 1 in the divisor). None for one prompt."""
    half_width: float | None
    """Half the width of the 95 % interval of the mean. None for one prompt."""


@dataclass(frozen=True)
class AggregateGraph:
    """The graphs of several prompts of a template as one graph."""

    n_prompts: int
    nodes: list[AggregateNode]
    """Nodes by kind, layer, role and feature."""
    edges: list[AggregateEdge]

    def share(self, part: AggregateNode | AggregateEdge) -> float:
        """Returns the share of prompts whose graphs have the node or the edge."""
        return part.n_prompts / self.n_prompts

    def common_features(self, share: float) -> list[RoleFeature]:
        """Returns the features that are in the graphs of at least `share` of the prompts."""
        return [
            RoleFeature(each.node.layer, each.node.role, each.node.feature)
            for each in self.nodes
            if each.node.kind == "feature"
            and each.node.layer is not None
            and each.node.feature is not None
            and self.share(each) >= share
        ]


def aggregate_graphs(graphs: Sequence[PromptGraph]) -> AggregateGraph:
    """Returns the aggregate graph of prompts with the same roles. There must be at least one."""
    influence: dict[RoleNode, float] = defaultdict(float)
    activation: dict[RoleNode, list[float]] = defaultdict(list)
    effects: dict[tuple[RoleNode, RoleNode], list[float]] = defaultdict(list)
    count: Counter[RoleNode] = Counter()
    for own in graphs:
        nodes = role_nodes(own)
        for index, node in enumerate(nodes):
            if node is None:
                continue
            count[node] += 1
            influence[node] += float(own.graph.influence[index])
            if node.kind == "feature":
                activation[node].append(float(own.model.features.activation[own.graph.node[index]]))
        columns = (own.graph.source, own.graph.target, own.graph.effect)
        for source, target, effect in zip(*(column.tolist() for column in columns), strict=True):
            ends = nodes[source], nodes[target]
            if ends[0] is not None and ends[1] is not None:
                effects[ends[0], ends[1]].append(effect)
    ordered = sorted(count, key=lambda node: (node.kind, node.layer or 0, node.role, node.feature or 0))
    number = {node: i for i, node in enumerate(ordered)}
    return AggregateGraph(
        len(graphs),
        [
            AggregateNode(
                node,
                count[node],
                influence[node] / len(graphs),
                float(np.mean(activation[node])) if node in activation else None,
            )
            for node in ordered
        ],
        [
            _edge(number[source], number[target], np.array(values))
            for (source, target), values in sorted(
                effects.items(), key=lambda item: (number[item[0][0]], number[item[0][1]])
            )
        ],
    )


def _edge(source: int, target: int, values: np.ndarray) -> AggregateEdge:
    n, mean = len(values), float(values.mean())
    if n < 2:
        return AggregateEdge(source, target, n, mean, None, None)
    half = half_interval((values - mean) / n, n)
    return AggregateEdge(source, target, n, mean, float(values.std(ddof=1)), half)


def role_nodes(own: PromptGraph) -> list[RoleNode | None]:
    """Returns the role node of each node of a prompt's graph. None for position embeddings and the constant."""
    columns, features, length = source_columns(own.model), own.model.features, len(own.model.captured)
    result: list[RoleNode | None] = []
    roots = 0
    for source in own.graph.node.tolist():
        if source < columns.active:
            layer, position, feature = (
                int(column[source]) for column in (features.layer, features.position, features.feature)
            )
            result.append(RoleNode("feature", layer, feature, own.roles[position]))
        elif source < columns.errors.stop:
            layer, position = divmod(source - columns.errors.start, length)
            result.append(RoleNode("error", layer, None, own.roles[position]))
        elif source < columns.embeddings.stop:
            result.append(RoleNode("embedding", None, None, own.roles[source - columns.embeddings.start]))
        elif source < len(columns):
            result.append(None)
        else:
            result.append(RoleNode("root", None, roots, own.roles[-1]))
            roots += 1
    return result


def firing_counts(models: Sequence[tuple[LinearizedModel, Sequence[int]]]) -> Counter[RoleFeature]:
    """Returns the number of prompts on which each feature fires at each role. The second part of each pair has the
    role of each position."""
    counts: Counter[RoleFeature] = Counter()
    for model, roles in models:
        features = model.features
        columns = (features.layer, features.position, features.feature)
        for layer, position, feature in zip(*(column.tolist() for column in columns), strict=True):
            counts[RoleFeature(layer, roles[position], feature)] += 1
    return counts
