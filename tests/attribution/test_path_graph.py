"""Filters select paths by consecutive nodes; the graph of paths counts each shared prefix once."""

import pytest
import torch
from tests.attribution.inputs import (
    node_key,
)

from circuitloom.attribution.paths import (
    EMBEDDING,
    FEATURE,
    HEAD,
    PathFilter,
    Paths,
    paths_to_graph,
    select_paths,
)


def make_paths(rows: list[tuple[int, int, int, int, int]], **floats: list[float]) -> Paths:
    """Paths of (parent, kind, layer, index, position), the root first."""
    parent, kind, layer, index, position = torch.tensor(rows).T
    length = [0] * len(rows)
    for path in range(1, len(rows)):
        length[path] = length[rows[path][0]] + 1
    nothing = torch.zeros(len(rows), dtype=torch.float64)
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in floats.items()}
    values = {"contribution": nothing, "error": nothing, "constant": nothing} | columns
    return Paths(
        parent, torch.tensor(length), kind, layer, index, position, torch.full_like(parent, -1), **values
    )


A, B, C = PathFilter(kind=FEATURE, index=7), PathFilter(kind=HEAD, index=0), PathFilter(kind=EMBEDDING)
TREE = make_paths(
    [
        (-1, -1, 3, 0, 5),
        (0, FEATURE, 2, 7, 5),  # 1: A
        (1, FEATURE, 1, 7, 5),  # 2: A A
        (2, HEAD, 1, 0, 4),  # 3: A A B
        (3, EMBEDDING, 0, 0, 4),  # 4: A A B C
        (0, HEAD, 2, 0, 0),  # 5: B
        (5, FEATURE, 1, 7, 0),  # 6: B A
        (6, EMBEDDING, 0, 0, 0),  # 7: B A C
        (6, HEAD, 0, 0, 0),  # 8: B A B
        (1, FEATURE, 0, 0, 5),  # 9: A, another feature
    ]
)


@pytest.mark.parametrize(
    ("infix", "suffix", "expected"),
    [
        ([], [], list(range(10))),
        # a match that does not restart at the second A misses 3 and 4
        ([A, B], [], [3, 4, 8]),
        ([A, A], [], [2, 3, 4]),
        ([A], [], [1, 2, 3, 4, 6, 7, 8, 9]),
        # nodes of a pattern are consecutive: A B C is not in A A B or B A C
        ([A, B, C], [], [4]),
        ([A, C], [], [7]),
        ([], [B], [3, 5, 8]),
        ([], [A, B], [3, 8]),
        ([], [B, A, B], [8]),
        ([], [A, A, B, C], [4]),
        ([], [A, A, A, B, C], []),
        ([B], [C], [4, 7]),
        ([A, B], [B], [3, 8]),
        # 0 is a valid layer, kind, index and position, not a missing value
        ([PathFilter(layer=0)], [], [4, 7, 8, 9]),
        ([PathFilter(position=0)], [], [5, 6, 7, 8]),
        ([PathFilter(kind=FEATURE, index=0)], [], [9]),
        ([PathFilter(position=-1)], [], []),
        ([], [PathFilter()], list(range(1, 10))),
    ],
)
def test_infixes_match_anywhere_and_suffixes_at_the_end(infix, suffix, expected):
    assert select_paths(TREE, infix, suffix).tolist() == expected


# Paths to graph

NAN = float("nan")
ROWS = [
    (-1, -1, 2, 0, 4),
    (0, FEATURE, 1, 3, 4),  # 1: root - f
    (0, HEAD, 1, 0, 2),  # 2: root - h
    (1, FEATURE, 0, 5, 4),  # 3: root - f - g
    (1, EMBEDDING, 0, 0, 4),  # 4: root - f - E
    (2, FEATURE, 0, 5, 2),  # 5: root - h - g at another position
    (0, FEATURE, 0, 5, 4),  # 6: root - g
    (6, EMBEDDING, 0, 0, 4),  # 7: root - g - E
]
SMALL = make_paths(
    ROWS,
    contribution=[10, 6, -2, 3, 1, -1.5, 0.75, 0.5],
    error=[1, 0.5, 0.25, NAN, NAN, NAN, 0.125, NAN],
    constant=[0.5, 0.25, 0, NAN, NAN, NAN, 0.0625, NAN],
)
ROOT, F, H, G, E, G2 = ROWS[0][1:], ROWS[1][1:], ROWS[2][1:], ROWS[3][1:], ROWS[4][1:], ROWS[5][1:]


def graph_of(paths: Paths, chosen=None, sum_tokens: bool = False):
    """Value, remainder and extended flag of each node; effect of each edge (target, source)."""
    graph = paths_to_graph(paths, None if chosen is None else torch.tensor(chosen), sum_tokens)
    names = [node_key(graph, i) for i in range(len(graph.kind))]
    assert len(set(names)) == len(names)
    rows = zip(graph.value.tolist(), graph.remainder.tolist(), graph.extended.tolist(), strict=True)
    ends = [(names[t], names[s]) for t, s in zip(graph.target.tolist(), graph.source.tolist(), strict=True)]
    assert len(set(ends)) == len(ends)
    return dict(zip(names, rows, strict=True)), dict(zip(ends, graph.effect.tolist(), strict=True))


def test_nodes_and_edges_are_sums_of_contributions():
    nodes, edges = graph_of(SMALL)
    assert nodes == {
        # 10 - 1 - 0.5 less the edges 6 - 2 + 0.75
        ROOT: (10, 3.75, True),
        # 6 - 0.5 - 0.25 less 3 + 1
        F: (6, 1.25, True),
        # -2 - 0.25 - 0 less -1.5
        H: (-2, -0.75, True),
        # 3 + 0.75; of these only path 6 was extended: 0.75 - 0.125 - 0.0625 less 0.5
        G: (3.75, 0.0625, True),
        E: (1.5, 0, False),
        G2: (-1.5, 0, False),
    }
    assert edges == {
        (ROOT, F): 6, (ROOT, H): -2, (ROOT, G): 0.75, (F, G): 3, (F, E): 1, (H, G2): -1.5, (G, E): 0.5,
    }  # fmt: skip


def test_a_shared_prefix_counts_once():
    nodes, edges = graph_of(SMALL, [3, 4])
    # 10 - 1 - 0.5 less 6; F as it was
    assert nodes == {ROOT: (10, 2.5, True), F: (6, 1.25, True), G: (3, 0, False), E: (1, 0, False)}
    assert edges == {(ROOT, F): 6, (F, G): 3, (F, E): 1}
    # nor does a prefix that is itself chosen count twice
    assert graph_of(SMALL, [1, 3, 4, 0]) == (nodes, edges)


def test_nodes_that_differ_only_in_position_are_merged_with_sum_tokens():
    nodes, edges = graph_of(SMALL, sum_tokens=True)
    root, f, h, g, e = ((*node[:3], -1) for node in (ROOT, F, H, G, E))
    assert nodes == {
        root: (10, 3.75, True),
        f: (6, 1.25, True),
        h: (-2, -0.75, True),
        # 3 + 0.75 - 1.5
        g: (2.25, 0.0625, True),
        e: (1.5, 0, False),
    }
    assert edges == {
        (root, f): 6,
        (root, h): -2,
        (root, g): 0.75,
        (f, g): 3,
        (f, e): 1,
        (h, g): -1.5,
        (g, e): 0.5,
    }


def test_the_graph_of_the_root_alone_has_one_node():
    nodes, edges = graph_of(SMALL, [0])
    # 10 - 1 - 0.5
    assert nodes == {ROOT: (10, 8.5, True)} and edges == {}
