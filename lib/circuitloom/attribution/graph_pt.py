"""Graph files of circuit-tracer (`Graph.to_pt`, `Graph.from_pt`), written from and read to graph JSON.

A file is a dict that torch saved. Its `adjacency_matrix` [target, source] has the features first, then the errors layer
by layer, the token embeddings and the logits. Position embeddings and constants have no place in it.
"""

import functools
import io
from collections import UserList
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..config.model_shape import ModelShape
from ..core.atomic_io import write_atomically
from ..core.errors import first_line
from ..core.torch_files import InertObject, load_torch_file
from ..corpus.token_names import token_name
from .graph import cumulative_share, prune, shares, threshold
from .graph_json import (
    EMBEDDING,
    ERROR,
    FEATURE,
    LOGIT,
    Json,
    embedding_node,
    error_node,
    feature_node,
    feature_of,
    graph_content,
    logit_node,
    output_token,
)

NODE_SHARE, EDGE_SHARE = 0.8, 0.98
"""Shares of influence that circuit-tracer keeps by default when it makes the viewer's JSON."""
_NO_GRAPH = "name a graph that circuit-tracer saved"


def graph_tensors(content: Json, shape: ModelShape, model_name: str, architecture: str) -> dict[str, Any]:
    """Returns the dict that `Graph.from_pt` of circuit-tracer reads.

    `content` is a graph JSON of this project. Its features are the selected features, and all of them are active.
    `model_name` is the folder or hub name from which circuit-tracer loads the tokenizer. `architecture` is the name of
    the model's class in transformers. Raises ValueError if the graph lacks the embedding of a token.
    """
    by_type: dict[str, list[Json]] = {FEATURE: [], ERROR: [], EMBEDDING: [], LOGIT: []}
    for node in content["nodes"]:
        by_type[node["feature_type"]].append(node)
    positions, layers = len(content["metadata"]["prompt_tokens"]), shape.layers
    places = [(*_layer_and_feature(node), node["ctx_idx"], node) for node in by_type[FEATURE]]
    features = sorted(places, key=lambda place: (place[0], place[2], place[1]))
    tokens = {node["ctx_idx"]: int(node["node_id"].split("_")[1]) for node in by_type[EMBEDDING]}
    if missing := sorted(set(range(positions)) - tokens.keys()):
        raise ValueError(f"the graph has no embedding at position {missing[0]}; trace the prompt again")
    errors, embeddings = len(features), len(features) + layers * positions
    index = {node["node_id"]: i for i, (*_, node) in enumerate(features)}
    index |= {n["node_id"]: errors + int(n["layer"]) * positions + n["ctx_idx"] for n in by_type[ERROR]}
    index |= {n["node_id"]: embeddings + n["ctx_idx"] for n in by_type[EMBEDDING]}
    index |= {n["node_id"]: embeddings + positions + i for i, n in enumerate(by_type[LOGIT])}
    size = embeddings + positions + len(by_type[LOGIT])
    adjacency = torch.zeros(size, size)
    for link in content["links"]:
        adjacency[index[link["target"]], index[link["source"]]] = link["weight"]
    return {
        "input_string": content["metadata"]["prompt"],
        "adjacency_matrix": adjacency,
        "cfg": _model_config(shape, model_name, architecture),
        "active_features": torch.tensor(
            [(layer, position, feature) for layer, feature, position, _ in features], dtype=torch.int64
        ).reshape(-1, 3),
        "logit_targets": [_logit_target(output_token(node), node["feature"]) for node in by_type[LOGIT]],
        "logit_probabilities": torch.tensor([node["token_prob"] for node in by_type[LOGIT]]),
        "vocab_size": shape.vocabulary,
        "input_tokens": torch.tensor([tokens[position] for position in range(positions)]),
        "selected_features": torch.arange(len(features)),
        "activation_values": torch.tensor([node["activation"] for *_, node in features], dtype=torch.float32),
        "scan": content["metadata"]["scan"],
    }


def _layer_and_feature(node: Json) -> tuple[int, int]:
    found = feature_of(node)
    assert found is not None
    return found


def _logit_target(token: str, number: int) -> UserList:
    """Returns a pair of token and id that also has the attributes of circuit-tracer's LogitTarget.

    Its class is Python's own, for the reason of `_model_config`.
    """
    target = UserList((token, number))
    vars(target).update(token_str=token, vocab_idx=number)
    return target


def _model_config(shape: ModelShape, model_name: str, architecture: str) -> SimpleNamespace:
    """Returns an object with the method `to_dict`, by which circuit-tracer reads a model's config.

    Its classes are Python's own, so that a file can be loaded with any version of circuit-tracer and transformers.
    """
    config = {
        "n_layers": shape.layers,
        "d_model": shape.d_model,
        "d_head": shape.head_dim or shape.d_model // shape.heads,
        "n_heads": shape.heads,
        "n_key_value_heads": shape.key_value_heads or shape.heads,
        "d_mlp": shape.d_mlp,
        "d_vocab": shape.vocabulary,
        "tokenizer_name": model_name,
        "model_name": model_name,
        "original_architecture": architecture,
        "dtype": torch.float32,
    }
    return SimpleNamespace(**config, to_dict=functools.partial(dict, **config))


