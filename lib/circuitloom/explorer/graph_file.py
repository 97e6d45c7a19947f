"""Reads graph files of circuit-tracer and Neuronpedia for the view of a circuit.

Influence is computed from the links of the file, because graph JSON has only the cumulative share of each node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..attribution.graph_json import (
    EMBEDDING,
    ERROR,
    FEATURE,
    LOGIT,
    Json,
    feature_of,
    output_token,
    read_graph_json,
)
from ..attribution.grouped_graph import graph_flow
from ..catalog.client import Row
from ..core.token_text import escape_name, whole_text
from ..report.graph import node_text
from .circuit_view import CircuitRows

KINDS = {FEATURE: "feature", ERROR: "error", EMBEDDING: "embedding", LOGIT: "logit"}
"""Maps a node's feature_type to its kind in the view. Nodes of other types keep the type as their kind."""
TENSORS = (".pt", ".pth")
"""Suffixes of files that torch saved."""


@dataclass(frozen=True)
class GraphFile:
    """A graph file, as the view of a circuit shows it."""

    name: str
    prompt: str
    scan: str
    """Name of the transcoders, or of the model."""
    circuit: CircuitRows
    groups: Mapping[str, Sequence[int]]
    """Maps the name of each supernode in the file to the numbers of its nodes."""
    pinned: Sequence[str]
    """Labels of the pinned nodes."""
    notes: tuple[str, ...]
    """What the file has that the view cannot show, or shows differently."""


def open_graph(file: Path, tokenizer: Path | None = None) -> GraphFile:
    """Read a graph JSON file, or a graph that circuit-tracer saved (.pt).

    `tokenizer` is the folder of a tokenizer, which names the tokens of a .pt file. Raises ValueError if the file is not
    a graph.
    """
    if file.suffix not in TENSORS:
        return graph_file(read_graph_json(file), file)
    # torch is imported only where a file needs it
    from ..attribution.graph_pt import EDGE_SHARE, NODE_SHARE, read_graph_pt

    names = []
    if tokenizer is not None:
        from ..corpus.tokenizer import load_tokenizer

        names = list(load_tokenizer(str(tokenizer.resolve())).strings())
    note = (
        f"Pruned as circuit-tracer does by default: nodes that hold {NODE_SHARE:.0%} of the influence, and edges that "
        f"hold {EDGE_SHARE:.0%} of their scores."
    )
    missing = (
        () if names else ("The file has no text of its tokens; name a tokenizer with --tokenizer FOLDER.",)
    )
    return graph_file(read_graph_pt(file, names), file, named=bool(names), notes=(note, *missing))


def graph_file(content: Json, file: Path, named: bool = False, notes: tuple[str, ...] = ()) -> GraphFile:
    """Returns the view of a graph. `named` says whether tokens are names as this project writes them.

    Raises ValueError if a node has no layer or position, or if the file has no node of a logit.
    """
    metadata, state = content["metadata"], content["qParams"]
    # a token of others that contains ⟨ must not be read as a byte
    tokens = [token if named else escape_name(token) for token in metadata["prompt_tokens"]]
    numbers: dict[str, int] = {}
    nodes: list[Row] = []
    for node in content["nodes"]:
        if node["node_id"] not in numbers:
            numbers[node["node_id"]] = len(nodes)
            nodes.append(_node_row(len(nodes), node, tokens, file))
    if not any(row["is_root"] for row in nodes):
        raise ValueError(
            f"{file}: has no node of type {LOGIT}, which a graph explains; export the graph again"
        )
    links = [link for link in content["links"] if link["source"] in numbers and link["target"] in numbers]
    edges = [
        _edge_row(nodes, numbers[link["source"]], numbers[link["target"]], float(link["weight"]))
        for link in links
    ]
    _add_influence(nodes, edges)
    edges.sort(key=lambda row: -abs(row["effect"]))
    nodes.sort(key=lambda row: (row["influence"] is None, -(row["influence"] or 0.0)))
    lost, twice = len(content["links"]) - len(links), len(content["nodes"]) - len(nodes)
    if lost:
        notes += (f"{lost:,} links lead to nodes that the file does not have; they are left out.",)
    if twice:
        notes += (
            f"{twice:,} nodes have the id of an earlier node; they are left out, their links lead to it.",
        )
    groups, ungrouped = _groups(state.get("supernodes") or [], numbers)
    if ungrouped:
        notes += (f"{ungrouped:,} members of supernodes are not in the graph.",)
    texts = {row["node"]: node_text(row) for row in nodes}
    return GraphFile(
        name=str(metadata.get("slug") or file.stem),
        prompt=str(metadata.get("prompt", "")),
        scan=str(metadata.get("scan", "")),
        circuit=CircuitRows(nodes, edges, tokens),
        groups=groups,
        pinned=[texts[numbers[name]] for name in state.get("pinnedIds") or [] if name in numbers],
        notes=notes,
    )


