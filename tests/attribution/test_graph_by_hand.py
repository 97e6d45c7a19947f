"""Shares, influence, scores and pruning of a small network, computed by hand.

Five features on three layers, two errors, two embeddings, two positions, a constant and two logits, A and B:

    f0 (layer 0) = 3 E0 + 1 E1 + 2 constant
    f1 (layer 0) = 2 E1 + 5 P0
    f2 (layer 1) = 2 f0 - 1 f1 - 1 e0
    f3 (layer 1) = 4 f1 - 4 e0 + 7 constant
    f4 (layer 2) = 3 f2 - 1 f3 + 4 e1
    A            = 5 f4 + 3 f0 - 2 e1 + 1 P1
    B            = -1 f3 - 1 f2 + 2 E1

with weights 3/4 and 1/4. Numbers below are in 2560ths if that makes them integers.
"""

from types import SimpleNamespace

import pytest
import torch

from circuitloom.attribution import graph
from circuitloom.attribution.direct_effects import AttributionTargets, SourceColumns
from circuitloom.attribution.graph import (
    Roots,
    counted_nodes,
    counted_sources,
    influence,
    prune,
    scores,
    shares,
    threshold,
    trace_graph,
)
from circuitloom.attribution.linearized_model import ActiveFeatures, LinearizedModel

NAMES = ("f0", "f1", "f2", "f3", "f4", "e0", "e1", "E0", "E1", "P0", "P1", "constant", "A", "B")
EFFECTS = {
    "f0": {"E0": 3, "E1": 1, "constant": 2},
    "f1": {"E1": 2, "P0": 5},
    "f2": {"f0": 2, "f1": -1, "e0": -1},
    "f3": {"f1": 4, "e0": -4, "constant": 7},
    "f4": {"f2": 3, "f3": -1, "e1": 4},
    "A": {"f4": 5, "f0": 3, "e1": -2, "P1": 1},
    "B": {"f3": -1, "f2": -1, "E1": 2},
}
LAYERS = (("A", "B"), ("f4",), ("f2", "f3"), ("f0", "f1"))
"""Targets, from the end of the model to its beginning."""
COLUMNS = SourceColumns(active=5, layers=1, positions=2)
COUNTED = counted_sources(COLUMNS)
REACHED = {"f4": 960, "f3": 280, "f2": 520, "f1": 270, "f0": 836, "e0": 270, "e1": 864, "E0": 627, "E1": 799}
"""Influence, in 2560ths, target by target:
f4 = 3/4 * 5/10                           = 960/2560
f3 = 1/4 * 1/4 + f4 * 1/8 = 160 + 120     = 280
f2 = 1/4 * 1/4 + f4 * 3/8 = 160 + 360     = 520
f1 = f2 * 1/4 + f3 * 1/2  = 130 + 140     = 270
f0 = 3/4 * 3/10 + f2 * 1/2 = 576 + 260    = 836
e0 = f2 * 1/4 + f3 * 1/2                  = 270
e1 = 3/4 * 2/10 + f4 * 1/2 = 384 + 480    = 864
E0 = f0 * 3/4                             = 627
E1 = f0 * 1/4 + f1 + 1/4 * 1/2 = 209 + 270 + 320 = 799
"""


def matrix(effects: dict[str, dict[str, int]], names: tuple[str, ...] = NAMES) -> torch.Tensor:
    """[target, source], of nodes by nodes."""
    result = torch.zeros(len(names), len(names), dtype=torch.float64)
    for target, sources in effects.items():
        for source, effect in sources.items():
            result[names.index(target), names.index(source)] = effect
    return result


def vector(values: dict[str, float], names: tuple[str, ...] = NAMES) -> torch.Tensor:
    return torch.tensor([values.get(name, 0.0) for name in names], dtype=torch.float64)


def make_rows(left_out: list[str]):
    """The network's rows, layer by layer; nodes that are not reached are skipped and appended to `left_out`."""
    effects = matrix(EFFECTS)[:, : len(COLUMNS)]

    def rows(reached):
        for layer in LAYERS:
            wanted = [name for name in layer if reached[NAMES.index(name)] > 0]
            left_out.extend(name for name in layer if name not in wanted)
            nodes = torch.tensor([NAMES.index(name) for name in wanted], dtype=torch.int64)
            yield nodes, effects[nodes]

    return rows


WEIGHT = vector({"A": 3 / 4, "B": 1 / 4})
EXACT = {"atol": 1e-15, "rtol": 1e-14}


def full_influence():
    return influence(make_rows([]), WEIGHT, COUNTED, COLUMNS.errors)


