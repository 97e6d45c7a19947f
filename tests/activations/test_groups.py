"""Zarr groups of the workflow open without a warning, although Snakemake adds a hidden file to them."""

from pathlib import Path

import numpy as np
import zarr
from tests.activations.inputs import make_cache, make_order

from circuitloom.activations.row_order import write_row_origins
from circuitloom.core.layout import layer_group
from circuitloom.corpus.token_arrays import write_tokens


def listed(group: Path) -> set[str]:
    """Names of the group's arrays, with Snakemake's file in the folder. Warnings are errors in tests."""
    (group / ".snakemake_timestamp").touch()
    opened = zarr.open_group(group, mode="r")
    assert {name for name, array in opened.arrays() if array[:1].size} == set(opened.keys())
    return set(opened.keys())


def test_tokens_are_listed_without_a_warning(tmp_path) -> None:
    block = np.zeros((4, 8), np.uint16), np.zeros((4, 8), np.int32)
    write_tokens(tmp_path / "train.zarr", [block], 4, {"bos_id": 0})
    assert listed(tmp_path / "train.zarr") == {"token", "document"}
    assert zarr.open_group(tmp_path / "train.zarr", mode="r").attrs["bos_id"] == 0


def test_activations_are_listed_without_a_warning(model, tmp_path) -> None:
    make_cache(tmp_path, model, make_order(40), dtype="int8")
    assert listed(layer_group(tmp_path / "mlp_in", 1)) == {"values", "scales"}


def test_origins_of_rows_are_listed_without_a_warning(tmp_path) -> None:
    write_row_origins(make_order(40), tmp_path / "rows.zarr")
    assert listed(tmp_path / "rows.zarr") == {"sequence", "position"}