def _node_row(number: int, node: Json, tokens: Sequence[str], file: Path) -> Row:
    kind, found = KINDS.get(node["feature_type"], node["feature_type"]), feature_of(node)
    position = int(node["ctx_idx"])
    layer = None if kind in ("embedding", "logit") else _layer(node, file)
    feature = None
    if kind not in ("embedding", "logit", "error"):
        layer, feature = found or (layer, node.get("feature"))
    token = tokens[position] if position < len(tokens) else ""
    clerp = str(node.get("clerp") or "")
    if kind == "logit":
        token, clerp = escape_name(output_token(node)), ""
    place = f"'{whole_text(token)}'@{position}"
    name = f"{layer}/{feature} {place}" if kind == "feature" else f"{kind} {place}"
    if kind not in ("feature", "embedding", "logit"):
        name = f"{kind} {layer} {place}"
    share = node.get("influence")
    return {
        "node": number,
        "label": f"{name} {clerp}" if clerp and kind != "feature" else name,
        "kind": kind,
        "is_root": kind == "logit",
        "run": None,
        "layer": layer,
        "feature": feature,
        "position": position,
        "token": token,
        "activation": node.get("activation"),
        "value": None,
        "influence": None,
        "cumulative": float(share) if isinstance(share, int | float) else None,
        "probability": node.get("token_prob") if kind == "logit" else None,
        "remainder": None,
        "feature_label": clerp if clerp and kind == "feature" else None,
        "label_f1": None,
    }


def _layer(node: Json, file: Path) -> int:
    try:
        return int(node["layer"])
    except (TypeError, ValueError):
        raise ValueError(
            f"{file}: node {node['node_id']} has layer {node['layer']!r}, which is no number"
        ) from None


def _add_influence(nodes: Sequence[Row], edges: Sequence[Row]) -> None:
    """Set the influence of each node on the logits, and `cumulative` where the file has none."""
    influence = graph_flow(nodes, edges).influence
    order = np.argsort(-influence, kind="stable")
    cumulative = np.empty(len(nodes))
    cumulative[order] = influence[order].cumsum() / (influence.sum() or 1.0)
    for row in nodes:
        if not row["is_root"]:
            row["influence"] = float(influence[row["node"]])
            if row["cumulative"] is None:
                row["cumulative"] = float(cumulative[row["node"]])


def _edge_row(nodes: Sequence[Row], source: int, target: int, weight: float) -> Row:
    return {
        "source_node": source,
        "target_node": target,
        "source": node_text(nodes[source]),
        "target": node_text(nodes[target]),
        "effect": weight,
        "effect_frozen": None,
        "effect_free": None,
    }


def _groups(supernodes: Sequence[Any], numbers: Mapping[str, int]) -> tuple[dict[str, list[int]], int]:
    """Returns the nodes of each supernode, and the number of members that are not in the graph.

    A supernode is a list of its name and its node ids.
    """
    groups: dict[str, list[int]] = {}
    missing = 0
    for supernode in supernodes:
        if not isinstance(supernode, list) or not all(isinstance(part, str) for part in supernode):
            missing += 1
            continue
        name, *members = supernode or [""]
        found = [numbers[member] for member in members if member in numbers]
        missing += len(members) - len(found)
        if found:
            groups.setdefault(name or "group", []).extend(found)
    return groups, missing
