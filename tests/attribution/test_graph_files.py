"""Graph files of circuit-tracer and Neuronpedia: their schema, their tensors, and readers of files of others."""

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import torch
from tests.attribution.inputs import PROMPT
from tests.attribution.test_export import make_graph, make_viewer
from tests.models import LAYERS, VOCABULARY

from circuitloom.attribution.graph_json import complete_graph, feature_of, node_ids, read_graph_json
from circuitloom.attribution.graph_pt import _logit_target, graph_tensors, read_graph_pt, write_graph_pt
from circuitloom.config.model_shape import ModelShape

SHAPE = ModelShape(LAYERS, 16, 40, 4, 32, VOCABULARY, key_value_heads=2)
TEXT, NUMBER = {"type": "string"}, {"type": "number"}
TEXTS = {"type": "array", "items": TEXT}
NODE = {
    "node_id": TEXT, "feature": {"type": ["integer", "null"]}, "layer": {"type": ["string", "integer"]},
    "ctx_idx": {"type": "integer"}, "feature_type": TEXT, "jsNodeId": TEXT, "clerp": TEXT,
}  # fmt: skip
OPTIONAL = {"influence": {"type": ["number", "null"]}, "activation": {"type": ["number", "null"]}}


def listed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {
            "type": "object",
            "properties": required | (optional or {}),
            "required": list(required),
        },
    }


# what graph-schema.json of hijohnnylin/neuronpedia requires
METADATA = {"slug": TEXT, "scan": TEXT, "prompt_tokens": TEXTS, "prompt": TEXT}
DETAILS = {"feature_json_base_url": TEXT, "neuronpedia_source_set": TEXT}
SCHEMA = {
    "type": "object",
    "properties": {
        "metadata": {
            "type": "object",
            "properties": {
                **METADATA,
                "feature_details": {"type": "object", "properties": DETAILS},
                "node_threshold": NUMBER,
                "info": {"type": "object", "properties": {"generator": {"type": "object"}}},
            },
            "required": list(METADATA),
        },
        "qParams": {
            "type": "object",
            "properties": {
                "pinnedIds": TEXTS, "supernodes": {"type": "array"}, "linkType": TEXT, "clickedId": TEXT, "sg_pos": TEXT
            },
        },
        "nodes": listed(NODE, OPTIONAL),
        "links": listed({"source": TEXT, "target": TEXT, "weight": NUMBER}),
    },
    "required": ["metadata", "qParams", "nodes", "links"],
}  # fmt: skip


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, Any]:
    graph, model, text, _ = make_graph("llama", tmp_path_factory.mktemp("models"), node_share=0.95)
    return make_viewer(graph, model, text)


def test_a_completed_graph_fits_neuronpedias_schema(content) -> None:
    jsonschema.validate(content, SCHEMA)
    node = next(node for node in content["nodes"] if feature_of(node))
    place, name = feature_of(node), node["node_id"]
    assert place is not None
    details = {"neuronpedia_source_set": "tc"}
    made = complete_graph(content, "a-model", details, {place: "fires on\n<b>"}, {"a group": [name]})
    jsonschema.validate(json.loads(json.dumps(made, allow_nan=False)), SCHEMA)
    assert (made["metadata"]["scan"], made["metadata"]["feature_details"]) == ("a-model", details)
    assert made["qParams"]["supernodes"] == [["a group", name]]
    assert made["qParams"]["pinnedIds"] == [name]
    labelled = {each["node_id"] for each in made["nodes"] if each["clerp"] == "fires on\n<b>"}
    assert labelled == {each["node_id"] for each in content["nodes"] if feature_of(each) == place}
    roots = [each for each in made["nodes"] if each["feature_type"] == "logit"]
    assert [each["clerp"] for each in roots] == [
        each["clerp"] for each in content["nodes"] if each["feature_type"] == "logit"
    ]
    # the graph itself is unchanged
    assert content["qParams"]["pinnedIds"] == [] and "info" not in content["metadata"]


def test_a_supernode_of_other_nodes_is_refused(content) -> None:
    with pytest.raises(ValueError, match="supernode years: the graph has no node 9_9_9"):
        complete_graph(content, supernodes={"years": ["9_9_9"]})


