"""Tracing a prompt from its text: targets, checks, and tables that agree with each other and with the model."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from rich.console import Console
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.models import ARCHITECTURES, CONTEXT
from tokenizers import normalizers

from circuitloom.attribution.drawing import GraphDrawing, draw_graph
from circuitloom.attribution.export import write_graph
from circuitloom.attribution.terminal import print_trace
from circuitloom.attribution.trace_tables import TraceRows
from circuitloom.attribution.tracer import Trace, Tracer, most_traced_run
from circuitloom.config.circuits import (
    Circuits,
    FeatureChange,
    Prompt,
    SubgraphConfig,
    parse_feature,
    parse_target,
)
from circuitloom.core.tables import (
    ATTENTION_SCORE,
    EDGE,
    INTERVENTION,
    NODE,
    PATH,
    SUBGRAPH,
    SUBGRAPH_NODE,
    TRACE,
    read_table,
    write_table,
)
from circuitloom.corpus.tokenizer import load_tokenizer

TEXT = "w9 w20 w31 w9 w44 w20 w17 w12 w60 w31"


def make_tracer(folder: Path, architecture: str = "gpt2", kind: str = "transcoder", **changes) -> Tracer:
    model = load_tiny(architecture, folder)
    tokenizer = load_tokenizer(str(folder / architecture))
    return Tracer(model, tokenizer, "tc", make_dictionaries(model, kind, **changes), CONTEXT)


def trace(folder: Path, target: str = "logits", architecture: str = "gpt2", **keys) -> Trace:
    return make_tracer(folder, architecture).trace(Prompt(text=TEXT, target=target, **keys), Circuits())


TRACED = [
    *((name, "skip transcoder") for name in ARCHITECTURES),
    ("gpt2", "cross-layer"),
    ("neox", "skip cross-layer"),
]


@pytest.fixture(scope="module", params=TRACED, ids=", ".join)
def traced(request, tmp_path_factory) -> tuple[Trace, TraceRows]:
    architecture, kind = request.param
    folder = tmp_path_factory.mktemp(architecture)
    tracer = make_tracer(folder, architecture, kind)
    result = tracer.trace(Prompt(text=TEXT, target="logits"), Circuits())
    return result, TraceRows(result, "war", tracer.strings)


def test_sums_match_the_model_and_frozen_ablations_match_edges(traced):
    checks = traced[0].checks
    assert checks.identity_error < 1e-4 and checks.frozen_error < 1e-4
    assert -1 <= checks.free_correlation <= 1


def test_tables_have_their_schemas_and_refer_to_existing_nodes(traced, tmp_path):
    tables = traced[1].tables()
    names = [
        table.name
        for table in (TRACE, NODE, EDGE, PATH, INTERVENTION, ATTENTION_SCORE, SUBGRAPH, SUBGRAPH_NODE)
    ]
    assert list(tables) == names
    read: dict[str, pa.Table] = {}
    for name, (table, rows) in tables.items():
        write_table(table, rows, tmp_path / f"{name}.parquet")
        read[name] = read_table(tmp_path / f"{name}.parquet")
        # there is no search for subgraphs unless the config asks for it
        assert read[name].num_rows == len(rows) and (len(rows) > 0) == (not name.startswith("subgraph"))
    nodes = read["node"].column("node").to_pylist()
    assert nodes == list(range(len(nodes)))
    used = read["edge"].column("source").to_pylist() + read["edge"].column("target").to_pylist()
    assert set(used) <= {row["node"] for row in read["node"].to_pylist() if row["in_graph"]}
    assert set(read["path"].column("node").to_pylist()) <= set(nodes)
    roots = {row["node"] for row in read["node"].to_pylist() if row["is_root"]}
    assert set(read["intervention"].column("root").to_pylist()) == roots


def test_subgraphs_are_searched_if_the_config_asks_and_printed(tmp_path):
    tracer = make_tracer(tmp_path)
    prompt = Prompt(text=TEXT, target="logit w6 vs w5")
    config = Circuits(subgraph=SubgraphConfig(methods=["influence", "greedy"]))
    result = tracer.trace(prompt, config, groups=lambda model: [[0, 1, 2]])
    rows = TraceRows(result, "war", tracer.strings)
    found, nodes = rows.subgraphs(), list(rows.subgraph_nodes())
    assert [row["method"] for row in found] == ["influence", "greedy"]
    assert result.subgraphs.n_units < len(result.model.features)
    for row in found:
        own = [node for node in nodes if node["method"] == row["method"]]
        assert row["n_features"] == len(own) > 0 and row["n_units"] == len({node["unit"] for node in own})
        assert 0.8 <= row["kept"] <= 1.2 and [node["rank"] for node in own] == list(range(len(own)))
    graph = {node["node"]: node for node in rows.nodes()}
    known = [node for node in nodes if node["node"] is not None]
    assert known and all(
        (graph[node["node"]]["layer"], graph[node["node"]]["feature"], graph[node["node"]]["position"])
        == (node["layer"], node["feature"], node["position"])
        for node in known
    )
    console = Console(width=200, record=True, file=io.StringIO())
    print_trace(result, rows, {}, console)
    text = console.export_text()
    best = result.subgraphs.smallest
    assert "smallest subgraphs that keep 0.8 of the target" in text and f"found by {best.method}" in text
    tables = {
        name: (table, own) for name, (table, own) in rows.tables().items() if name.startswith("subgraph")
    }
    for name, (table, own) in tables.items():
        write_table(table, own, tmp_path / f"{name}.parquet")
        assert read_table(tmp_path / f"{name}.parquet").num_rows == len(own)


def test_a_nodes_value_is_its_edges_plus_its_remainder(traced):
    rows = traced[1]
    nodes = rows.nodes()
    explained = [0.0] * len(nodes)
    for edge in rows.edges():
        explained[edge["target"]] += edge["effect"]
    for node in nodes:
        if node["in_graph"] and node.get("value") is not None:
            assert node["value"] == pytest.approx(explained[node["node"]] + node["remainder"], abs=1e-4)


def test_every_edge_but_those_of_constants_is_measured(traced):
    kinds = {node["node"]: node["kind"] for node in traced[1].nodes()}
    for edge in traced[1].edges():
        measured = edge["effect_frozen"] is not None and edge["effect_free"] is not None
        assert measured == (kinds[edge["source"]] != "constant")


def test_a_path_begins_at_the_first_root_and_ends_in_its_contribution(traced):
    result, rows = traced
    nodes = {node["node"]: node for node in rows.nodes()}
    first = min(number for number, node in nodes.items() if node["is_root"])
    paths: dict[int, list] = {}
    for row in rows.paths():
        paths.setdefault(row["path"], []).append(row)
    assert len(paths) == len(result.paths) - 1
    for number, steps in paths.items():
        assert steps[0]["node"] == first
        assert [step["step"] for step in steps] == list(range(steps[0]["n_steps"] + 1))
        assert steps[-1]["effect"] == pytest.approx(float(result.paths.contribution[number + 1]))
    # sum of the paths that end in a node
    total: dict[int, float] = {}
    for steps in paths.values():
        total[steps[-1]["node"]] = total.get(steps[-1]["node"], 0.0) + steps[-1]["effect"]
    for number, node in nodes.items():
        assert node.get("on_paths") == (pytest.approx(total[number]) if number in total else None)


def test_root_probabilities_are_the_models(tmp_path):
    result = trace(tmp_path)
    model = load_tiny("gpt2", tmp_path)
    token = result.model.captured.token
    chances = model.logits(token[None])[0, -1].softmax(0)
    assert len(result.root_nodes) == 10
    for root in result.root_nodes:
        assert root.weight == pytest.approx(float(chances[root.token_id]), rel=1e-4)
    assert result.root_nodes[0].token_id == int(chances.argmax())


def test_roots_are_the_fewest_logits_that_hold_the_probability(tmp_path):
    result = make_tracer(tmp_path).trace(Prompt(text=TEXT), Circuits(probability=0.05, logits=30))
    weights = [root.weight for root in result.root_nodes]
    assert sum(weights) >= 0.05 > sum(weights[:-1])


def test_a_difference_is_that_of_two_logits(tmp_path):
    result = trace(tmp_path, "logit w17 vs w12 @5")
    model = load_tiny("gpt2", tmp_path)
    logits = model.logits(result.model.captured.token[None])[0, 5]
    root = int((result.graph.node >= result.graph.node.max()).nonzero()[0])
    assert float(result.graph.value[root]) == pytest.approx(float(logits[17] - logits[12]), abs=1e-4)


def test_a_random_feature_is_live_and_the_same_for_a_seed(tmp_path):
    tracer = make_tracer(tmp_path)
    found = [
        tracer.trace(Prompt(text=TEXT, target="random 1 @4"), Circuits(seed=3)).root_nodes[0]
        for _ in range(2)
    ]
    assert found[0] == found[1] and (found[0].layer, found[0].position) == (1, 4)
    place = tracer.linearize(TEXT).features.find(1, 4, found[0].feature)
    assert place is not None


def test_a_graph_of_a_feature_holds_nothing_after_it(tmp_path):
    result = trace(tmp_path, "random 2 @6")
    rows = TraceRows(result, "x", [f"w{i}" for i in range(64)])
    for node in rows.nodes():
        if node["kind"] in ("feature", "error") and not node["is_root"]:
            assert node["layer"] < 2 and node["position"] <= 6


def test_a_bos_in_the_prompt_counts_once_and_is_said(tmp_path):
    tracer = make_tracer(tmp_path)
    plain, written = (
        tracer.trace(Prompt(text=text, target="logit w17"), Circuits()) for text in (TEXT, f"<bos> {TEXT}")
    )
    assert torch.equal(plain.model.captured.token, written.model.captured.token)
    assert torch.equal(plain.graph.effect, written.graph.effect)
    assert plain.notes == ()
    assert written.notes == ("the BOS <bos> at the start of the prompt counts once",)
    ((row,), _) = (TraceRows(written, "x", tracer.strings).tables()[name][1] for name in ("trace", "node"))
    assert row["notes"] == list(written.notes)


def test_the_token_of_an_answer_is_said_where_its_name_is_another(tmp_path):
    tracer = make_tracer(tmp_path)
    tracer.tokenizer.backend.normalizer = normalizers.Lowercase()
    result = tracer.trace(Prompt(text=TEXT, target="logit W17 vs w12"), Circuits())
    assert (result.root_nodes[0].name, result.root_nodes[0].token_id) == ("w17 - w12", 17)
    (note,) = result.notes
    assert note.startswith("the answer 'W17' is the token 'w17' (id 17)")
    console = Console(record=True, width=200)
    print_trace(result, TraceRows(result, "x", tracer.strings), {}, console)
    assert note in console.export_text()


def test_roots_of_the_same_name_stay_apart(tmp_path):
    tracer = make_tracer(tmp_path)
    result = tracer.trace(Prompt(text=TEXT), Circuits(logits=3, probability=1.0))
    rows = TraceRows(result, "x", ["same"] * len(tracer.strings))
    first, *others = [row for row in rows.nodes() if row["is_root"]]
    assert {path["node"] for path in rows.paths() if path["step"] == 0} == {first["node"]}
    assert len(others) == 2


BAD = {
    "feature 1/39 @5": "feature 1/39 fires nowhere in the prompt; features of layer 1 that fire at position 5:",
    "feature 1/99": "layer 1 has features 0 to 39",
    "feature 7/3": "layer 7 has no dictionary; choose from 0, 1, 2",
    "random 1 @0": "no feature fires at position 0",
    "logits @11": "position 11 is outside the prompt of 11 tokens; choose 0 to 10",
    "logits @-12": "position -12 is outside the prompt of 11 tokens",
    "logit zebra": "'zebra' is not a single token of the vocabulary",
    "logit w9 vs zebra": "'zebra' is not a single token of the vocabulary",
}


@pytest.mark.parametrize("target", BAD)
def test_a_missing_target_raises_with_the_remedy(target, tmp_path):
    # a feature that never fires: its bias is far below anything it reads
    tracer = make_tracer(tmp_path)
    tracer.dictionaries[1].b_enc[39] = -1e3
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        tracer.trace(Prompt(text=TEXT, target=target), Circuits())
    assert BAD[target] in str(error.value)


def test_the_error_names_where_a_feature_fires_instead(tmp_path):
    tracer = make_tracer(tmp_path)
    features = tracer.linearize(TEXT).features
    place = next(i for i in range(len(features)) if features.position[i] == 3)
    layer, feature = int(features.layer[place]), int(features.feature[place])
    absent = next(p for p in range(1, 11) if features.find(layer, p, feature) is None)
    with pytest.raises(ValueError, match=rf"does not fire at position {absent}; it fires at .*3"):
        tracer.trace(Prompt(text=TEXT, target=f"feature {layer}/{feature} @{absent}"), Circuits())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "the prompt is empty"),
        ("w5 " * CONTEXT, "the context is 32; shorten it, or set circuits.context"),
    ],
)
def test_an_invalid_prompt_raises(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_tracer(tmp_path).trace(Prompt(text=text), Circuits())


def test_targets_are_read_as_written():
    assert parse_target(" logit ; vs ) ")[:4] == ("difference", -1, ";", ")")
    assert parse_target("logit @")[:3] == ("logit", -1, "@")
    assert parse_target("feature 3/235@-2")[4:] == (3, 235)
    assert parse_target("random 2 @4") == parse_target("random 2@4")
    assert parse_feature("3/7@2") == (3, 7, 2) and parse_feature("3/7").position is None
    for text in ("feature 3", "logit", "nonsense", "3/7"):
        with pytest.raises(ValueError, match="is no target"):
            parse_target(text)
    with pytest.raises(ValueError, match="is no feature"):
        parse_feature("3:7")


def test_a_change_names_what_it_lacks():
    with pytest.raises(ValueError, match="scale needs `strength`"):
        FeatureChange(kind="scale", features=["0/1"])
    with pytest.raises(ValueError, match="patch needs `source`"):
        FeatureChange(kind="patch", features=["0/1"])
    with pytest.raises(ValueError, match="ablate takes no `strength`"):
        FeatureChange(kind="ablate", features=["0/1"], strength=2)


def test_the_figure_is_a_png(traced, tmp_path):
    draw_graph(GraphDrawing.of(traced[1]), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.dumps(traced[1].nodes())


def test_the_viewers_file_holds_all_nodes_but_positions_and_constants(traced, tmp_path):
    result, rows = traced
    write_graph(result, "war", rows.tokens, tmp_path / "graph.json")
    content = json.loads((tmp_path / "graph.json").read_text())
    shown = [row for row in rows.nodes() if row["in_graph"] and row["kind"] not in ("position", "constant")]
    assert len(content["nodes"]) == len(shown) and content["metadata"]["slug"] == "war"


def test_chunks_of_any_size_give_the_same_trace(tmp_path, monkeypatch):
    full = trace(tmp_path)
    monkeypatch.setattr("circuitloom.attribution.direct_effects.MAX_ELEMENTS", 500)
    monkeypatch.setattr("circuitloom.ablation.interventions.CHUNK_ELEMENTS", 500)
    parts = trace(tmp_path)
    assert torch.equal(full.graph.node, parts.graph.node)
    torch.testing.assert_close(full.graph.effect, parts.graph.effect)
    torch.testing.assert_close(full.checks.free, parts.checks.free, atol=1e-4, rtol=1e-4)


def test_the_default_run_is_the_one_that_most_prompts_were_traced_through(tmp_path) -> None:
    assert most_traced_run(tmp_path) is None
    for name, run in (("a", "tc-topk8-64"), ("b", "tc-topk16-64"), ("c", "tc-topk16-64")):
        row = dict.fromkeys(TRACE.columns) | {"trace": name, "run": run}
        (tmp_path / "circuits" / name).mkdir(parents=True)
        write_table(TRACE, [row], tmp_path / "circuits" / name / "trace.parquet")
    assert most_traced_run(tmp_path) == "tc-topk16-64"
