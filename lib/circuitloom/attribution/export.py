"""Pruned graphs as others read them: networkx, and the JSON of circuit-tracer's and Neuronpedia's viewer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx

from ..core.atomic_io import replace
from .direct_effects import sources
from .graph import AttributionGraph
from .linearized_model import LinearizedModel
from .targets import Root
from .tracer import Trace

INDEX = "graph-metadata.json"
"""File by which circuit-tracer's viewer finds the graphs of a folder."""
TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "embedding": "embedding",
    "logit": "logit",
    "target": "logit",
}
"""The viewer's names for kinds of nodes."""
USUAL = {
    "token_prob": 0.0,
    "is_target_logit": False,
    "run_idx": 0,
    "reverse_ctx_idx": 0,
    "clerp": "",
    "activation": None,
}
"""What the viewer is told of most nodes."""


@dataclass(frozen=True)
class GraphLabels:
    """What people call the nodes of a prompt's graph."""

    prompt: str
    tokens: Sequence[str]
    """Text of the token at each position."""
    roots: Sequence[Root]
    """What the roots are, in their order."""


def to_networkx(graph: AttributionGraph, model: LinearizedModel, labels: GraphLabels) -> networkx.DiGraph:
    """The graph with plain attributes, edges leading from source to target; nodes are numbered as in `graph.node`.

    Of a node: kind (feature, error, embedding, position, constant; logit or target), what places it (layer, feature,
    position, token), activation or probability, and the graph's value, influence and remainder; a root's token is
    what it is called. Of an edge: effect. Of the graph: prompt and scores. Raises ValueError where labels are of
    another prompt.
    """
    result = networkx.DiGraph(prompt=labels.prompt, **vars(graph.scores))
    columns = (graph.value.tolist(), graph.influence.tolist(), graph.remainder.tolist())
    for place, (node, value, influence, remainder) in enumerate(
        zip(_nodes(graph, model, labels), *columns, strict=True)
    ):
        result.add_node(place, **node, value=value, influence=influence, remainder=remainder)
    for source, target, effect in _edges(graph):
        result.add_edge(source, target, effect=effect)
    return result


def viewer_json(
    graph: AttributionGraph,
    model: LinearizedModel,
    labels: GraphLabels,
    slug: str,
    scan: str,
    node_share: float = 0.8,
) -> dict[str, Any]:
    """The graph as circuit-tracer 0.5 writes it for its viewer: metadata, qParams, nodes, links.

    `slug` names the graph, `scan` the transcoders. Positions and constants, which the viewer does not know, are left
    out. An error is called LAYER_-1_POSITION: circuit-tracer's 0_LAYER_POSITION may be a feature of layer 0 as well.
    Raises ValueError where labels are of another prompt.
    """
    first = len(graph.node) - len(labels.roots)
    written = {}
    for place, (node, share) in enumerate(
        zip(_nodes(graph, model, labels), graph.cumulative.tolist(), strict=True)
    ):
        if node["kind"] in TYPES:
            rank = place - first
            own = _viewer_source(node, model) if rank < 0 else _viewer_root(labels.roots[rank], rank, model)
            kind = {"ctx_idx": node["position"], "feature_type": TYPES[node["kind"]]}
            written[place] = {**USUAL, **kind, "influence": share, **own}
    links = [
        {"source": written[source]["node_id"], "target": written[target]["node_id"], "weight": effect}
        for source, target, effect in _edges(graph)
        if source in written and target in written
    ]
    metadata = {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(labels.tokens),
        "prompt": labels.prompt,
        "node_threshold": node_share,
        "schema_version": 1,
    }
    state = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": state, "nodes": list(written.values()), "links": links}