def test_columns_are_ordered_as_documented():
    assert NAMES[: COLUMNS.active] == ("f0", "f1", "f2", "f3", "f4")
    assert NAMES[COLUMNS.errors] == ("e0", "e1")
    assert NAMES[COLUMNS.embeddings] == ("E0", "E1")
    assert NAMES[COLUMNS.position_embeddings] == ("P0", "P1")
    assert NAMES[COLUMNS.constant] == "constant" and len(COLUMNS) == 12
    assert COUNTED.tolist() == [True] * 9 + [False] * 3


def test_shares_are_of_absolute_effects_without_positions_and_constants():
    result = shares(matrix(EFFECTS)[:, : len(COLUMNS)], COUNTED)
    expected = {
        "f0": {"E0": 3 / 4, "E1": 1 / 4},
        "f1": {"E1": 1},
        "f2": {"f0": 1 / 2, "f1": 1 / 4, "e0": 1 / 4},
        "f3": {"f1": 1 / 2, "e0": 1 / 2},
        "f4": {"f2": 3 / 8, "f3": 1 / 8, "e1": 1 / 2},
        "A": {"f4": 5 / 10, "f0": 3 / 10, "e1": 2 / 10},
        "B": {"f3": 1 / 4, "f2": 1 / 4, "E1": 1 / 2},
    }
    torch.testing.assert_close(result, matrix(expected)[:, : len(COLUMNS)], **EXACT)


def test_shares_of_a_target_without_counted_sources_are_zero():
    effects = torch.tensor([[0.0, 0.0, 5.0], [1.0, -3.0, 7.0]])
    result = shares(effects, torch.tensor([True, True, False]))
    assert result.tolist() == [[0, 0, 0], [0.25, 0.75, 0]]


def test_influence_matches_the_hand_computation():
    expected = vector({name: value / 2560 for name, value in REACHED.items()})
    torch.testing.assert_close(full_influence().node, expected, **EXACT)


def test_influence_of_tokens_and_errors_sums_to_one():
    node = full_influence().node
    assert float(node[COLUMNS.embeddings].sum() + node[COLUMNS.errors].sum()) == pytest.approx(1, abs=1e-15)


def test_error_shares_match_the_hand_computation():
    expected = vector({"f2": 1 / 4, "f3": 1 / 2, "f4": 1 / 2, "A": 1 / 5})
    torch.testing.assert_close(full_influence().error_share, expected, **EXACT)


def test_back_substitution_equals_the_power_series():
    share = shares(matrix(EFFECTS), counted_nodes(torch.arange(len(NAMES)), COUNTED))
    term, series = WEIGHT @ share, torch.zeros_like(WEIGHT)
    for _ in range(4):
        series, term = series + term, term @ share
    assert not term.any(), "no path has more than four edges"
    torch.testing.assert_close(full_influence().node, series, **EXACT)


def test_rows_of_unreached_features_may_be_skipped():
    left_out: list[str] = []
    weight = vector({"B": 1.0})
    result = influence(make_rows(left_out), weight, COUNTED, COLUMNS.errors)
    # B alone: f3 = f2 = 1/4, E1 = 1/2 so far; f1 = 1/16 + 1/8, f0 = 1/8, e0 = 1/16 + 1/8
    expected = {"f3": 1 / 4, "f2": 1 / 4, "f1": 3 / 16, "f0": 1 / 8, "e0": 3 / 16, "E0": 3 / 32}
    # E1 = 1/2 + f0/4 + f1
    expected["E1"] = 1 / 2 + 1 / 32 + 3 / 16
    torch.testing.assert_close(result.node, vector(expected), **EXACT)
    assert left_out == ["A", "f4"]


def test_scores_match_the_hand_computation():
    result = scores(full_influence(), WEIGHT, COLUMNS.errors, COLUMNS.embeddings)
    tokens, errors = 627 + 799, 270 + 864
    assert result.replacement == pytest.approx(tokens / (tokens + errors), rel=1e-14)
    # sum of influence and weight: features 2866, errors 1134, embeddings 1426, logits 2560
    reached = 2866 + errors + tokens + 2560
    # f2: 520/4, f3: 280/2, f4: 960/2, A: 1920/5
    unexplained = 130 + 140 + 480 + 384
    assert result.completeness == pytest.approx((reached - unexplained) / reached, rel=1e-14)
    # error nodes count as unexplained
    assert result.completeness_strict == pytest.approx((reached - unexplained - errors) / reached, rel=1e-14)


