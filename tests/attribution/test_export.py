"""Exported graphs hold every node and edge once, with unique names."""

import json
from dataclasses import replace

import networkx
import pytest
import torch
from tests.attribution.inputs import PROMPT, load_tiny, make_linearized
from tests.models import ARCHITECTURES, LAYERS, VOCABULARY

from circuitloom.attribution.direct_effects import source_columns
from circuitloom.attribution.export import GraphText, to_networkx, viewer_json
from circuitloom.attribution.graph import (
    AttributionGraph,
    Roots,
    counted_sources,
    cumulative_share,
    graph_rows,
    influence,
    trace_graph,
)
from circuitloom.attribution.graph_json import write_viewer
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.targets import find_roots
from circuitloom.config.circuits import parse_target
from circuitloom.corpus.prompt_text import AnswerToken

LAST = len(PROMPT) - 1


def make_graph(
    architecture: str, folder, node_share: float = 0.8, target: str = "logits"
) -> tuple[AttributionGraph, LinearizedModel, GraphText, Roots]:
    model = make_linearized(load_tiny(architecture, folder))
    strings = [f"w{i}" for i in range(VOCABULARY)]
    parsed = parse_target(target)
    answers = [
        AnswerToken(strings.index(word), word, None) for word in (parsed.token, parsed.against) if word
    ]
    roots, named = find_roots(model, parsed, strings, answers, logits=3, probability=1.0)
    text = GraphText("the prompt", [strings[i] for i in PROMPT.tolist()], named)
    return trace_graph(model, roots, node_share, 0.98), model, text, roots


