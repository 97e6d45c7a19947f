"""Export pruned graphs to networkx and to the JSON format of circuit-tracer and Neuronpedia."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx

from ..core.atomic_io import write_atomically
from ..core.formatting import escape_invisible
from .attention_scores import SideEffects
from .direct_effects import source_columns
from .graph import AttributionGraph
from .graph_json import bias_node, embedding_node, error_node, feature_node, graph_content, logit_node
from .linearized_model import LinearizedModel
from .targets import RootNode
from .tracer import AttentionTrace, Trace


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
    if trace.attention is not None:
        content |= attention_json(
            trace.attention, trace.model, {node["node_id"] for node in content["nodes"]}
        )
    write_atomically(Path(path), json.dumps(content, indent=2, allow_nan=False).encode())


def attention_json(attention: AttentionTrace, model: LinearizedModel, known: set[str]) -> dict[str, Any]:
    """Returns the keys `qk_tracing_results` and `qk_only_nodes` of a graph JSON.

    Llamascopium writes them, and Neuronpedia's viewer reads them at nodes of attention features, which graphs of
    transcoders do not have. Here `qk_tracing_results` is a list with one object per head edge. It has the edge (layer,
    head, query, key), its score, pattern and contribution, and Llamascopium's three lists of [node id, (node id,)
    effect]. `qk_only_nodes` has the nodes of these lists that are not in the graph, whose ids are `known`.
    """
    others: dict[str, Any] = {}

    def name(source: int) -> str:
        node = _source_node(model, source)
        if node["node_id"] not in known:
            others[node["node_id"]] = node
        return node["node_id"]

    def marginals(side: SideEffects) -> list[list[Any]]:
        pairs = zip(side.source.tolist(), side.effect.tolist(), strict=True)
        return [[name(source), effect] for source, effect in pairs]

    results = [
        {
            **each.edge._asdict(),
            "score": each.score,
            "pattern": each.pattern,
            "contribution": each.contribution,
            "pair_wise_contributors": [
                [name(query), name(key), effect]
                for query, key, effect in zip(*(column.tolist() for column in each.pairs), strict=True)
            ],
            "top_q_marginal_contributors": marginals(each.query),
            "top_k_marginal_contributors": marginals(each.key),
        }
        for each in attention.edges
    ]
    return {"qk_tracing_results": results, "qk_only_nodes": others}


def _source_node(model: LinearizedModel, source: int) -> dict[str, Any]:
    """Returns the viewer's node of a source. `source` is a column of `source_columns(model)`."""
    columns, features = source_columns(model), model.features
    if source < columns.active:
        layer, feature, position = (
            int(each[source]) for each in (features.layer, features.feature, features.position)
        )
        return feature_node(layer, feature, position, float(features.activation[source]), None)
    if source < columns.errors.stop:
        layer, position = divmod(source - columns.errors.start, columns.positions)
        return error_node(layer, position, None)
    if source < columns.embeddings.stop:
        position = source - columns.embeddings.start
        return embedding_node(int(model.captured.token[position]), position, None)
    return bias_node(None if source == columns.constant else source - columns.position_embeddings.start)


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
