"""One module knows where results lie, and it is light enough for every start of Snakemake."""

import subprocess
import sys
from pathlib import Path

from circuitloom.core.layout import TABLE_FOLDERS, Layout
from circuitloom.core.tables import TABLES

LAYOUT = Layout.of("some")


def test_paths_lie_in_the_folder_of_the_study() -> None:
    assert LAYOUT.root == Path("results/some")
    assert LAYOUT.activation_layer("mlp_in", 3) == Path("results/some/activations/mlp_in/layer3.zarr")
    assert LAYOUT.checksums(LAYOUT.model) == Path("results/some/checksums/model.json")


def test_parts_of_a_path_may_be_wildcards() -> None:
    path = str(LAYOUT.feature_table("{run}", "{layer}", "logit"))
    assert path == "results/some/features/{run}/layer{layer}/logit.parquet"
    assert path.format(run="a", layer=0) == str(LAYOUT.feature_table("a", 0, "logit"))


def test_every_table_lies_in_some_folder() -> None:
    assert {name for names in TABLE_FOLDERS.values() for name in names} == {table.name for table in TABLES}


def test_the_layout_imports_neither_torch_nor_duckdb() -> None:
    code = "import sys, circuitloom.core.layout; print([m for m in ('torch', 'duckdb', 'pyarrow') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "[]\n"
    )
