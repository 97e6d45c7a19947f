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
from .linearized_model import LinearizedModel
from .targets import RootNode
from .tracer import Trace

VIEWER_INDEX = "graph-metadata.json"
"""Name of the file that lists the graphs of a folder for circuit-tracer's viewer."""
VIEWER_TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "embedding": "embedding",
    "logit": "logit",
    "target": "logit",
}
"""Maps a node's kind to the viewer's feature_type. Nodes of other kinds are left out of the JSON."""
VIEWER_DEFAULTS = {
    "token_prob": 0.0,
    "is_target_logit": False,
    "run_idx": 0,
    "reverse_ctx_idx": 0,
    "clerp": "",
    "activation": None,
}
"""Default values of a node's fields in the viewer's JSON."""


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
    nodes. Error nodes have the id LAYER_-1_POSITION. circuit-tracer's own id, 0_LAYER_POSITION, can equal the id of a
    feature of layer 0.

    Raises ValueError if `text` and `graph` differ in the number of tokens or roots.
    """
    first = len(graph.node) - len(text.root_nodes)
    written = {}
    for number, (node, share) in enumerate(
        zip(_nodes(graph, model, text), graph.cumulative.tolist(), strict=True)
    ):
        if node["kind"] in VIEWER_TYPES:
            rank = number - first
            own = (
                _viewer_source(node, model) if rank < 0 else _viewer_root(text.root_nodes[rank], rank, model)
            )
            kind = {"ctx_idx": node["position"], "feature_type": VIEWER_TYPES[node["kind"]]}
            written[number] = {**VIEWER_DEFAULTS, **kind, "influence": share, **own}
    links = [
        {"source": written[source]["node_id"], "target": written[target]["node_id"], "weight": effect}
        for source, target, effect in _edges(graph)
        if source in written and target in written
    ]
    metadata = {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(text.tokens),
        "prompt": text.prompt,
        "node_threshold": node_share,
        "schema_version": 1,
    }
    state = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": state, "nodes": list(written.values()), "links": links}


def write_graph(trace: Trace, name: str, tokens: Sequence[str], path: Path | str) -> None:
    """Write the graph of a trace to a JSON file for the viewer. `tokens` are the prompt's tokens as text."""
    text = GraphText(trace.prompt.text, tokens, trace.root_nodes)
    content = viewer_json(trace.graph, trace.model, text, name, trace.run)
    write_atomically(Path(path), json.dumps(content, indent=2, allow_nan=False).encode())


def write_viewer(content: dict[str, Any], folder: Path | str) -> Path:
    """Write the output of `viewer_json` to SLUG.json in a folder that circuit-tracer serves.

    Also adds the graph to the folder's index. Returns the path of SLUG.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = content["metadata"]
    file, index = folder / f"{metadata['slug']}.json", folder / VIEWER_INDEX
    others = json.loads(index.read_text())["graphs"] if index.is_file() else []
    graphs = [other for other in others if other["slug"] != metadata["slug"]] + [metadata]
    write_atomically(file, json.dumps(content, indent=2, allow_nan=False).encode())
    write_atomically(index, json.dumps({"graphs": graphs}, indent=2).encode())
    return file


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


def _viewer_source(node: dict[str, Any], model: LinearizedModel) -> dict[str, Any]:
    """Returns the viewer's fields for a feature, error or embedding."""
    position, layer = node["position"], node.get("layer")
    if node["kind"] == "embedding":
        token = int(model.captured.token[position])
        names = {"node_id": f"E_{token}_{position}", "jsNodeId": f"E_{token}-{position}"}
        return {**names, "feature": position, "layer": "E"}
    feature = node.get("feature", -1)
    names = {"node_id": f"{layer}_{feature}_{position}", "jsNodeId": f"{layer}_{feature}-0"}
    if feature < 0:
        return {**names, "feature": -1, "layer": str(layer)}
    # circuit-tracer numbers features by the Cantor pairing of layer and feature
    number = (layer + feature) * (layer + feature + 1) // 2 + feature
    return {**names, "feature": number, "layer": str(layer), "activation": node["activation"]}


def _viewer_root(root: RootNode, rank: int, model: LinearizedModel) -> dict[str, Any]:
    """Returns the viewer's fields for a root. `rank` is the root's index among the roots."""
    # roots that are not tokens are numbered after the vocabulary
    number = root.token_id if root.kind == "logit" else len(model.captured.unembedding.weight) + rank
    layer = model.layers + 1
    return {
        "node_id": f"{layer}_{number}_{root.position}",
        "jsNodeId": f"L_{number}-{root.position}",
        "feature": number,
        "layer": str(layer),
        "is_target_logit": rank == 0,
        # the viewer parses the probability from clerp
        "clerp": f'Output "{root.name}" (p={root.weight:.3f})',
        "token_prob": root.weight,
        "influence": None,
    }