def test_numbers_of_the_node_table_lead_to_ids(content) -> None:
    node = next(node for node in content["nodes"] if feature_of(node))
    layer, feature = feature_of(node) or (0, 0)
    blank = {"in_graph": True, "is_root": False, "layer": None, "feature": None, "position": 0}
    rows = [
        blank
        | {"node": 0, "kind": "feature", "layer": layer, "feature": feature, "position": node["ctx_idx"]},
        blank | {"node": 1, "kind": "embedding", "position": 2},
        blank | {"node": 2, "kind": "constant"},
        blank | {"node": 3, "kind": "logit", "is_root": True, "position": len(PROMPT) - 1},
        blank | {"node": 4, "kind": "feature", "layer": 0, "feature": 10**6},
        blank | {"node": 5, "kind": "head", "in_graph": False},
    ]
    first = next(each["node_id"] for each in content["nodes"] if each["feature_type"] == "logit")
    assert node_ids(rows, content) == {0: node["node_id"], 1: f"E_{PROMPT[2]}_2", 3: first}


def test_the_errors_of_a_layer_are_told_apart_by_every_name(content) -> None:
    errors = [node for node in content["nodes"] if node["feature_type"] == "mlp reconstruction error"]
    assert len(errors) > 1
    assert (
        len({node["jsNodeId"] for node in errors}) == len({node["node_id"] for node in errors}) == len(errors)
    )


def by_hand(content: dict[str, Any]) -> tuple[list[str], int]:
    """Node ids in the order of circuit-tracer's adjacency matrix, and the number of features."""
    features = sorted(
        (int(layer), int(position), int(feature))
        for layer, feature, position in (
            node["node_id"].split("_")
            for node in content["nodes"]
            if node["feature_type"] == "cross layer transcoder"
        )
    )
    names = [f"{layer}_{feature}_{position}" for layer, position, feature in features]
    names += [f"{layer}_-1_{position}" for layer in range(LAYERS) for position in range(len(PROMPT))]
    names += [f"E_{token}_{position}" for position, token in enumerate(PROMPT.tolist())]
    names += [node["node_id"] for node in content["nodes"] if node["feature_type"] == "logit"]
    return names, len(features)


def test_a_pt_file_has_every_link_at_the_place_of_its_nodes(content, tmp_path) -> None:
    file = tmp_path / "graph.pt"
    write_graph_pt(graph_tensors(content, SHAPE, "a/model", "LlamaForCausalLM"), file)
    # circuit-tracer loads without weights_only
    saved = torch.load(file, weights_only=False)
    names, features = by_hand(content)
    weight = {(link["target"], link["source"]): link["weight"] for link in content["links"]}
    adjacency = saved["adjacency_matrix"]
    assert adjacency.shape == (len(names), len(names))
    for target, source in adjacency.nonzero().tolist():
        assert float(adjacency[target, source]) == pytest.approx(weight.pop((names[target], names[source])))
    assert not any(weight.values())
    assert len(saved["selected_features"]) == len(saved["activation_values"]) == features
    places = saved["active_features"][saved["selected_features"]].tolist()
    assert [f"{layer}_{feature}_{position}" for layer, position, feature in places] == names[:features]
    activation = {node["node_id"]: node["activation"] for node in content["nodes"]}
    assert saved["activation_values"].tolist() == pytest.approx(
        [activation[name] for name in names[:features]]
    )
    assert saved["input_tokens"].tolist() == PROMPT.tolist()
    roots = [node for node in content["nodes"] if node["feature_type"] == "logit"]
    # circuit-tracer unpacks a target, and reads its attributes
    for (token, number), target, node in zip(
        saved["logit_targets"], saved["logit_targets"], roots, strict=True
    ):
        assert (target.token_str, target.vocab_idx) == (token, number)
        assert number == node["feature"] and node["clerp"] == f'Output "{token}" (p={node["token_prob"]:.3f})'
    assert saved["logit_probabilities"].tolist() == pytest.approx([node["token_prob"] for node in roots])
    config = saved["cfg"].to_dict()
    assert (config["n_layers"], config["d_head"], config["n_key_value_heads"]) == (LAYERS, 4, 2)
    assert (config["d_vocab"], config["tokenizer_name"]) == (VOCABULARY, "a/model")


def test_a_pt_file_without_pruning_is_read_back_as_the_same_graph(content, tmp_path) -> None:
    file = tmp_path / "a-prompt.pt"
    write_graph_pt(graph_tensors(content, SHAPE, "a/model", "LlamaForCausalLM"), file)
    strings = [f"w{i}" for i in range(VOCABULARY)]
    read = read_graph_pt(file, strings, 1.0, 1.0)
    assert read["metadata"]["prompt_tokens"] == content["metadata"]["prompt_tokens"]
    expected = {node["node_id"]: node for node in content["nodes"]}
    # nodes without influence are pruned
    for node in read["nodes"]:
        known = expected[node["node_id"]]
        for key in ("feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp", "is_target_logit"):
            assert node[key] == known[key]
        for key in ("activation", "token_prob"):
            assert node[key] == pytest.approx(known[key], rel=1e-6)
    weight = {(link["target"], link["source"]): link["weight"] for link in content["links"] if link["weight"]}
    assert {(link["target"], link["source"]): link["weight"] for link in read["links"]} == pytest.approx(
        weight
    )


