"""A job trains cross-layer transcoders from the caches of all layers."""

from pathlib import Path

import pytest
import torch
from tests.activations.inputs import make_cache, make_order
from tests.models import LAYERS, tiny_model

from circuitloom.config import Run
from circuitloom.core.tables import read_table
from circuitloom.dictionaries.cross_layer import load_cross_layer_transcoder
from circuitloom.dictionaries.dictionary import load_dictionary
from circuitloom.dictionaries.training.launch import TrainingJob, run_job
from circuitloom.language_model.model import load_model

KEYS = {"width": 32, "k": 4, "batch": 256, "tokens": 256 * 12, "precision": "float32"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """A tiny model, and its cached MLP inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    model = tiny_model("gpt2", folder / "model")
    return {
        "model": model,
        "activations": make_cache(folder / "activations", load_model(model, device="cpu"), make_order()),
    }


def job(inputs: dict[str, Path], folder: Path, layers: list[int], **runs: dict) -> TrainingJob:
    """A job of runs by name, whose outputs are FOLDER/RUN/layerL."""
    outputs = [folder / name / f"layer{layer}" for name in runs for layer in layers]
    made = [Run(**{**KEYS, **keys, "name": name}) for name, keys in runs.items()]
    return TrainingJob(runs=made, layers=layers, dtype="float32", outputs=outputs, **inputs)


def test_all_layers_are_trained_from_their_caches(inputs, tmp_path: Path) -> None:
    layers = list(range(LAYERS))
    runs = {"far": {"kind": "clt", "skip": True}, "none": {"kind": "clt", "reach": 0}}
    run_job(job(inputs, tmp_path, layers, **runs), 1)
    assert load_cross_layer_transcoder(tmp_path / "far").writers == {0: [0], 1: [0, 1], 2: [0, 1, 2]}
    assert not list(tmp_path.glob("*/.layers.partial"))
    # without reach the caches are read, and the weights trained, as by one job per layer
    none = load_cross_layer_transcoder(tmp_path / "none")
    for layer in layers:
        run_job(job(inputs, tmp_path, [layer], alone={}), 1)
        alone = load_dictionary(tmp_path / "alone" / f"layer{layer}")
        assert torch.equal(none.layers[layer].W_enc, alone.W_enc)
        assert torch.equal(none.layers[layer].decoder(layer), alone.W_dec)
        one, other = (
            read_table(tmp_path / run / f"layer{layer}" / "history.parquet").to_pylist()
            for run in ("none", "alone")
        )
        assert [row["step"] for row in one] == [10, 12]
        for row, own in zip(one, other, strict=True):
            differing = {"run", "tokens_per_second"}
            assert {k: v for k, v in row.items() if k not in differing} == {
                k: v for k, v in own.items() if k not in differing
            }


def test_a_layer_that_is_not_cached_is_named(inputs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not cached; add mlp_in to activations\.sites and 3 to"):
        run_job(job(inputs, tmp_path, [0, 3], clt={"kind": "clt"}), 1)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["batch", "features"])
def test_a_job_of_two_processes_ends_in_the_transcoder_of_one(inputs, tmp_path: Path, split: str) -> None:
    layers, keys = list(range(LAYERS)), {"kind": "clt", "act": "batchtopk", "budget": "all"}
    run_job(job(inputs, tmp_path, layers, one=keys), 1)
    run_job(job(inputs, tmp_path, layers, two={**keys, "processes": 2, "split": split}), 2)
    one, two = (load_cross_layer_transcoder(tmp_path / name) for name in ("one", "two"))
    for layer in layers:
        assert torch.allclose(one.layers[layer].W_enc, two.layers[layer].W_enc, rtol=1e-3, atol=1e-4)
        assert (tmp_path / "two" / f"layer{layer}" / "history.parquet").is_file()
    assert not list(tmp_path.glob("*/.layers.partial"))