def test_the_threshold_is_the_value_at_which_the_share_is_reached():
    values = torch.tensor([1.0, 4.0, 1.0, 2.0], dtype=torch.float64)
    assert [threshold(values, share) for share in (0.4, 0.5, 0.51, 0.75, 0.76, 1.0)] == [4, 4, 2, 2, 1, 1]
    # in 2560ths of a sum of 5426: 960 + 864 + 836 + 799 + 627 = 4086 < 0.8 * 5426 = 4340.8 < 4086 + 520
    assert threshold(full_influence().node, 0.8) == pytest.approx(520 / 2560, rel=1e-14)


def make_model() -> LinearizedModel:
    """The parts of a linearized model that `trace_graph` uses, apart from rows."""
    model = object.__new__(LinearizedModel)
    zeros = torch.zeros(5, dtype=torch.int64)
    model.features = ActiveFeatures(
        torch.tensor([0, 0, 1, 1, 2]), zeros, torch.arange(5), torch.ones(5, dtype=torch.float64)
    )
    model.captured = SimpleNamespace(layers=[None] * 3, position_embedding=torch.zeros(2, 1))  # type: ignore[assignment]
    model.dictionaries = dict.fromkeys(range(3))  # type: ignore[assignment]
    return model


@pytest.fixture
def trace(monkeypatch):
    """Function (node_share, edge_share) -> the network's pruned graph."""
    monkeypatch.setattr(graph, "source_columns", lambda _model: COLUMNS)
    monkeypatch.setattr(graph, "graph_rows", lambda _model, _roots, _budget=None: make_rows([]))
    nothing = torch.zeros(2, dtype=torch.float64)
    targets = AttributionTargets(
        3,
        torch.tensor([1, 1]),
        nothing[:, None],
        constant=nothing,
        normed_vector=nothing[:, None],
        bias=nothing,
    )
    roots = Roots(targets, WEIGHT[-2:])
    return lambda node_share, edge_share: trace_graph(make_model(), roots, node_share, edge_share)


def edges_of(result) -> dict[tuple[str, str], float]:
    """(target, source) to effect."""
    names = [NAMES[i] for i in result.node.tolist()]
    columns = (result.target.tolist(), result.source.tolist(), result.effect.tolist())
    return {(names[t], names[s]): effect for t, s, effect in zip(*columns, strict=True)}


def names_of(result) -> list[str]:
    return [NAMES[i] for i in result.node.tolist()]


ALWAYS = ["E0", "E1", "P0", "P1", "constant", "A", "B"]
UNCOUNTED = {("f0", "constant"): 2.0, ("A", "P1"): 1.0}


def test_nodes_that_hold_the_share_of_influence_are_kept(trace):
    result = trace(0.8, 1.0)
    assert names_of(result) == ["f0", "f2", "f4", "e1", *ALWAYS]
    influences = [836, 520, 960, 864, 627, 799, 0, 0, 0, 0, 0]
    expected = torch.tensor(influences, dtype=torch.float64) / 2560
    torch.testing.assert_close(result.influence, expected, **EXACT)
    expected = {
        (target, source): float(effect)
        for target, sources in EFFECTS.items()
        for source, effect in sources.items()
        if {target, source} <= set(names_of(result))
    }
    assert edges_of(result) == expected


def test_edges_that_hold_the_share_of_the_remaining_influence_are_kept(trace):
    """Shares among kept nodes: f2 has f0 1; f4 has f2 3/7, e1 4/7; B has f2 1/3, E1 2/3.

    f4 = 3/8; f2 = 1/4 * 1/3 + 3/8 * 3/7 = 41/168; f0 = 3/4 * 3/10 + f2 = 197/420. Scores, in 1680ths:
    A-f4 630, A-f0 378, A-e1 252, B-f2 140, B-E1 280, f4-f2 270, f4-e1 360, f2-f0 410, f0-E0 591, f0-E1 197; sum
    3508. From the largest on, 630 + 591 + 410 + 378 + 360 + 280 + 270 = 2919 < 0.9 * 3508 = 3157.2 < 2919 + 252.
    """
    result = trace(0.8, 0.9)
    assert names_of(result) == ["f0", "f2", "f4", "e1", *ALWAYS]
    kept = {
        ("A", "f4"): 5.0, ("A", "f0"): 3.0, ("A", "e1"): -2.0, ("B", "E1"): 2.0, ("f4", "f2"): 3.0,
        ("f4", "e1"): 4.0, ("f2", "f0"): 2.0, ("f0", "E0"): 3.0,
    }  # fmt: skip
    assert edges_of(result) == kept | UNCOUNTED