class FakeTarget(NamedTuple):
    token_str: str
    vocab_idx: int


class FakeConfig:
    def __init__(self) -> None:
        self.n_layers = 1


def save_as(module: str, file: Path, content: dict[str, Any]) -> None:
    """Save `content`; to the file, the classes of this module belong to `module`, which is then gone."""
    foreign = types.ModuleType(module)
    for cls in (FakeTarget, FakeConfig):
        setattr(foreign, cls.__name__, cls)
        cls.__module__ = module
    sys.modules[module] = foreign
    try:
        torch.save(content, file)
    finally:
        del sys.modules[module]
        for cls in (FakeTarget, FakeConfig):
            cls.__module__ = __name__


def small_graph(**changes: Any) -> dict[str, Any]:
    """Two tokens, one layer, features A and B at position 1, one logit: 2 features, 2 errors, 2 tokens, 1 logit."""
    adjacency = torch.zeros(7, 7)
    adjacency[0, 5], adjacency[1, 4] = 4.0, 2.0
    adjacency[6, 0], adjacency[6, 1], adjacency[6, 3] = 3.0, -1.0, 0.5
    return {
        "input_string": "a b",
        "adjacency_matrix": adjacency,
        "cfg": FakeConfig(),
        "active_features": torch.tensor([[0, 0, 9], [0, 1, 5], [0, 1, 7]]),
        "selected_features": torch.tensor([1, 2]),
        "activation_values": torch.tensor([9.0, 1.5, 2.5]),
        "logit_targets": [FakeTarget(" c", 3)],
        "logit_probabilities": torch.tensor([0.75]),
        "vocab_size": 4,
        "input_tokens": torch.tensor([1, 2]),
        "scan_name": ["one", "two"],
        **changes,
    }


def test_a_file_of_classes_that_are_not_installed_is_read_and_pruned_as_circuit_tracer_does(tmp_path) -> None:
    file = tmp_path / "theirs.pt"
    save_as("circuit_tracer_of_others", file, small_graph())
    read = read_graph_pt(file, node_share=0.8, edge_share=0.99)
    # influence, as a share of the logit's 0.75: A and token 1 2/3, B and token 0 2/9, the error 1/9. A, token 1 and B
    # are the first to hold 0.8 of the sum
    assert {node["node_id"] for node in read["nodes"]} == {"0_5_1", "0_7_1", "E_1_0", "E_2_1", "2_3_1"}
    assert {(link["source"], link["target"]): link["weight"] for link in read["links"]} == {
        ("E_2_1", "0_5_1"): 4.0, ("E_1_0", "0_7_1"): 2.0, ("0_5_1", "2_3_1"): 3.0, ("0_7_1", "2_3_1"): -1.0,
    }  # fmt: skip
    by_id = {node["node_id"]: node for node in read["nodes"]}
    assert (by_id["0_5_1"]["activation"], by_id["0_7_1"]["activation"]) == (1.5, 2.5)
    assert by_id["2_3_1"]["clerp"] == 'Output " c" (p=0.750)'
    assert read["metadata"]["prompt_tokens"] == ["⟨#1⟩", "⟨#2⟩"]
    assert read["metadata"]["scan"] == "one, two"


def test_exported_tokens_are_text(content) -> None:
    tokens = ["⟨E4⟩⟨B8⟩⟨AD⟩", "⟨E2⟩⟨9F⟩⟨A8⟩", "⟨E4⟩", *content["metadata"]["prompt_tokens"][3:]]
    named = {**content, "metadata": {**content["metadata"], "prompt_tokens": tokens}}
    named["nodes"] = [
        {**node, "clerp": 'Output "⟨E4⟩⟨B8⟩⟨AD⟩" (p=0.5)' if node["clerp"] else ""}
        for node in content["nodes"]
    ]
    made = complete_graph(named)
    # a byte that is only part of a character keeps its name
    assert made["metadata"]["prompt_tokens"][:3] == ["中", "⟨", "⟨E4⟩"]
    assert {node["clerp"] for node in made["nodes"]} == {'Output "中" (p=0.5)', ""}
    assert named["metadata"]["prompt_tokens"] == tokens