def write_graph(trace: Trace, name: str, tokens: Sequence[str], path: Path | str) -> None:
    """Write a traced prompt's graph to a file that the viewer reads; `tokens` are the prompt's, as text."""
    labels = GraphLabels(trace.prompt.text, tokens, trace.root)
    content = viewer_json(trace.graph, trace.model, labels, name, trace.run)
    replace(Path(path), json.dumps(content, indent=2, allow_nan=False).encode())


def write_viewer(content: dict[str, Any], folder: Path | str) -> Path:
    """Write what `viewer_json` made into a folder that circuit-tracer serves; the file, named after its slug."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = content["metadata"]
    file, index = folder / f"{metadata['slug']}.json", folder / INDEX
    others = json.loads(index.read_text())["graphs"] if index.is_file() else []
    graphs = [other for other in others if other["slug"] != metadata["slug"]] + [metadata]
    replace(file, json.dumps(content, indent=2, allow_nan=False).encode())
    replace(index, json.dumps({"graphs": graphs}, indent=2).encode())
    return file


def _edges(graph: AttributionGraph) -> list[tuple[int, int, float]]:
    return list(zip(graph.source.tolist(), graph.target.tolist(), graph.effect.tolist(), strict=True))


def _nodes(graph: AttributionGraph, model: LinearizedModel, labels: GraphLabels) -> list[dict[str, Any]]:
    """Kind and place of every node, and what belongs to its kind."""
    columns = sources(model)
    positions, features = columns.positions, model.features
    roots = int((graph.node >= len(columns)).sum())
    if (len(labels.tokens), len(labels.roots)) != (positions, roots):
        raise ValueError(
            f"labels are of {len(labels.tokens)} tokens and {len(labels.roots)} roots, the graph of {positions} and "
            f"{roots}; give those of its prompt"
        )

    def at(kind: str, position: int, **rest: Any) -> dict[str, Any]:
        return {"kind": kind, "position": position, "token": labels.tokens[position], **rest}

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
        if node < columns.learned_positions.stop:
            return at("position", node - columns.learned_positions.start)
        if node == columns.constant:
            return {"kind": "constant"}
        root = labels.roots[node - len(columns)]
        named = {"position": root.position, "token": root.label, "probability": root.weight}
        if root.kind == "feature":
            named |= {"layer": root.layer, "feature": root.feature}
        return {"kind": "logit" if root.kind == "logit" else "target", **named}

    return [describe(node) for node in graph.node.tolist()]


def _viewer_source(node: dict[str, Any], model: LinearizedModel) -> dict[str, Any]:
    """What the viewer is told of a feature, error or embedding; of its names it only asks that they differ."""
    position, layer = node["position"], node.get("layer")
    if node["kind"] == "embedding":
        token = int(model.frozen.token[position])
        names = {"node_id": f"E_{token}_{position}", "jsNodeId": f"E_{token}-{position}"}
        return {**names, "feature": position, "layer": "E"}
    feature = node.get("feature", -1)
    names = {"node_id": f"{layer}_{feature}_{position}", "jsNodeId": f"{layer}_{feature}-0"}
    if feature < 0:
        return {**names, "feature": -1, "layer": str(layer)}
    # Cantor's pairing: a number for each layer and feature
    number = (layer + feature) * (layer + feature + 1) // 2 + feature
    return {**names, "feature": number, "layer": str(layer), "activation": node["activation"]}


def _viewer_root(root: Root, rank: int, model: LinearizedModel) -> dict[str, Any]:
    """What the viewer is told of a root."""
    # what is no token has a number behind those of tokens
    number = root.token_id if root.kind == "logit" else len(model.frozen.unembedding.weight) + rank
    layer = model.layers + 1
    return {
        "node_id": f"{layer}_{number}_{root.position}",
        "jsNodeId": f"L_{number}-{root.position}",
        "feature": number,
        "layer": str(layer),
        "is_target_logit": rank == 0,
        # the viewer takes the probability from the label
        "clerp": f'Output "{root.label}" (p={root.weight:.3f})',
        "token_prob": root.weight,
        "influence": None,
    }
