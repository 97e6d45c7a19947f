"""Macros about circuits: edges, nodes and paths of a traced prompt with readable labels."""

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


def test_edges_are_labelled_and_ordered_by_absolute_effect(catalog):
    assert catalog("SELECT source, target, effect FROM circuit_edges('war')") == [
        ("0/7 'it's'@1", "logit 'so'@3", -2.0),
        ("constant", "logit 'so'@3", 1.0),
        ("embedding 'it's'@1", "0/7 'it's'@1", 0.5),
    ]


def test_nodes_are_ordered_by_influence_with_its_cumulative_share(catalog):
    assert catalog("SELECT label, cumulative FROM circuit_nodes('war')") == [
        ("logit 'so'@3", 0.625),
        ("0/7 'it's'@1", 0.875),
        ("embedding 'it's'@1", 1.0),
        ("constant", 1.0),
    ]


def test_paths_are_written_from_source_to_root_with_the_contribution_of_all_steps(catalog):
    assert catalog("SELECT path, effect, n_steps FROM circuit_paths('war')") == [
        ("0/7 'it's'@1 > logit 'so'@3", -2.0, 1),
        ("0/7 'it's'@1 > head 1.2 from 'it's'@1 > logit 'so'@3", 0.5, 2),
    ]


@pytest.mark.parametrize("folders", [["circuits/plural"], ["cases/year"], ["circuits/plural", "cases/year"]])
def test_a_view_has_the_rows_of_all_folders(tmp_path: Path, folders: list[str]):
    for folder in folders:
        row = {"behaviour": folder, "basis": "heads", "ablation": "zero", "ranking": "effect", "n_kept": 3}
        write_table(FAITHFULNESS, [row], tmp_path / folder / "faithfulness.parquet")
    build_catalog(tmp_path)
    rows = run_statement(open_sandbox(tmp_path), "SELECT behaviour, n_kept FROM faithfulness").read_all()
    assert sorted(rows["behaviour"].to_pylist()) == sorted(folders)
    assert rows["n_kept"].to_pylist() == [3] * len(folders)
