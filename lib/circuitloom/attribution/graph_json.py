"""Graph JSON of circuit-tracer's and Neuronpedia's viewers: its nodes, its reader, and what an export adds to a graph.

The schema is apps/webapp/app/api/graph/graph-schema.json of hijohnnylin/neuronpedia.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.atomic_io import write_atomically
from ..core.errors import first_line
from ..core.token_text import whole_text

Json = dict[str, Any]
VIEWER_INDEX = "graph-metadata.json"
"""Name of the file that lists the graphs of a folder for circuit-tracer's viewer."""
FEATURE, ERROR, EMBEDDING, LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
"""Values of a node's `feature_type`. The first one is also that of per-layer transcoders and of SAEs."""
NODE_DEFAULTS: Json = {
    "token_prob": 0.0,
    "is_target_logit": False,
    "run_idx": 0,
    "reverse_ctx_idx": 0,
    "clerp": "",
    "activation": None,
}
"""Default values of a node's fields."""
NODE_FIELDS = ("node_id", "layer", "ctx_idx", "feature_type")
"""Fields without which a node cannot be placed."""
LINK_FIELDS = ("source", "target", "weight")
_FEATURE_ID = re.compile(r"(\d+)_(\d+)_(\d+)")
_OUTPUT = re.compile(r'Output "(.*)" \(p=[0-9.eE+-]+\)', re.DOTALL)
_NO_GRAPH = "name a graph JSON of circuit-tracer or Neuronpedia"


def feature_node(layer: int, feature: int, position: int, activation: float, influence: float | None) -> Json:
    """Returns the node of a feature. `influence` is the node's `cumulative_share`."""
    # circuit-tracer numbers features by the Cantor pairing of layer and feature
    number = (layer + feature) * (layer + feature + 1) // 2 + feature
    return {
        **_node(
            FEATURE, position, f"{layer}_{feature}_{position}", f"{layer}_{feature}-0", number, str(layer)
        ),
        "influence": influence,
        "activation": activation,
    }


def error_node(layer: int, position: int, influence: float | None) -> Json:
    """Returns an error node. Its id is LAYER_-1_POSITION. circuit-tracer's own, 0_LAYER_POSITION, can equal the id of a
    feature of layer 0."""
    # the viewer treats nodes with one jsNodeId as one feature, so the position is part of it
    names = (f"{layer}_-1_{position}", f"{layer}_-1-{position}")
    return {**_node(ERROR, position, *names, -1, str(layer)), "influence": influence}


def embedding_node(token: int, position: int, influence: float | None) -> Json:
    """Returns the node of a token embedding. `token` is the token id."""
    names = (f"E_{token}_{position}", f"E_{token}-{position}")
    return {**_node(EMBEDDING, position, *names, position, "E"), "influence": influence}


def logit_node(number: int, token: str, probability: float, position: int, layers: int, first: bool) -> Json:
    """Returns the node of a root. `number` is a token id, or is counted after the vocabulary if the root is no token.

    `layers` is the model's number of layers. `first` says whether the root is the first one.
    """
    layer = layers + 1
    names = (f"{layer}_{number}_{position}", f"L_{number}-{position}")
    return {
        **_node(LOGIT, position, *names, number, str(layer)),
        "is_target_logit": first,
        # the viewer parses the probability from clerp
        "clerp": f'Output "{token}" (p={probability:.3f})',
        "token_prob": probability,
        "influence": None,
    }


def _node(kind: str, position: int, name: str, script_name: str, feature: int, layer: str) -> Json:
    own = {"node_id": name, "jsNodeId": script_name, "feature": feature, "layer": layer}
    return {**NODE_DEFAULTS, "ctx_idx": position, "feature_type": kind, **own}


def bias_node(position: int | None, layer: str = "E") -> Json:
    """Returns a node of Llamascopium's kind `bias`, for the constant (position None) or a position embedding.

    Such nodes are no nodes of a graph, but sources of attention scores.
    """
    name = "constant" if position is None else f"position_{position}"
    return _node("bias", position or 0, name, name, -1, layer)


def graph_content(
    slug: str,
    scan: str,
    prompt: str,
    tokens: Sequence[str],
    nodes: Sequence[Json],
    links: Sequence[Json],
    share: float,
) -> Json:
    """Returns a graph with no pinned nodes. The viewer shows the nodes that together hold `share` of the influence."""
    metadata = {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(tokens),
        "prompt": prompt,
        "node_threshold": share,
        "schema_version": 1,
    }
    state = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": state, "nodes": list(nodes), "links": list(links)}