def write_graph_pt(tensors: dict[str, Any], file: Path) -> None:
    """Write the result of `graph_tensors` to `file`, completely or not at all."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_atomically(file, buffer.getvalue())


def read_graph_pt(
    file: Path, names: list[str] | None = None, node_share: float = NODE_SHARE, edge_share: float = EDGE_SHARE
) -> Json:
    """Returns the graph in `file` as graph JSON, pruned as circuit-tracer prunes it for its viewer.

    `names[i]` is the text of token id i. Other ids are written ⟨#ID⟩. No code from the file is run. Raises ValueError
    if the file cannot be read, or if it is not a graph.
    """
    content = load_torch_file(file, _NO_GRAPH)
    if not isinstance(content, Mapping) or "adjacency_matrix" not in content:
        raise ValueError(f"{file}: has no adjacency_matrix; {_NO_GRAPH}")
    try:
        return _as_json(file.stem, content, names or [], node_share, edge_share)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{file}: not a complete graph ({first_line(error)}); {_NO_GRAPH}") from error


def _as_json(
    name: str, content: Mapping[str, Any], names: list[str], node_share: float, edge_share: float
) -> Json:
    effects = content["adjacency_matrix"].float()
    tokens, selected = content["input_tokens"].flatten().tolist(), content["selected_features"]
    probabilities = content["logit_probabilities"].float()
    roots, positions, features = len(probabilities), len(tokens), len(selected)
    places = content["active_features"][selected].tolist()
    # older versions store the values of the selected features, newer ones those of all active features
    values = content["activation_values"].float()
    activations = (values if len(values) == features else values[selected]).tolist()
    layers, odd = divmod(len(effects) - features - positions - roots, positions)
    if effects.shape != (len(effects),) * 2 or odd or layers < 0:
        raise RuntimeError(f"adjacency_matrix {list(effects.shape)} fits no number of layers")
    if not bool(effects.isfinite().all()):
        raise RuntimeError("adjacency_matrix has non-finite values")
    first_error, first_token = features, features + layers * positions
    first_root = first_token + positions
    level = torch.zeros(len(effects), dtype=torch.int64)
    level[:features] = torch.tensor([layer + 1 for layer, *_ in places], dtype=torch.int64)
    level[first_root:] = layers + 1
    kept, edges, share = _pruned(effects, level, probabilities, features, first_token, node_share, edge_share)

    def node(i: int) -> Json:
        if i < first_error:
            layer, position, feature = places[i]
            return feature_node(layer, feature, position, activations[i], float(share[i]))
        if i < first_token:
            return error_node(*divmod(i - first_error, positions), float(share[i]))
        if i < first_root:
            position = i - first_token
            return embedding_node(tokens[position], position, float(share[i]))
        rank = i - first_root
        token, number = targets[rank]
        return logit_node(number, token, float(probabilities[rank]), positions - 1, layers, rank == 0)

    targets = _targets(content, names)
    nodes = {i: node(i) for i in kept.tolist()}
    links = [
        {
            "source": nodes[source]["node_id"],
            "target": nodes[target]["node_id"],
            "weight": float(effects[target, source]),
        }
        for target, source in edges.tolist()
    ]
    scan = content.get("scan_name", content.get("scan"))
    texts = [token_name(names, token) for token in tokens]
    scan_text = "" if scan is None else scan if isinstance(scan, str) else ", ".join(map(str, scan))
    return graph_content(
        name, scan_text, str(content["input_string"]), texts, list(nodes.values()), links, node_share
    )


def _pruned(
    effects: Tensor,
    level: Tensor,
    probabilities: Tensor,
    features: int,
    first_token: int,
    node_share: float,
    edge_share: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the kept nodes, the kept edges [edge, (target, source)], and `cumulative_share` of all nodes."""
    every = torch.ones(len(effects), dtype=torch.bool)
    weight = torch.zeros(len(effects))
    weight[-len(probabilities) :] = probabilities
    normalized, reached = shares(effects, every), weight.clone()
    for current in level.unique().flip(0):
        at = level == current
        reached += reached[at] @ normalized[at]
    influence = reached - weight
    if not bool(influence.any()):
        raise RuntimeError("no effect reaches a logit")
    always = torch.arange(len(effects)) >= first_token
    kept = ((influence >= threshold(influence, node_share)) | always).nonzero()[:, 0]
    among = effects[kept[:, None], kept]
    node, edge = prune(
        among,
        level[kept],
        weight[kept],
        every[kept],
        edge_share,
        always=always[kept],
        feature=kept < features,
    )
    return kept[node], kept[edge.nonzero()], cumulative_share(influence)


def _targets(content: Mapping[str, Any], names: list[str]) -> list[tuple[str, int]]:
    """Returns (token, token id) of each logit. Older versions store the ids alone.

    Newer ones store LogitTarget, a named tuple with which its values are given. Pairs of this project have them as
    attributes.
    """
    stored = content["logit_targets"] if "logit_targets" in content else content["logit_tokens"]
    if isinstance(stored, Tensor):
        return [(token_name(names, number), number) for number in stored.flatten().tolist()]
    pairs = [
        (target.given or (vars(target)["token_str"], vars(target)["vocab_idx"]))
        if isinstance(target, InertObject)
        else target
        for target in stored
    ]
    return [(token or token_name(names, int(number)), int(number)) for token, number in pairs]
