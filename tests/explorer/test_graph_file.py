"""Graph files of others in the explorer: rows of the circuit view, notes about what the file lacks, the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.attribution.test_graph_files import small_graph
from tests.explorer.browser import serving, visiting

from circuitloom.attribution.graph_pt import write_graph_pt
from circuitloom.explorer.circuit_view import node_panel
from circuitloom.explorer.graph_file import open_graph

FEATURE, ERROR = "cross layer transcoder", "mlp reconstruction error"


def node(name: str, kind: str, layer: Any, position: int, **rest: Any) -> dict[str, Any]:
    return {"node_id": name, "feature": 0, "layer": layer, "ctx_idx": position, "feature_type": kind,
            "jsNodeId": name, "clerp": "", **rest}  # fmt: skip


def link(source: str, target: str, weight: float) -> dict[str, Any]:
    return {"source": source, "target": target, "weight": weight}


def graph() -> dict[str, Any]:
    """A graph as Neuronpedia saves it: the layer of a node is a text or a number."""
    return {
        "metadata": {"slug": "a-slug", "scan": "gemma", "prompt_tokens": ["<b>", " ⟨E4⟩\n"], "prompt": "<b> x"},
        "qParams": {"pinnedIds": ["0_7_1"], "supernodes": [["a;b", "0_7_1", "1_8_1"], ["gone", "9_9_9"]]},
        "nodes": [
            node("E_1_0", "embedding", "E", 0),
            node("E_2_1", "embedding", "E", 1),
            node("0_7_1", FEATURE, "0", 1, clerp="says <i>hi</i>", influence=0.5, activation=2.0),
            node("1_8_1", FEATURE, 1, 1, activation=1.0),
            node("0_1_0", ERROR, "1", 0),
            node("3_5_1", "logit", "3", 1, clerp='Output " x" (p=0.500)', token_prob=0.5),
            node("h", "lorsa", "1", 1, clerp="a head"),
        ],
        "links": [
            link("E_1_0", "0_7_1", 1.0), link("E_2_1", "0_7_1", -3.0), link("0_7_1", "1_8_1", 2.0),
            link("1_8_1", "3_5_1", 6.0), link("0_1_0", "3_5_1", -1.0), link("h", "3_5_1", 1.0),
            link("nothing", "3_5_1", 5.0),
        ],
    }  # fmt: skip


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph()))
    return path


def test_nodes_and_edges_of_a_file_become_rows_of_the_circuit_view(file) -> None:
    opened = open_graph(file)
    rows = {row["label"]: row for row in opened.circuit.nodes}
    assert set(rows) == {
        "embedding '<b>'@0", "embedding ' ⟨E4⟩\n'@1", "0/7 ' ⟨E4⟩\n'@1", "1/8 ' ⟨E4⟩\n'@1",
        "error 1 '<b>'@0", "logit ' x'@1", "lorsa 1 ' ⟨E4⟩\n'@1 a head",
    }  # fmt: skip
    feature = rows["0/7 ' ⟨E4⟩\n'@1"]
    assert feature["feature_label"] == "says <i>hi</i>"
    assert all(row["feature_label"] is None for row in rows.values() if row is not feature)
    assert (feature["kind"], feature["layer"], feature["feature"], feature["activation"]) == (
        "feature",
        0,
        7,
        2.0,
    )
    root = rows["logit ' x'@1"]
    assert root["is_root"] and (root["probability"], root["token"], root["layer"]) == (0.5, " x", None)
    assert [edge["effect"] for edge in opened.circuit.edges] == [6.0, -3.0, 2.0, 1.0, -1.0, 1.0]
    assert opened.circuit.edges[0]["source"] == "1/8 ' ⟨E4⟩↵'@1"
    assert opened.circuit.edges[2]["source"] == "0/7 ' ⟨E4⟩↵'@1 says <i>hi</i>"
    assert (opened.name, opened.scan, opened.prompt) == ("a-slug", "gemma", "<b> x")


def test_influence_flows_back_along_the_links(file) -> None:
    influence = {row["label"].split(" ")[0]: row["influence"] for row in open_graph(file).circuit.nodes}
    # of the logit's 0.5: 6/8 to 1/8 and from there to 0/7, 1/8 to the error and to the lorsa node
    assert influence["1/8"] == influence["0/7"] == pytest.approx(0.375)
    assert influence["error"] == influence["lorsa"] == pytest.approx(0.0625)
    assert influence["logit"] is None
    embeddings = sorted(
        row["influence"] for row in open_graph(file).circuit.nodes if row["kind"] == "embedding"
    )
    assert embeddings == pytest.approx([0.375 / 4, 0.375 * 3 / 4])


def test_the_cumulative_share_of_the_file_is_kept_and_a_missing_one_is_computed(file) -> None:
    rows = {row["label"].split(" ")[0]: row for row in open_graph(file).circuit.nodes}
    assert rows["0/7"]["cumulative"] == 0.5
    # sum of all influence: 0.375 x 3 + 0.125
    assert rows["1/8"]["cumulative"] == pytest.approx(2 * 0.375 / 1.25)


def test_supernodes_pinned_nodes_and_what_is_left_out_are_told(file) -> None:
    opened = open_graph(file)
    numbers = {row["label"].split(" ")[0]: row["node"] for row in opened.circuit.nodes}
    assert opened.groups == {"a;b": [numbers["0/7"], numbers["1/8"]]}
    assert opened.pinned == ["0/7 ' ⟨E4⟩↵'@1 says <i>hi</i>"]
    assert opened.notes == (
        "1 links lead to nodes that the file does not have; they are left out.",
        "1 members of supernodes are not in the graph.",
    )


def test_ids_that_occur_twice_are_told(tmp_path) -> None:
    content = graph()
    content["nodes"].append(node("0_7_1", ERROR, "7", 1))
    (tmp_path / "twice.json").write_text(json.dumps(content))
    assert "1 nodes have the id of an earlier node" in open_graph(tmp_path / "twice.json").notes[1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda graph: graph["nodes"][2].update(layer="x"), "node 0_7_1 has layer 'x', which is no number"),
        (lambda graph: graph["nodes"].pop(5), "has no node of type logit"),
    ],
)
def test_a_graph_that_cannot_be_drawn_is_refused(change, problem, tmp_path) -> None:
    content, file = graph(), tmp_path / "graph.json"
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem):
        open_graph(file)


def test_the_panel_of_a_node_shows_weights_and_needs_no_study(file) -> None:
    circuit = open_graph(file).circuit
    number = next(row["node"] for row in circuit.nodes if row["label"].startswith("1/8"))
    text = json.dumps(node_panel(None, circuit, number), default=lambda each: each.to_plotly_json())
    assert '"weight"' in text and '"+6"' in text and '"+2"' in text
    assert "frozen" not in text and "feature page" not in text


def test_a_pt_file_says_how_it_was_pruned_and_that_its_tokens_have_no_names(tmp_path) -> None:
    file = tmp_path / "theirs.pt"
    write_graph_pt(small_graph(cfg=None, logit_targets=[(" c", 3)]), file)
    opened = open_graph(file)
    assert "80% of the influence" in opened.notes[0] and "--tokenizer" in opened.notes[1]
    assert {row["kind"] for row in opened.circuit.nodes} == {"feature", "embedding", "logit"}
    assert "0/5 '⟨#2⟩'@1" in {row["label"] for row in opened.circuit.nodes}


def test_the_page_draws_the_graph_and_answers_clicks(file, browser) -> None:
    with serving(open_graph(file)) as address, visiting(browser, address) as visit:
        page = visit.open("/", "#circuit-graph svg")
        assert page.locator("#circuit-graph g.node").count() == 6
        assert page.locator("#circuit-graph g.supernode").count() == 1
        assert "transcoders or model: gemma" in visit.text()
        assert "1 links lead to nodes" in visit.text()
        assert page.locator("nav a").all_inner_texts() == ["Graph"]
        page.locator("#circuit-graph g.supernode").click()
        page.wait_for_selector("#circuit-about h3")
        assert "1/8" in page.inner_text("#circuit-about")
        page.click("#circuit-ungroup")
        page.wait_for_function("() => document.querySelectorAll('#circuit-graph g.node').length === 7")
        visit.settle()
        visit.screenshot("graph-file")
        assert visit.problems == []


def test_other_addresses_have_no_page(file, browser) -> None:
    with serving(open_graph(file)) as address, visiting(browser, address) as visit:
        visit.open("/features", ".error")
        assert "there is no page features" in visit.text()
