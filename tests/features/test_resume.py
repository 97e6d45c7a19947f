"""After a stop at any write, the next pass gives the same tables; no table is ever incomplete."""

from dataclasses import replace

import numpy as np
import pytest
from tests.activations.inputs import make_tokens
from tests.features.inputs import make_basis, write
from tests.models import CONTEXT

from circuitloom.core import atomic_io
from circuitloom.core.tables import read_table
from circuitloom.evaluation.held_out import load_sequences
from circuitloom.features import external_sort


class Stopped(Exception):
    pass


@pytest.fixture
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(external_sort, "BLOCK_POSITIONS", 4 * CONTEXT)


@pytest.fixture
def stop_at(monkeypatch):
    """Raises at the n-th fsync."""

    def arrange(last: int | None) -> None:
        count = 0

        def fsync(file):
            nonlocal count
            count += 1
            if count == last:
                raise Stopped
            real_fsync(file)

        for module in (atomic_io, external_sort):
            monkeypatch.setattr(module, "fsync", fsync)

    real_fsync = atomic_io.fsync
    return arrange


def content(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "layer1").glob("*.parquet")}


@pytest.mark.slow
def test_a_stopped_pass_resumes_and_gives_the_same_tables(model, tmp_path, blocks_of_four, stop_at):
    expected = write(model, tmp_path / "undisturbed").tables
    undisturbed = content(tmp_path / "undisturbed")
    for last in [*range(1, 12), 25, 38, 41, 42, 43, 45, 47, 49, 51]:
        folder = tmp_path / str(last)
        stop_at(last)
        with pytest.raises(Stopped):
            write(model, folder)
        for file in (folder / "layer1").glob("*.parquet"):
            assert read_table(file).equals(expected[file.stem]), "incomplete table"
        stop_at(None)
        write(model, folder)
        assert content(folder) == undisturbed
        assert not list(folder.rglob("*.partial")) and not list(folder.rglob("*.new"))


def test_complete_blocks_are_not_computed_again(model, tmp_path, blocks_of_four, stop_at):
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
    scored = [load_sequences(make_tokens(40), slice(i, i + 4)).n_tokens for i in range(0, 40, 4)]
    # the missing blocks, and all positions once for the comparison in this test
    assert done == 3 and sum(encoded) == sum(scored[done:]) + 40 * CONTEXT


def test_other_weights_start_from_the_beginning(model, tmp_path, blocks_of_four, stop_at):
    stop_at(14)
    with pytest.raises(Stopped):
        write(model, tmp_path)
    stop_at(None)
    basis = make_basis(model)
    doubled = replace(basis, encode=lambda x: basis.encode(2 * x), digest="doubled")
    case = write(model, tmp_path, doubled)
    assert np.array_equal(case.tables["activation"]["activation"].to_numpy(), case.z.T[case.z.T > 0])
