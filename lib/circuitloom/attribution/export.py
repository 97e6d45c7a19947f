"""Export pruned graphs to networkx and to the JSON format of circuit-tracer and Neuronpedia."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx

from ..core.atomic_io import write_atomically
from ..core.formatting import escape_invisible
from .direct_effects import source_columns
from .graph import AttributionGraph
from .graph_json import embedding_node, error_node, feature_node, graph_content, logit_node
from .linearized_model import LinearizedModel
from .targets import RootNode
from .tracer import Trace


@dataclass(frozen=True)
class GraphText:
    """Texts that name the nodes of a graph."""

    prompt: str
    tokens: Sequence[str]
    """Text of the token at each position."""
    root_nodes: Sequence[RootNode]
    """Descriptions of the roots, in the order of the graph's roots."""


def to_networkx(graph: AttributionGraph, model: LinearizedModel, text: GraphText) -> networkx.DiGraph:
    """Convert the graph to networkx. Node i is graph.node[i]. Edges lead from source to target.

    Control characters of tokens and of the prompt are escaped, because GraphML cannot hold them.
    All nodes have the attributes kind, value, influence and remainder. The kind is feature, error, embedding, position,
    constant, logit or target. Depending on the kind, nodes also have layer, feature, position, token, activation or
    probability. Edges have the attribute effect. Graph attributes are prompt and the scores in `graph.scores`.

    Raises ValueError if `text` and `graph` differ in the number of tokens or roots.
    """
    result = networkx.DiGraph(prompt=escape_invisible(text.prompt), **vars(graph.scores))
    columns = (graph.value.tolist(), graph.influence.tolist(), graph.remainder.tolist())
    for number, (node, value, influence, remainder) in enumerate(
        zip(_nodes(graph, model, text), *columns, strict=True)
    ):
        own = node if "token" not in node else {**node, "token": escape_invisible(node["token"])}
        result.add_node(number, **own, value=value, influence=influence, remainder=remainder)
    for source, target, effect in _edges(graph):
        result.add_edge(source, target, effect=effect)
    return result


def viewer_json(
    graph: AttributionGraph,
    model: LinearizedModel,
    text: GraphText,
    slug: str,
    scan: str,
    node_share: float = 0.8,
) -> dict[str, Any]:
    """Returns the graph in the JSON format of circuit-tracer 0.5. The keys are metadata, qParams, nodes and links.

    `slug` is the name of the graph, and `scan` is the name of the transcoders. The viewer shows the nodes that together
    hold `node_share` of the influence. Position embeddings and constants are left out, since the viewer has no such
    nodes.

    Raises ValueError if `text` and `graph` differ in the number of tokens or roots.
    """
    first = len(graph.node) - len(text.root_nodes)
    written = {}
    for number, (node, share) in enumerate(
        zip(_nodes(graph, model, text), graph.cumulative.tolist(), strict=True)
    ):
        if node["kind"] in ("position", "constant"):
            continue
        if number >= first:
            rank = number - first
            written[number] = _viewer_root(text.root_nodes[rank], rank, model)
        else:
            written[number] = _viewer_source(node, share, model)
    links = [
        {"source": written[source]["node_id"], "target": written[target]["node_id"], "weight": effect}
        for source, target, effect in _edges(graph)
        if source in written and target in written
    ]
    return graph_content(slug, scan, text.prompt, text.tokens, list(written.values()), links, node_share)


def write_graph(trace: Trace, name: str, tokens: Sequence[str], path: Path | str) -> None:
    """Write the graph of a trace to a JSON file for the viewer. `tokens` are the prompt's tokens as text."""
    text = GraphText(trace.prompt.text, tokens, trace.root_nodes)
    content = viewer_json(trace.graph, trace.model, text, name, trace.run)
    write_atomically(Path(path), json.dumps(content, indent=2, allow_nan=False).encode())


def _edges(graph: AttributionGraph) -> list[tuple[int, int, float]]:
    return list(zip(graph.source.tolist(), graph.target.tolist(), graph.effect.tolist(), strict=True))


def _nodes(graph: AttributionGraph, model: LinearizedModel, text: GraphText) -> list[dict[str, Any]]:
    """Returns the attributes of each node, in the order of `graph.node`."""
    columns = source_columns(model)
    positions, features = columns.positions, model.features
    roots = int((graph.node >= len(columns)).sum())
    if (len(text.tokens), len(text.root_nodes)) != (positions, roots):
        raise ValueError(
            f"the text has {len(text.tokens)} tokens and {len(text.root_nodes)} roots, the graph {positions} and "
            f"{roots}; pass the text of the graph's prompt"
        )

    def at(kind: str, position: int, **rest: Any) -> dict[str, Any]:
        return {"kind": kind, "position": position, "token": text.tokens[position], **rest}

    def describe(node: int) -> dict[str, Any]:
        if node < columns.active:
            layer, position, feature = (
                int(each[node]) for each in (features.layer, features.position, features.feature)
            )
            activation = float(features.activation[node])
            return at("feature", position, layer=layer, feature=feature, activation=activation)
        if node < columns.errors.stop:
            layer, position = divmod(node - columns.errors.start, positions)
            return at("error", position, layer=layer)
        if node < columns.embeddings.stop:
            return at("embedding", node - columns.embeddings.start)
        if node < columns.position_embeddings.stop:
            return at("position", node - columns.position_embeddings.start)
        if node == columns.constant:
            return {"kind": "constant"}
        root = text.root_nodes[node - len(columns)]
        named = {"position": root.position, "token": root.name, "probability": root.weight}
        if root.kind == "feature":
            named |= {"layer": root.layer, "feature": root.feature}
        return {"kind": "logit" if root.kind == "logit" else "target", **named}

    return [describe(node) for node in graph.node.tolist()]


def _viewer_source(node: dict[str, Any], share: float, model: LinearizedModel) -> dict[str, Any]:
    """Returns the viewer's node of a feature, error or embedding."""
    position = node["position"]
    if node["kind"] == "embedding":
        return embedding_node(int(model.captured.token[position]), position, share)
    if node["kind"] == "error":
        return error_node(node["layer"], position, share)
    return feature_node(node["layer"], node["feature"], position, node["activation"], share)


def _viewer_root(root: RootNode, rank: int, model: LinearizedModel) -> dict[str, Any]:
    """Returns the viewer's node of a root. `rank` is the root's index among the roots."""
    # roots that are not tokens are numbered after the vocabulary
    number = root.token_id if root.kind == "logit" else len(model.captured.unembedding.weight) + rank
    assert number is not None
    return logit_node(number, root.name, root.weight, root.position, model.layers, rank == 0)
