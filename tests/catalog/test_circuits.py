"""What the catalogue says of circuits: edges and paths of a traced prompt, in words."""

from pathlib import Path

import pytest

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.sandbox import open_sandbox, run_statement
from circuitloom.core.tables import EDGE, FAITHFULNESS, NODE, PATH, write_table

NODES = [
    {"kind": "embedding", "position": 1, "token": "it's", "influence": 0.25},
    {"kind": "feature", "layer": 0, "feature": 7, "position": 1, "token": "it's", "influence": 0.5},
    {"kind": "head", "layer": 1, "head": 2, "position": 1, "token": "it's", "in_graph": False},
    {"kind": "constant", "influence": 0.0},
    {"kind": "logit", "position": 3, "token": "so", "influence": 1.25},
]
EDGES = [(0, 1, 0.5), (1, 4, -2.0), (3, 4, 1.0)]
PATHS = [[(4, 9.0), (1, -2.0)], [(4, 9.0), (2, 0.75), (1, 0.5)]]


@pytest.fixture
def catalog(tmp_path: Path):
    for trace in ("war", "other"):
        folder = tmp_path / "circuits" / trace
        common = {"trace": trace}
        nodes = [
            {**common, "node": i, "in_graph": True, "is_root": i == 4, **row} for i, row in enumerate(NODES)
        ]
        write_table(NODE, nodes, folder / "node.parquet")
        edges = [{**common, "source": s, "target": t, "effect": effect} for s, t, effect in EDGES]
        write_table(EDGE, edges, folder / "edge.parquet")
        paths = [
            {**common, "path": path, "step": step, "node": node, "effect": effect, "n_steps": len(steps) - 1}
            for path, steps in enumerate(PATHS)
            for step, (node, effect) in enumerate(steps)
        ]
        write_table(PATH, paths, folder / "path.parquet")
    build_catalog(tmp_path)
    connection = open_sandbox(tmp_path)
    return lambda statement: [
        tuple(row.values()) for row in run_statement(connection, statement).read_all().to_pylist()
    ]


def test_edges_come_strongest_first_by_what_they_join(catalog):
    assert catalog("SELECT source, target, effect FROM circuit_edges('war')") == [
        ("0/7 'it's'@1", "logit 'so'@3", -2.0),
        ("constant", "logit 'so'@3", 1.0),
        ("embedding 'it's'@1", "0/7 'it's'@1", 0.5),
    ]


def test_nodes_come_by_influence_with_the_share_that_those_up_to_each_hold(catalog):
    assert catalog("SELECT label, cumulative FROM circuit_nodes('war')") == [
        ("logit 'so'@3", 0.625),
        ("0/7 'it's'@1", 0.875),
        ("embedding 'it's'@1", 1.0),
        ("constant", 1.0),
    ]


def test_paths_run_from_their_end_to_the_root_and_count_what_ends_there(catalog):
    assert catalog("SELECT path, effect, n_steps FROM circuit_paths('war')") == [
        ("0/7 'it's'@1 > logit 'so'@3", -2.0, 1),
        ("0/7 'it's'@1 > head 1.2 from 'it's'@1 > logit 'so'@3", 0.5, 2),
    ]


@pytest.mark.parametrize("places", [["circuits/plural"], ["cases/year"], ["circuits/plural", "cases/year"]])
def test_a_table_is_one_view_over_all_the_places_that_have_it(tmp_path: Path, places: list[str]):
    for place in places:
        row = {"behaviour": place, "basis": "heads", "ablation": "zero", "ranking": "effect", "n_kept": 3}
        write_table(FAITHFULNESS, [row], tmp_path / place / "faithfulness.parquet")
    build_catalog(tmp_path)
    rows = run_statement(open_sandbox(tmp_path), "SELECT behaviour, n_kept FROM faithfulness").read_all()
    assert sorted(rows["behaviour"].to_pylist()) == sorted(places)
    assert rows["n_kept"].to_pylist() == [3] * len(places)
