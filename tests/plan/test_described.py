"""The plan for a described machine: steps counted by hand, stages that do not fit, more GPUs, typing errors."""

from pathlib import Path

import pytest
import yaml

from circuitloom.config import Run, load_study
from circuitloom.plan import MachineRates, describe, described, plan
from circuitloom.plan.costs import PRODUCT_SHARE_OF_STEP, WRITE_RATE
from circuitloom.plan.training import step_load

CONFIG = Path(__file__).parents[2] / "config"
NODE = yaml.safe_load((CONFIG / "machines" / "gpu-node-8.yaml").read_text())["machine"]


def study(name: str = "pythia-1.4b", machine: dict | None = None, **sections):
    config = yaml.safe_load((CONFIG / "studies" / f"{name}.yaml").read_text())
    return load_study({**config, **sections, "machine": machine or NODE, "cases": {}})


def costs(name: str = "pythia-1.4b", machine: dict | None = None, **sections):
    each = study(name, machine, **sections)
    assert each.machine is not None
    return {cost.stage: cost for cost in plan(each, described(each.machine))}


def test_a_step_takes_the_measured_time() -> None:
    gpu_load = step_load(Run(width=24_576, k=32, batch=8192, tokens=8192), 768)
    products, bandwidth = 735e12 * PRODUCT_SHARE_OF_STEP, 3.02e12
    assert gpu_load.bf16_flops == 2 * 8192 * 24_576 * 768
    seconds = gpu_load.bf16_flops / products + (gpu_load.moved + gpu_load.replicated) / bandwidth
    assert seconds == pytest.approx(2.247e-3, rel=0.02)


def test_cached_activations_take_their_numbers_and_threads_to_write_them() -> None:
    keys = {"layers": "all", "jobs": 1}
    cost = costs(activations=keys)["activations"]
    # 60M rows of 24 layers of 2,048 numbers of two bytes, and six bytes per row
    assert cost.disk == 60e6 * (24 * 2048 * 2 + 6)
    # 14 of a node's cores belong to a job, half of them write: faster than the forward pass
    assert cost.bottleneck == "products"
    assert cost.seconds > 60e6 * 24 * 2048 * 2 / (7 * WRITE_RATE)


def test_a_fast_forward_pass_is_bound_by_one_writer_thread() -> None:
    machine = {
        **NODE,
        "cores": 8,
        "gpu_operations": 1e18,
        "gpu_operations_float32": 1e18,
        "gpu_bandwidth": 1e18,
    }
    cost = costs(machine=machine, activations={"layers": "all", "jobs": 1})["activations"]
    assert cost.bottleneck == "writers"
    assert cost.seconds == pytest.approx(60e6 * 24 * 2048 * 2 / WRITE_RATE, rel=0.01)


def test_jobs_that_share_a_site_take_a_gpu_each() -> None:
    one, eight = (costs(activations={"layers": "all", "jobs": jobs})["activations"] for jobs in (1, 8))
    assert (one.busy_gpus, eight.busy_gpus) == (1, 8)
    assert eight.seconds == pytest.approx(one.seconds / 8, rel=0.05)


def test_more_gpus_take_fewer_hours() -> None:
    layers = {"layers": "all"}
    few = costs(machine=NODE, activations=layers)["dictionaries"]
    many = costs(machine={**NODE, "nodes": 2}, activations=layers)["dictionaries"]
    assert few.busy_gpus == 8 and many.busy_gpus == 16
    assert many.seconds == pytest.approx(few.seconds / 2, rel=0.05)


def test_a_dictionary_too_large_for_one_gpu_is_split_and_reported() -> None:
    machine = yaml.safe_load((CONFIG / "machines" / "cluster-512.yaml").read_text())["machine"]
    each = study("llama-70b", machine)
    rates: MachineRates = described(each.machine)  # type: ignore[arg-type]
    found = plan(each, rates)
    cost = next(cost for cost in found if cost.stage == "dictionaries")
    # 18 bytes of 2 x 2^24 x 8,192 weights are 4.9 TB, at 127 GB per GPU
    assert cost.gpus_per_job >= 18 * 2 * 2**24 * 8192 / 127e9
    assert 2**24 % cost.gpus_per_job == 0
    assert cost.gpu_memory < 0.9 * 141e9
    page = "\n".join(describe(each, found, rates))
    assert f"its features have to be split over {cost.gpus_per_job} GPUs" in page
    assert "loads the whole model" in page


def test_stages_that_do_not_fit_are_reported() -> None:
    each = study("llama-70b")
    rates = described(each.machine)  # type: ignore[arg-type]
    page = "\n".join(describe(each, plan(each, rates), rates))
    assert "not even all 8 GPUs would do" in page
    assert "does not fit" in page
    assert "TB of disk, and 30 TB are there" in page


def test_a_typing_error_in_a_machine_is_named() -> None:
    machine = {key.replace("gpu_memory", "gpu_memry"): value for key, value in NODE.items()}
    with pytest.raises(ValueError, match=r"machine\.gpu_mem"):
        study(machine=machine)


def test_a_stated_shape_is_checked_against_the_model() -> None:
    from circuitloom.config.language_model import ModelSizes
    from circuitloom.config.model_shape import check_shape

    sizes = ModelSizes(layers=2, d_model=8, d_mlp=32, heads=2, context=16, vocabulary=50)
    config = {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_embd": 8,
        "n_head": 2,
        "n_positions": 16,
        "vocab_size": 50,
    }
    check_shape(sizes, config)
    with pytest.raises(
        ValueError, match=r"language_model\.shape\.layers: 2, but the model has 3; correct it"
    ):
        check_shape(sizes, {**config, "n_layer": 3})