def complete_graph(
    content: Json,
    scan: str | None = None,
    details: Mapping[str, str] | None = None,
    labels: Mapping[tuple[int, int], str] | None = None,
    supernodes: Mapping[str, Sequence[str]] | None = None,
) -> Json:
    """Returns the graph with what a viewer elsewhere needs, and with tokens as text. `content` is unchanged.

    `scan` names the transcoders, or for Neuronpedia the model. `details` says where the viewer finds the features:
    `feature_json_base_url` or `neuronpedia_source_set`. `labels` maps (layer, feature) to a label, which becomes the
    node's `clerp`. `supernodes` maps the name of a supernode to its node ids, which become pinned nodes too. Raises
    ValueError if a supernode has a node that is not in the graph.
    """
    generator = {"name": "circuitloom", "version": version("circuitloom")}
    tokens = [whole_text(token) for token in content["metadata"]["prompt_tokens"]]
    metadata = {**content["metadata"], "prompt_tokens": tokens, "info": {"generator": generator}}
    if scan is not None:
        metadata["scan"] = scan
    if details:
        metadata["feature_details"] = dict(details)
    names = {node["node_id"] for node in content["nodes"]}
    for group, members in (supernodes or {}).items():
        if missing := [member for member in members if member not in names]:
            raise ValueError(
                f"supernode {group}: the graph has no node {missing[0]}; name nodes of the graph"
            )
    state = dict(content["qParams"])
    if supernodes:
        state["supernodes"] = [[group, *members] for group, members in supernodes.items()]
        pinned = [*state["pinnedIds"], *(member for members in supernodes.values() for member in members)]
        state["pinnedIds"] = list(dict.fromkeys(pinned))
    nodes = [
        {**node, "clerp": (labels or {}).get(feature_of(node) or (-1, -1), whole_text(node["clerp"]))}
        for node in content["nodes"]
    ]
    return {**content, "metadata": metadata, "qParams": state, "nodes": nodes}


def feature_of(node: Json) -> tuple[int, int] | None:
    """Returns (layer, feature) of the node of a feature. Returns None for other nodes, and for ids of another form."""
    found = _FEATURE_ID.fullmatch(node["node_id"])
    return (int(found[1]), int(found[2])) if found and node["feature_type"] == FEATURE else None


def output_token(node: Json) -> str:
    """Returns the token of a logit, which the label of the node quotes."""
    found = _OUTPUT.fullmatch(node.get("clerp") or "")
    return found[1] if found else node.get("clerp") or str(node.get("feature", ""))


def read_graph_json(file: Path) -> Json:
    """Returns the content of a graph JSON file: the keys metadata, qParams, nodes and links.

    Raises ValueError if the file is not a graph, or if it lacks what is needed to draw it.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file}: file not found; {_NO_GRAPH}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({first_line(error)}); {_NO_GRAPH}") from None
    if problem := _problem(content):
        raise ValueError(f"{file}: {problem}; {_NO_GRAPH}")
    state = content.get("qParams")
    return {**content, "qParams": state if isinstance(state, dict) else {}}


def _problem(content: Any) -> str | None:
    """Returns what keeps a parsed file from being a graph, or None."""
    if not isinstance(content, dict):
        return "holds no object"
    for key, kind in (("metadata", dict), ("nodes", list), ("links", list)):
        if not isinstance(content.get(key), kind):
            return f"has no {key}"
    tokens = content["metadata"].get("prompt_tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return "metadata has no prompt_tokens"
    problems = itertools.chain(
        (_node_problem(f"node {number}", node) for number, node in enumerate(content["nodes"])),
        (_link_problem(f"link {number}", link) for number, link in enumerate(content["links"])),
    )
    return next(filter(None, problems), None)


def _node_problem(name: str, node: Any) -> str | None:
    missing = [field for field in NODE_FIELDS if not isinstance(node, dict) or field not in node]
    if missing:
        return f"{name} has no {missing[0]}"
    if not isinstance(node["node_id"], str) or not isinstance(node["feature_type"], str):
        return f"node_id or feature_type of {name} is no text"
    if not isinstance(node["ctx_idx"], int) or node["ctx_idx"] < 0:
        return f"ctx_idx of {name} is no position"
    return None


def _link_problem(name: str, link: Any) -> str | None:
    missing = [field for field in LINK_FIELDS if not isinstance(link, dict) or field not in link]
    if missing:
        return f"{name} has no {missing[0]}"
    if not isinstance(link["weight"], int | float) or not math.isfinite(link["weight"]):
        return f"weight of {name} is no number"
    return None


def write_viewer(content: Json, folder: Path | str) -> Path:
    """Write a graph to SLUG.json in a folder that circuit-tracer serves.

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


def node_ids(rows: Sequence[Mapping[str, Any]], content: Json) -> dict[int, str]:
    """Maps the number of each node to its id in `content`. Leaves out nodes that are not in it.

    `rows` are the rows of the table `node` of the trace from which the graph was exported.
    """
    embeddings = {
        node["ctx_idx"]: node["node_id"] for node in content["nodes"] if node["feature_type"] == EMBEDDING
    }
    roots = [node["node_id"] for node in content["nodes"] if node["feature_type"] == LOGIT]
    known = {node["node_id"] for node in content["nodes"]}
    found: dict[int, str] = {}
    for row in rows:
        if not row["in_graph"]:
            continue
        if row["is_root"]:
            found[row["node"]] = roots.pop(0)
        elif row["kind"] == "embedding":
            found[row["node"]] = embeddings[row["position"]]
        elif row["kind"] in ("feature", "error"):
            feature = -1 if row["kind"] == "error" else row["feature"]
            found[row["node"]] = f"{row['layer']}_{feature}_{row['position']}"
    return {number: name for number, name in found.items() if name in known}