@pytest.mark.parametrize(
    "target", [FakeTarget(" c", 3), (" c", 3), _logit_target(" c", 3)], ids=["theirs", "a pair", "ours"]
)
def test_targets_of_every_kind_are_read(target: Any, tmp_path) -> None:
    file = tmp_path / "graph.pt"
    save_as("circuit_tracer_of_others", file, small_graph(logit_targets=[target]))
    (root,) = [node for node in read_graph_pt(file)["nodes"] if node["feature_type"] == "logit"]
    assert (root["clerp"], root["feature"]) == ('Output " c" (p=0.750)', 3)


def test_older_files_with_ids_alone_are_read(tmp_path) -> None:
    file = tmp_path / "old.pt"
    old = small_graph(logit_targets=torch.tensor([3]), activation_values=torch.tensor([1.5, 2.5]), scan="one")
    del old["scan_name"]
    save_as("circuit_tracer_of_others", file, old)
    read = read_graph_pt(file, ["x", "a", "b", "c"], 1.0, 1.0)
    assert read["metadata"]["scan"] == "one"
    assert {node["clerp"] for node in read["nodes"]} == {"", 'Output "c" (p=0.750)'}
    assert {node["activation"] for node in read["nodes"]} == {None, 1.5, 2.5}


class Payload:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return (self.function, self.arguments)


def make_folder(name: str) -> None:
    Path(name).mkdir()


def test_reading_a_file_runs_no_code_in_it(tmp_path) -> None:
    file, made = tmp_path / "hostile.pt", tmp_path / "made"
    torch.save(small_graph(cfg=Payload(make_folder, str(made)), logit_targets=[(" c", 3)]), file)
    assert read_graph_pt(file, node_share=1.0)["metadata"]["scan"] == "one, two"
    torch.save(small_graph(cfg=Payload(Path.mkdir, made), logit_targets=[(" c", 3)]), file)
    with pytest.raises(ValueError, match="damaged, or reading it would run code"):
        read_graph_pt(file)
    assert not made.exists()
    # the payload works
    torch.load(file, weights_only=False)
    assert made.exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"adjacency_matrix": torch.zeros(6, 7)}, "fits no number of layers"),
        ({"adjacency_matrix": torch.zeros(6, 6)}, "fits no number of layers"),
        ({"adjacency_matrix": torch.full((7, 7), float("nan"))}, "non-finite"),
        ({"adjacency_matrix": torch.zeros(7, 7)}, "no effect reaches a logit"),
        ({"active_features": torch.zeros(1, 3, dtype=torch.int64)}, "not a complete graph"),
        ({"logit_targets": [1]}, "not a complete graph"),
    ],
)
def test_a_damaged_pt_file_is_refused_in_one_line(changes, problem, tmp_path) -> None:
    file = tmp_path / "graph.pt"
    save_as("circuit_tracer_of_others", file, small_graph(**changes))
    with pytest.raises(ValueError, match=problem) as caught:
        read_graph_pt(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path) -> None:
    file = tmp_path / "other.pt"
    for write in (
        lambda: file.write_bytes(b"no"),
        lambda: file.write_bytes(pickle.dumps({"a": 1})),
        lambda: torch.save({"weight": torch.zeros(2)}, file),
        lambda: torch.save(torch.zeros(2), file),
        file.unlink,
    ):
        write()
        with pytest.raises(ValueError, match="name a graph that circuit-tracer saved") as caught:
            read_graph_pt(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda graph: graph.pop("links"), "has no links"),
        (lambda graph: graph["metadata"].pop("prompt_tokens"), "metadata has no prompt_tokens"),
        (lambda graph: graph["nodes"][1].pop("ctx_idx"), "node 1 has no ctx_idx"),
        (lambda graph: graph["nodes"][0].update(ctx_idx=-1), "ctx_idx of node 0 is no position"),
        (lambda graph: graph["nodes"][0].update(node_id=7), "node_id or feature_type of node 0 is no text"),
        (lambda graph: graph["links"][0].pop("weight"), "link 0 has no weight"),
        (lambda graph: graph["links"][0].update(weight=float("nan")), "weight of link 0 is no number"),
    ],
)
def test_graph_json_that_lacks_something_is_refused_in_one_line(change, problem, content, tmp_path) -> None:
    graph = json.loads(json.dumps(content))
    change(graph)
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(graph))
    with pytest.raises(ValueError, match=problem):
        read_graph_json(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_a_file_that_is_no_graph_json_is_refused_in_one_line(text, tmp_path) -> None:
    file = tmp_path / "graph.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="name a graph JSON") as caught:
        read_graph_json(file)
    assert "\n" not in str(caught.value)


def test_graph_json_is_read_as_it_was_written(content, tmp_path) -> None:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(content))
    assert read_graph_json(file) == content