def test_the_remainder_is_the_value_minus_kept_edges(trace):
    result = trace(0.8, 0.9)
    value = dict(zip(names_of(result), result.value.tolist(), strict=True))
    # f0: 3 + 1 + 2; f2: 2 - 1 - 1; f4: 3 - 1 + 4; A: 5 + 3 - 2 + 1; B: -1 - 1 + 2
    assert value == {"f0": 6, "f2": 0, "f4": 6, "A": 7, "B": 0} | dict.fromkeys(["e1", *ALWAYS[:5]], 0)
    remainder = dict(zip(names_of(result), result.remainder.tolist(), strict=True))
    # missing edges: f0-E1 1; f2-f1 -1, f2-e0 -1; f4-f3 -1; B-f3 -1, B-f2 -1
    assert remainder == {"f0": 1, "f2": -2, "f4": -1, "A": 0, "B": -2} | dict.fromkeys(["e1", *ALWAYS[:5]], 0)


def test_nodes_without_incoming_or_outgoing_edges_are_removed(trace):
    """At half of 3508, 630 + 591 + 410 < 1754 < 630 + 591 + 410 + 378: the edges A-f4, f0-E0, f2-f0 and A-f0.

    f4 has no incoming edge; f2 and e1 have no outgoing one.
    """
    result = trace(0.8, 0.5)
    assert names_of(result) == ["f0", *ALWAYS]
    assert edges_of(result) == {("f0", "E0"): 3.0, ("A", "f0"): 3.0} | UNCOUNTED
    remainder = dict(zip(names_of(result), result.remainder.tolist(), strict=True))
    # missing edges: f0-E1 1; A-f4 5, A-e1 -2; all of B, -1 - 1 + 2
    assert remainder == {"f0": 1, "A": 3, "B": 0} | dict.fromkeys(ALWAYS[:5], 0)


def test_scores_are_those_of_the_full_graph(trace):
    assert trace(0.8, 0.5).scores == scores(full_influence(), WEIGHT, COLUMNS.errors, COLUMNS.embeddings)


CHAIN = ("g1", "h1", "g2", "h2", "e", "E0", "E1", "constant", "A", "B")
CHAIN_EFFECTS = {
    "g1": {"e": 1},
    "g2": {"g1": -2},
    "h1": {"E0": 1, "E1": -1, "constant": 9},
    "h2": {"h1": 5, "constant": 4},
    "A": {"g2": 1, "h2": -3, "E0": 4, "constant": 6},
    "B": {"g2": 1, "E0": 7},
}


def prune_chain(edge_share: float) -> tuple[list[str], set[tuple[str, str]]]:
    levels = {"g1": 1, "h1": 1, "g2": 2, "h2": 2, "A": 3, "B": 3}
    nodes, edges = prune(
        matrix(CHAIN_EFFECTS, CHAIN),
        torch.tensor([levels.get(name, 0) for name in CHAIN]),
        vector({"A": 0.5, "B": 0.5}, CHAIN),
        counted=torch.tensor([name not in ("constant", "A", "B") for name in CHAIN]),
        edge_share=edge_share,
        always=torch.tensor([name in ("E0", "E1", "constant", "A", "B") for name in CHAIN]),
        feature=torch.tensor([name[0] in "gh" for name in CHAIN]),
    )
    return (
        [CHAIN[i] for i in nodes.nonzero()[:, 0].tolist()],
        {(CHAIN[t], CHAIN[s]) for t, s in edges.nonzero().tolist()},
    )


def test_pruning_repeats_until_nothing_changes():
    """Scores, in 32nds: A-g2 2, A-h2 6, A-E0 8, B-g2 2, B-E0 14, g2-g1 4, g1-e 4, h2-h1 6, h1-E0 3, h1-E1 3; sum 52.

    At 0.7 of 52, 14 + 8 + 6 + 6 < 36.4 < 14 + 8 + 6 + 6 + 4: edges below 4 are removed. Then g2 has no outgoing
    edge, then g1, then e. h1 has only a constant source, so it is removed, then h2 and its edge to A.
    """
    nodes, edges = prune_chain(0.7)
    assert nodes == ["E0", "E1", "constant", "A", "B"]
    assert edges == {("A", "E0"), ("B", "E0"), ("A", "constant")}


def test_nothing_is_pruned_at_a_share_of_one():
    nodes, edges = prune_chain(1.0)
    assert nodes == list(CHAIN)
    assert edges == {(target, source) for target, sources in CHAIN_EFFECTS.items() for source in sources}


def test_threshold_works_on_its_inputs_device():
    values = full_influence().node
    with torch.device("meta"):
        assert threshold(values, 0.8) == pytest.approx(520 / 2560, rel=1e-14)
