"""Graphs of long prompts: what is left out is bounded and told, and no array grows with the square of the nodes."""

from pathlib import Path

import pytest
import torch
from tests.attribution.inputs import make_linearized
from tests.attribution.test_graph import edges_of, make_roots
from tests.attribution.test_tracer import TEXT, make_tracer
from tests.models import CONTEXT
from torch.utils._python_dispatch import TorchDispatchMode

from circuitloom.attribution import direct_effects, graph
from circuitloom.attribution.direct_effects import source_columns
from circuitloom.attribution.graph import (
    AttributionGraph,
    RowBudget,
    counted_nodes,
    counted_sources,
    shares,
    trace_graph,
)
from circuitloom.attribution.trace_tables import TraceRows
from circuitloom.attribution.tracer import check_context
from circuitloom.config.circuits import Circuits, Prompt

LONG = torch.randint(4, 64, (CONTEXT,), generator=torch.Generator().manual_seed(5))
ARCHITECTURES = ("gpt2", "llama")
SCORES = ("replacement", "completeness", "completeness_strict")


def nodes_of(found: AttributionGraph) -> dict[int, float]:
    return dict(zip(found.node.tolist(), found.influence.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["transcoder", "cross-layer"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_influence_that_is_left_out_bounds_all_errors(architecture, kind, tiny):
    linearized = make_linearized(tiny(architecture), kind, LONG)
    roots = make_roots(linearized)
    total = float(roots.weight.sum())
    full = trace_graph(linearized, roots, 1.0, 1.0)
    assert full.coverage.unfollowed == 0 and full.coverage.rows > 100
    for row_share in (0.95, 0.7, 0.3):
        found = trace_graph(linearized, roots, 1.0, 1.0, row_share)
        unfollowed = found.coverage.unfollowed
        assert 0 < unfollowed <= 1 - row_share + 1e-12 and found.coverage.rows < full.coverage.rows
        assert abs(found.scores.replacement - full.scores.replacement) <= unfollowed + 1e-12
        before, after = nodes_of(full), nodes_of(found)
        for node in after.keys() & before.keys():
            assert -1e-12 <= before[node] - after[node] <= unfollowed * total + 1e-12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_a_partial_graph_are_those_of_the_full_one(architecture, tiny):
    linearized = make_linearized(tiny(architecture), token=LONG)
    roots = make_roots(linearized)
    full, found = trace_graph(linearized, roots, 1.0, 1.0), trace_graph(linearized, roots, 0.9, 1.0, 0.7)
    values = dict(zip(full.node.tolist(), full.value.tolist(), strict=True))
    edges = edges_of(full)
    assert len(found.node) < len(full.node) and len(found.effect) > 100
    for node, value in zip(found.node.tolist(), found.value.tolist(), strict=True):
        assert value == pytest.approx(values.get(node, value), abs=1e-12)
    for edge, effect in edges_of(found).items():
        assert effect == pytest.approx(edges[edge], abs=1e-12)


def test_features_are_left_out_from_the_least_influential_one_in_equal_parts_of_the_layers() -> None:
    budget = RowBudget(0.8, 10.0, 2)
    # 2 of 10 may be left out, 1 in each of two layers
    assert budget.choose(5, torch.tensor([0.6, 4.0, 0.0, 0.5, 3.0, 0.3])).tolist() == [5, 6, 9]
    # 0.8 were left out, so 1.2 remain
    assert budget.choose(0, torch.tensor([0.5, 0.7, 0.6])).tolist() == [1]
    assert budget.coverage.rows == 4 and budget.coverage.unfollowed == pytest.approx(0.19)
    everything = RowBudget(1.0, 10.0, 1)
    assert everything.choose(0, torch.tensor([1e-30, 0.0, 2.0])).tolist() == [0, 2]
    assert everything.coverage.unfollowed == 0


@pytest.mark.parametrize("kept", [(0.8, 0.98), (0.9, 0.8)])
@pytest.mark.parametrize("kind", ["transcoder", "skip cross-layer"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_list_of_edges_gives_the_graph_of_a_matrix(architecture, kind, kept, tiny, monkeypatch):
    linearized = make_linearized(tiny(architecture), kind, LONG)
    roots = make_roots(linearized)
    dense = trace_graph(linearized, roots, *kept)
    monkeypatch.setattr(graph, "DENSE_NODES", 0)
    found = trace_graph(linearized, roots, *kept)
    for name in ("node", "source", "target"):
        assert torch.equal(getattr(found, name), getattr(dense, name)), name
    for name in ("effect", "influence", "value", "size", "remainder"):
        torch.testing.assert_close(getattr(found, name), getattr(dense, name))


@pytest.mark.parametrize("edge_share", [0.98, 0.8])
def test_edges_that_are_dropped_on_the_way_leave_those_that_hold_the_share(edge_share, tiny, monkeypatch):
    linearized = make_linearized(tiny("llama"), token=LONG)
    roots, columns = make_roots(linearized), source_columns(linearized)
    # all roots are always kept
    root = torch.arange(len(columns), len(columns) + len(roots.weight))
    node = torch.cat([torch.arange(0, len(columns), 2), root])
    weight = torch.cat([roots.weight.new_zeros(len(columns)), roots.weight])
    counted = counted_sources(columns)
    arguments = (linearized, roots, node, columns)
    exact = graph.edges_by_row(*arguments, weight, counted, edge_share)
    monkeypatch.setattr(graph, "MAX_EDGES", 50)
    found = graph.edges_by_row(*arguments, weight, counted, edge_share)
    effects, *_ = graph._effects_among(*arguments)
    share, level = shares(effects, counted_nodes(node, counted)), graph._level(linearized, node, columns)
    reached = weight[node].clone()
    for current in level.unique().flip(0):
        reached += reached[level == current] @ share[level == current]
    score = share * reached[:, None]
    for edges in (exact, found):
        own = score[edges.target, edges.source][edges.counted]
        assert edge_share * score.sum() <= own.sum() + 1e-12
        torch.testing.assert_close(edges.effect, effects[edges.target, edges.source])
    n, least = int(found.counted.sum()), int(exact.counted.sum())
    assert 100 < least <= n < 1.5 * least


class LargestArray(TorchDispatchMode):
    """Notes the largest number of elements of an array that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            # views and expanded tensors take no memory of their own
            if isinstance(each, torch.Tensor) and not func.is_view and each._base is None:
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        return result


def largest_array(linearized, row_share: float) -> tuple[int, AttributionGraph]:
    roots = make_roots(linearized)
    with LargestArray() as largest:
        found = trace_graph(linearized, roots, 1.0, 0.5, row_share)
    return largest.elements, found


def test_no_array_has_as_many_elements_as_pairs_of_nodes(tiny, monkeypatch):
    linearized = make_linearized(tiny("llama"), token=LONG)
    columns = source_columns(linearized)
    matrix, full = largest_array(linearized, 1.0)
    assert full.coverage.unfollowed == 0 and matrix > 100_000
    monkeypatch.setattr(graph, "DENSE_NODES", 0)
    monkeypatch.setattr(graph, "MAX_EDGES", 2000)
    monkeypatch.setattr(direct_effects, "MAX_ELEMENTS", 4096)
    elements, found = largest_array(linearized, 0.8)
    assert found.coverage.rows < columns.active
    # the edges that hold half of the scores so far, twice, and a chunk of rows
    assert elements <= 2 * 2000 + 4096 + len(columns) < matrix / 10


def test_a_partial_trace_says_so_in_its_table_and_notes(tmp_path: Path):
    tracer = make_tracer(tmp_path, "llama")
    full = tracer.trace(Prompt(text=TEXT), Circuits())
    partial = tracer.trace(Prompt(text=TEXT), Circuits(rows=0.7, ablated=5))
    assert full.notes == () and len(full.checks.node) > 5
    first, second = partial.notes
    coverage = partial.graph.coverage
    assert f"rows of {coverage.rows} of {len(partial.model.features)} active features" in first
    assert f"{coverage.unfollowed:.2%} of the influence is not followed" in first
    assert second.startswith("5 of ")
    for trace, rows in ((full, None), (partial, coverage.rows)):
        tables = TraceRows(trace, "x", tracer.strings).tables()
        ((row,), edges) = (tables[name][1] for name in ("trace", "edge"))
        assert row["unfollowed"] == trace.graph.coverage.unfollowed and row["n_rows"] == (
            rows or row["n_rows"]
        )
        measured = {edge["source"] for edge in edges if edge["effect_free"] is not None}
        assert measured <= set(trace.checks.node.tolist())
    influence = partial.graph.influence[partial.checks.node]
    others = partial.graph.influence[: len(partial.graph.node) - len(partial.root_nodes)]
    assert influence.min() >= others.sort(descending=True).values[5]
    assert partial.checks.frozen_error < 1e-4 and partial.checks.identity_error < 1e-4


def test_a_context_beyond_the_models_positions_is_refused(tiny):
    model = tiny("llama")
    check_context(model, CONTEXT)
    check_context(model, None)
    with pytest.raises(
        ValueError, match=rf"a context of {CONTEXT + 1} exceeds the model's {CONTEXT}.*lower it"
    ):
        check_context(model, CONTEXT + 1)