def make_viewer(
    graph: AttributionGraph, model: LinearizedModel, text: GraphText, slug: str = "a-prompt"
) -> dict:
    return viewer_json(graph, model, text, slug, "a/run", 0.7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networkx_holds_every_node_and_edge(architecture: str, tmp_path) -> None:
    graph, model, text, _ = make_graph(architecture, tmp_path)
    made = to_networkx(graph, model, text)
    assert (len(made), made.number_of_edges()) == (len(graph.node), len(graph.effect))
    assert networkx.is_directed_acyclic_graph(made)
    for _, target in made.nodes(data=True):
        assert None not in target.values()
    for place in made:
        explained = sum(edge["effect"] for _, _, edge in made.in_edges(place, data=True))
        assert explained + made.nodes[place]["remainder"] == pytest.approx(
            made.nodes[place]["value"], abs=1e-4
        )
    assert made.graph["replacement"] == graph.scores.replacement
    networkx.write_graphml(made, tmp_path / "graph.graphml")


def test_tokens_with_control_characters_can_be_written_as_graphml(tmp_path) -> None:
    graph, model, text, _ = make_graph("gpt2", tmp_path)
    tokens = ["\x00", "\n", "\ufffe", *text.tokens[3:]]
    made = to_networkx(graph, model, replace(text, prompt="a\x00", tokens=tokens))
    networkx.write_graphml(made, tmp_path / "graph.graphml")
    assert {made.nodes[node]["token"] for node in made if made.nodes[node]["kind"] == "embedding"} >= {
        "\\u0000", "↵", "\\ufffe",
    }  # fmt: skip


def test_networkx_nodes_have_attributes_of_their_kind(tmp_path) -> None:
    graph, model, text, _ = make_graph("gpt2", tmp_path)
    made = to_networkx(graph, model, text)
    features = [node for _, node in made.nodes(data=True) if node["kind"] == "feature"]
    assert features
    for node in features:
        place = model.features.find(node["layer"], node["position"], node["feature"])
        assert place is not None
        assert node["activation"] == float(model.features.activation[place])
    kinds = [node["kind"] for _, node in made.nodes(data=True)]
    assert kinds.count("embedding") == kinds.count("position") == len(PROMPT)
    assert (kinds.count("constant"), kinds.count("logit")) == (1, 3)
    logit = next(node for _, node in made.nodes(data=True) if node["kind"] == "logit")
    assert (logit["token"], logit["position"]) == (text.root_nodes[0].name, LAST)
    assert logit["probability"] == text.root_nodes[0].weight


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_viewers_links_are_the_edges_between_its_nodes(architecture: str, tmp_path) -> None:
    graph, model, text, _ = make_graph(architecture, tmp_path, node_share=1.0)
    made = make_viewer(graph, model, text)
    columns = source_columns(model)
    shown = (graph.node < columns.position_embeddings.start) | (graph.node >= len(columns))
    assert len(made["nodes"]) == int(shown.sum())
    names = [node["node_id"] for node in made["nodes"]]
    place = dict(zip(shown.nonzero()[:, 0].tolist(), names, strict=True))
    edges = zip(graph.source.tolist(), graph.target.tolist(), graph.effect.tolist(), strict=True)
    expected = [
        {"source": place[source], "target": place[target], "weight": effect}
        for source, target, effect in edges
        if source in place and target in place
    ]
    assert made["links"] == expected
    assert 0 < len(expected) < len(graph.effect)


def test_a_feature_of_layer_0_and_an_error_have_different_names(tmp_path) -> None:
    graph, model, text, _ = make_graph("neox", tmp_path, node_share=1.0)
    nodes = make_viewer(graph, model, text)["nodes"]
    names = [node["node_id"] for node in nodes]
    errors = [node for node in nodes if node["feature_type"] == "mlp reconstruction error"]
    # circuit-tracer's names for error nodes
    assert {f"0_{node['layer']}_{node['ctx_idx']}" for node in errors} & set(names)
    assert len(set(names)) == len(names)


def test_every_node_has_the_fields_of_the_viewer(tmp_path) -> None:
    graph, model, text, _ = make_graph("llama", tmp_path)
    made = json.loads(json.dumps(make_viewer(graph, model, text), allow_nan=False))
    by_type: dict[str, list[dict]] = {}
    for node in made["nodes"]:
        assert 0 <= node["ctx_idx"] < len(PROMPT)
        by_type.setdefault(node["feature_type"], []).append(node)
    for node in by_type["cross layer transcoder"]:
        layer, feature, position = map(int, node["node_id"].split("_"))
        assert model.features.find(layer, position, feature) is not None
        pairing = (layer + feature) * (layer + feature + 1) // 2 + feature
        assert (node["layer"], node["feature"], node["ctx_idx"]) == (str(layer), pairing, position)
    for node in by_type["mlp reconstruction error"]:
        assert list(map(int, node["node_id"].split("_"))) == [int(node["layer"]), -1, node["ctx_idx"]]
    assert [node["node_id"] for node in by_type["embedding"]] == [
        f"E_{token}_{position}" for position, token in enumerate(PROMPT.tolist())
    ]
    first, *others = by_type["logit"]
    assert first["is_target_logit"] and not any(node["is_target_logit"] for node in others)
    assert first["layer"] == str(LAYERS + 1)
    assert f"(p={text.root_nodes[0].weight:.3f})" in first["clerp"]
    assert [node["feature"] for node in by_type["logit"]] == [root.token_id for root in text.root_nodes]
    assert made["metadata"]["prompt_tokens"] == text.tokens
    assert made["metadata"]["node_threshold"] == 0.7


@pytest.mark.parametrize("target", ["logit w5 vs w6", "random"])
def test_roots_that_are_not_tokens_are_numbered_after_the_vocabulary(target: str, tmp_path) -> None:
    graph, model, text, _ = make_graph("llama", tmp_path, target=target)
    (root,) = (node for node in make_viewer(graph, model, text)["nodes"] if node["feature_type"] == "logit")
    assert root["feature"] == VOCABULARY
    assert text.root_nodes[0].name in root["clerp"]
    (named,) = (
        node for _, node in to_networkx(graph, model, text).nodes(data=True) if node["kind"] == "target"
    )
    assert named["token"] == text.root_nodes[0].name


def test_the_cumulative_share_of_a_node_counts_all_larger_ones(tmp_path) -> None:
    graph, model, _, roots = make_graph("llama", tmp_path)
    columns = source_columns(model)
    weight = torch.cat([torch.zeros(len(columns)), roots.weight])
    full = influence(graph_rows(model, roots), weight, counted_sources(columns), columns.errors).node
    share = cumulative_share(full)
    for node in range(0, len(full), 7):
        if full[node] > 0:
            larger = full[full > full[node]].sum() + full[node]
            assert float(share[node]) == pytest.approx(float(larger / full.sum()), abs=1e-5)
    assert torch.equal(graph.cumulative, share[graph.node])
    # nodes are kept up to the first that reaches the share
    features = graph.node[graph.node < columns.active]
    assert float(share[features].max()) < 0.8 + float(full.max() / full.sum())


def test_a_folder_of_graphs_lists_each_once(tmp_path) -> None:
    graph, model, text, _ = make_graph("llama", tmp_path)
    for slug in ("one", "two", "one"):
        made = make_viewer(graph, model, text, slug)
        file = write_viewer(made, tmp_path / "graphs")
        assert json.loads(file.read_text()) == made
    index = json.loads((tmp_path / "graphs" / "graph-metadata.json").read_text())
    assert [entry["slug"] for entry in index["graphs"]] == ["two", "one"]


def test_the_text_of_another_prompt_raises(tmp_path) -> None:
    graph, model, text, _ = make_graph("llama", tmp_path)
    for other in (
        GraphText("", text.tokens[1:], text.root_nodes),
        GraphText("", text.tokens, text.root_nodes[1:]),
    ):
        with pytest.raises(ValueError, match="pass the text of the graph's prompt"):
            to_networkx(graph, model, other)
