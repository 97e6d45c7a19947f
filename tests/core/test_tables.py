"""Damaged tables are refused, and the error names the file."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from circuitloom.core.tables import CONCEPT, METRIC, Table, read_table, write_table

ROWS = 5000


def random_table(table: Table) -> pa.Table:
    random = np.random.default_rng(0)

    def column(kind: pa.DataType) -> np.ndarray | list:
        if pa.types.is_floating(kind):
            return random.standard_normal(ROWS)
        if pa.types.is_list(kind):
            return [[value] for value in column(kind.value_type)]
        numbers = random.integers(0, 2**15, ROWS)
        return numbers if pa.types.is_integer(kind) else numbers.astype(str)

    return pa.table({name: column(kind) for name, (kind, _) in table.columns.items()}).cast(table.schema)


@pytest.mark.parametrize("table", [CONCEPT, METRIC], ids=lambda table: table.name)
def test_a_flipped_byte_is_found_and_the_error_names_the_file(table: Table, tmp_path: Path) -> None:
    path, rows = tmp_path / f"{table.name}.parquet", random_table(table)
    write_table(table, rows, path)
    assert read_table(path) == rows
    original, random = path.read_bytes(), np.random.default_rng(0)
    # inside the pages, which fill most of the file before its footer
    for place in random.integers(len(original) // 10, len(original) * 8 // 10, 30):
        content = bytearray(original)
        content[place] ^= 1 << random.integers(8)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path}: damaged") + ".*delete it and run again"):
            read_table(path)


def test_filtered_rows_can_be_read_and_damage_in_them_is_found(tmp_path: Path) -> None:
    path, rows = tmp_path / "metric.parquet", random_table(METRIC)
    write_table(METRIC, rows, path)
    some = pc.field("layer") > 20_000
    assert 0 < read_table(path, some).num_rows < ROWS
    assert read_table(path, some) == rows.filter(some)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged")):
        read_table(path, some)


def test_a_truncated_table_is_refused_and_the_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metric.parquet"
    write_table(METRIC, random_table(METRIC), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged")):
        read_table(path)


def test_rows_with_another_schema_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metric.parquet"
    with pytest.raises(ValueError, match="table metric has no column loss"):
        write_table(METRIC, [{"run": "tc", "layer": 0, "loss": 1.0}], path)
    with pytest.raises(ValueError, match="table metric: "):
        write_table(METRIC, random_table(CONCEPT), path)
    assert not list(tmp_path.iterdir())
