"""Why heads read what they read, in a trace: its rows, its graph JSON and what the command line prints."""

import json

import pytest
from rich.console import Console
from tests.attribution.test_tracer import TEXT, make_tracer

from circuitloom.attribution.attention_scores import head_edges
from circuitloom.attribution.export import write_graph
from circuitloom.attribution.graph_json import read_graph_json
from circuitloom.attribution.paths import HEAD
from circuitloom.attribution.terminal import attention_features, print_attention
from circuitloom.attribution.trace_tables import TraceRows
from circuitloom.attribution.tracer import Trace, Tracer, parse_head
from circuitloom.config.circuits import Circuits, Prompt


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> tuple[Tracer, Trace, TraceRows]:
    tracer = make_tracer(tmp_path_factory.mktemp("llama"), "llama")
    trace = tracer.trace(Prompt(text=TEXT, target="logits"), Circuits(attention_pairs=4))
    return tracer, trace, TraceRows(trace, "war", tracer.strings)


def test_head_edges_are_the_heads_of_greedy_paths(traced) -> None:
    paths = traced[1].paths
    edges = head_edges(paths)
    assert len(edges) > 3
    assert sum(edges.values()) == pytest.approx(float(paths.contribution[paths.kind == HEAD].sum()), rel=1e-4)
    for layer, head, query, key in edges:
        assert query >= key
        assert any(
            (int(paths.layer[i]), int(paths.index[i]), int(paths.position[i])) == (layer, head, key)
            and int(paths.position[paths.parent[i]]) == query
            for i in (paths.kind == HEAD).nonzero()[:, 0]
        )


def test_every_head_edge_has_pairs_and_sources_and_some_are_measured(traced) -> None:
    _, trace, written = traced
    rows = list(written.attention_scores())
    for edge in head_edges(trace.paths):
        own = [row for row in rows if (row["layer"], row["head"], row["query"], row["key"]) == tuple(edge)]
        kinds = [row["kind"] for row in own]
        # in layer 0, a query or key is made of one embedding alone
        if edge.layer > 0:
            assert kinds == ["pair"] * 4 + ["query"] * 4 + ["key"] * 4
        assert set(kinds) == {"pair", "query", "key"}
        for row in own:
            assert (row.get("query_source") is None) == (row["kind"] == "key")
            assert (row.get("key_source") is None) == (row["kind"] == "query")
    measured = [row for row in rows if row.get("effect_frozen") is not None]
    assert len(measured) > 10
    for row in measured:
        assert row["effect_frozen"] == pytest.approx(row["effect"], abs=1e-4, rel=1e-4)


def test_a_graph_json_has_llamascopium_s_lists_and_every_node_that_they_name(traced, tmp_path) -> None:
    _, trace, rows = traced
    write_graph(trace, "war", rows.tokens, tmp_path / "graph.json")
    content = read_graph_json(tmp_path / "graph.json")
    known = {node["node_id"] for node in content["nodes"]}
    others = content["qk_only_nodes"]
    assert not known & set(others)
    assert all(node["node_id"] == name for name, node in others.items())
    assert trace.attention is not None
    assert len(content["qk_tracing_results"]) == len(trace.attention.edges) > 3
    for result, each in zip(content["qk_tracing_results"], trace.attention.edges, strict=True):
        assert (result["layer"], result["head"], result["query"], result["key"]) == tuple(each.edge)
        pairs = result["pair_wise_contributors"]
        assert [effect for *_, effect in pairs] == each.pairs.effect.tolist()
        marginals = result["top_q_marginal_contributors"] + result["top_k_marginal_contributors"]
        names = {name for row in (*pairs, *marginals) for name in row[:-1]}
        assert names <= known | set(others)
    assert "constant" in others
    json.dumps(content, allow_nan=False)


def test_the_terminal_shows_a_head_s_pairs_and_sources(traced) -> None:
    tracer, trace, rows = traced
    attention = tracer.attention_of(trace, "1.2@-1,4", 3)
    console = Console(record=True, width=120)
    print_attention(attention, rows, {}, console)
    text = console.export_text()
    assert f"head 1.2 at '{rows.tokens[10]}'₁₀ reads '{rows.tokens[4]}'₄" in text
    assert "query's source" in text and "key's source" in text and "less the mean" in text
    best = attention.edges[0].pairs
    assert f"{float(best.effect[0]):+.3f}" in text and rows.source_name(int(best.query_source[0])) in text


