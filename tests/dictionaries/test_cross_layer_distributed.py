"""Two processes train the cross-layer transcoder that one trains, in either split."""

from pathlib import Path

import pytest
import torch
from tests.dictionaries.cross_layer_cases import (
    INTERRUPTED,
    LAYERS,
    SEVERAL,
    train_case,
    train_in_two_processes,
)
from tests.dictionaries.training_cases import SPLITS
from torch import Tensor

from circuitloom.dictionaries.cross_layer import load_cross_layer_transcoder
from circuitloom.dictionaries.training.collectives import SINGLE_PROCESS


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Results of two processes: SPLIT/CASE/{layerL,result.pt}."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(train_in_two_processes, (str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """Results of one process: CASE/..."""
    folder = tmp_path_factory.mktemp("one_process")
    for name in SEVERAL:
        train_case(name, folder / name, SINGLE_PROCESS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SEVERAL)
def test_two_processes_train_as_one(name: str, split: str, two_processes, one_process) -> None:
    one, two = (torch.load(folder / name / "result.pt") for folder in (one_process, two_processes / split))
    for a, b in zip(one["history"], two["history"], strict=True):
        for column in ("layer", "loss", "reconstruction", "sparsity", "auxiliary", "l0", "fvu", "dead"):
            assert b[column] == pytest.approx(a[column], rel=1e-4, abs=1e-9), (a["step"], column)
    assert (max(row["auxiliary"] for row in one["history"]) > 1e-4) == ("dead_tokens" in SEVERAL[name])
    # needed because Adam's steps do not depend on the scale of gradients
    assert (one["gradient"] - two["gradient"]).abs().max() < 1e-3 * one["gradient"].abs().max()
    alone, together = (
        load_cross_layer_transcoder(folder / name) for folder in (one_process, two_processes / split)
    )
    for layer in LAYERS:
        for key, value in vars(alone.layers[layer]).items():
            other = vars(together.layers[layer])[key]
            if isinstance(value, Tensor):
                assert value.shape == other.shape
                assert (value - other).abs().max() <= 1e-3 * value.abs().max(), key


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_two_interrupted_processes_end_in_the_same_bits(split: str, two_processes) -> None:
    complete, resumed = (
        load_cross_layer_transcoder(two_processes / split / name) for name in (INTERRUPTED, "interrupted")
    )
    for layer in LAYERS:
        for key, value in vars(complete.layers[layer]).items():
            if isinstance(value, Tensor):
                assert torch.equal(value, vars(resumed.layers[layer])[key]), key
