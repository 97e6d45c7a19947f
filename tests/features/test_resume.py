"""Stopped at any write, the next pass ends in the same tables; none is ever there half."""

from dataclasses import replace

import numpy as np
import pytest
from tests.activations.inputs import make_tokens
from tests.features.inputs import make_basis, write
from tests.models import CONTEXT

from circuitloom.core import atomic_io as partial
from circuitloom.core.tables import read_table
from circuitloom.evaluation.held_out import hold_out_rows
from circuitloom.features import external_sort as spill


class Stopped(Exception):
    pass


@pytest.fixture
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(spill, "BLOCK_POSITIONS", 4 * CONTEXT)


@pytest.fixture
def stop_at(monkeypatch):
    """Makes the n-th wait for the disk the last thing that happens."""

    def arrange(last: int | None) -> None:
        count = 0

        def flush(file):
            nonlocal count
            count += 1
            if count == last:
                raise Stopped
            partial_flush(file)

        for module in (partial, spill):
            monkeypatch.setattr(module, "fsync", flush)

    partial_flush = partial.fsync
    return arrange


def content(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "layer1").glob("*.parquet")}


def test_a_stopped_pass_ends_in_the_same_tables(model, tmp_path, blocks_of_four, stop_at):
    expected = write(model, tmp_path / "whole").tables
    whole = content(tmp_path / "whole")
    for last in [*range(1, 12), 25, 38, 41, 42, 43, 45, 47, 49, 51]:
        folder = tmp_path / str(last)
        stop_at(last)
        with pytest.raises(Stopped):
            write(model, folder)
        for file in (folder / "layer1").glob("*.parquet"):
            assert read_table(file).equals(expected[file.stem]), "half a table"
        stop_at(None)
        write(model, folder)
        assert content(folder) == whole
        assert not list(folder.rglob("*.partial")) and not list(folder.rglob("*.new"))


def test_whole_blocks_are_not_computed_again(model, tmp_path, blocks_of_four, stop_at):
    stop_at(14)
    with pytest.raises(Stopped):
        write(model, tmp_path)
    stop_at(None)
    done = len(list((tmp_path / "layer1.partial").glob("block*")))
    encoded = []
    basis = make_basis(model)

    def encode(x):
        encoded.append(len(x))
        return basis.encode(x)

    write(model, tmp_path, replace(basis, encode=encode))
    scored = [hold_out_rows(make_tokens(40), slice(i, i + 4)).n_tokens for i in range(0, 40, 4)]
    # the blocks that were missing, and all positions once, by which the test itself compares
    assert done == 3 and sum(encoded) == sum(scored[done:]) + 40 * CONTEXT


def test_other_weights_start_anew(model, tmp_path, blocks_of_four, stop_at):
    stop_at(14)
    with pytest.raises(Stopped):
        write(model, tmp_path)
    stop_at(None)
    basis = make_basis(model)
    doubled = replace(basis, encode=lambda x: basis.encode(2 * x), digest="doubled")
    case = write(model, tmp_path, doubled)
    assert np.array_equal(case.tables["activation"]["activation"].to_numpy(), case.z.T[case.z.T > 0])