def test_sources_of_a_score_that_are_features_have_their_labels(traced) -> None:
    tracer, trace, rows = traced
    attention = tracer.attention_of(trace, "1.2@-1,4", 3)
    features = attention_features(attention, trace)
    sources = {
        source
        for each in attention.edges
        for column in (each.pairs.query_source, each.pairs.key_source, each.query.source, each.key.source)
        for source in column.tolist()
    }
    active = [source for source in sources if source < len(trace.model.features)]
    found = {
        (int(trace.model.features.layer[source]), int(trace.model.features.feature[source]))
        for source in active
    }
    assert features == found and 0 < len(active) < len(sources)
    console = Console(record=True, width=200)
    print_attention(attention, rows, {place: f"says {place[0]}-{place[1]}" for place in features}, console)
    lines = console.export_text().splitlines()
    for source in active:
        layer, feature = int(trace.model.features.layer[source]), int(trace.model.features.feature[source])
        assert any(f"{rows.source_name(source)} says {layer}-{feature}" in line for line in lines)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("1/0", "is no head; write LAYER.HEAD"),
        ("9.0", "layer 9 does not exist"),
        ("0.9", "head 9 does not exist"),
    ],
)
def test_a_head_that_does_not_exist_is_refused_before_a_prompt_is_traced(traced, head, message) -> None:
    with pytest.raises(ValueError, match=message):
        traced[0].read_head(head)


def test_pairs_that_are_shown_and_all_others_sum_to_the_score(traced) -> None:
    tracer, trace, rows = traced
    attention = tracer.attention_of(trace, "1.2@-1,4", 3)
    console = Console(record=True, width=160)
    print_attention(attention, rows, {}, console)
    [line] = [line for line in console.export_text().splitlines() if "all other pairs" in line]
    [edge] = attention.edges
    assert float(line.split()[-1]) == pytest.approx(edge.score - float(edge.pairs.effect.sum()), abs=1e-3)


def test_without_positions_the_edges_are_those_of_the_circuit(traced) -> None:
    tracer, trace, _ = traced
    edges = head_edges(trace.paths)
    layer, head = next(iter(edges))[:2]
    expected = [edge for edge in edges if edge[:2] == (layer, head)]
    found = tracer.attention_of(trace, f"{layer}.{head}", 2)
    assert [each.edge for each in found.edges] == expected
    assert [each.contribution for each in found.edges] == [edges[edge] for edge in expected]


def test_a_head_that_is_not_written_as_one_raises(traced) -> None:
    assert parse_head("1.0@9,-3") == (1, 0, 9, -3)
    for text in ("1", "1.0@3", "a.b", "1.0@2,3,4"):
        with pytest.raises(ValueError, match=r"is no head; write LAYER.HEAD@QUERY,KEY or LAYER.HEAD"):
            parse_head(text)
    tracer, trace, _ = traced
    with pytest.raises(ValueError, match="head 9 does not exist; choose 0 to 3"):
        tracer.attention_of(trace, "1.9", 2)


def test_no_pairs_leave_the_scores_out(tmp_path) -> None:
    tracer = make_tracer(tmp_path, "gpt2")
    trace = tracer.trace(Prompt(text=TEXT, target="logits"), Circuits(attention_pairs=0))
    assert trace.attention is None
    assert list(TraceRows(trace, "war", tracer.strings).attention_scores()) == []


def test_a_model_whose_scores_cannot_be_attributed_is_traced_with_a_note(tmp_path) -> None:
    tracer = make_tracer(tmp_path, "llama")
    tracer.language_model.attention(1).q_proj.register_forward_hook(lambda _module, _args, y: y.tanh())
    trace = tracer.trace(Prompt(text=TEXT, target="logits"), Circuits())
    assert trace.attention is None
    assert "its queries and keys are not affine" in trace.notes[-1]
