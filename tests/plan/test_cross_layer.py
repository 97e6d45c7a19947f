"""The plan counts a decoder for each pair of layers, and one job for all layers."""

from typing import Any

import pytest

from circuitloom.config import Study, load_study
from circuitloom.plan.stages import cases, circuits, evaluation, exchange, features
from circuitloom.plan.training import dictionaries

D, F, K, LAYERS = 32, 256, 4, 4


RELU, TC_RELU = "clt-relu1e-3-256", "tc-relu1e-3-256"
RAW: dict[str, Any] = {
    "name": "x",
    "corpus": {"source": "chronicle"},
    "language_model": {"source": "pretrain", "layers": LAYERS, "d_model": D, "heads": 2},
    "training": {"width": F, "k": K, "batch": 512, "tokens": 5120},
}


def study(*kinds: str, **keys: Any) -> Study:
    sweeps = {kind: {"kind": kind, **(keys if kind == "clt" else {})} for kind in kinds}
    return load_study({**RAW, "dictionaries": sweeps})


@pytest.mark.parametrize(("reach", "pairs"), [("all", 4 + 3 + 2 + 1), (1, 2 + 2 + 2 + 1), (0, 4)])
def test_decoders_count_once_per_pair_of_layers(reach: str | int, pairs: int) -> None:
    work = dictionaries(study("clt", reach=reach))
    weights = (LAYERS + pairs) * F * D
    # weights, and in the checkpoint also Adam's moments; biases and thresholds
    assert work.disk == pytest.approx(4 * 4 * (weights + 2 * LAYERS * F))
    assert work.checkpoint == pytest.approx(12 * weights)
    assert (work.jobs, work.starts) == (1, 1)
    # the encoder's product; 4 d k for values of the encoder, and 6 d k per decoder
    assert work.operations == pytest.approx(5120 * (LAYERS * (2 * D * F + 4 * D * K) + pairs * 6 * D * K))


def test_without_reach_the_weights_are_those_of_transcoders() -> None:
    clt, plt = (dictionaries(each) for each in (study("clt", reach=0), study("transcoder")))
    assert (clt.disk, clt.operations, clt.read) == (plt.disk, plt.operations, plt.read)
    assert (clt.jobs, plt.jobs) == (1, LAYERS)
    # all layers are in memory at once
    assert clt.checkpoint == LAYERS * plt.checkpoint
    assert clt.gpu_memory > plt.gpu_memory


def test_feature_tables_cost_what_those_of_transcoders_do_but_for_the_weights() -> None:
    both, alone, clt = study("clt", "transcoder"), study("transcoder"), study("clt")
    cost, usual = features(clt, 1e5), features(alone, 1e5)
    for each in ("jobs", "operations", "disk", "files", "sorted_activations"):
        assert getattr(cost, each) == getattr(usual, each)
    # a layer has (4 + 3 + 2 + 1) / 4 decoders on average
    assert cost.memory - usual.memory == pytest.approx(4 * LAYERS * (10 / 4 - 1) * F * D)
    assert cost.read - usual.read == pytest.approx(4 * LAYERS * (10 / 4 - 1) * F * D)
    # neurons, and a job for each sweep
    assert features(both, 1e5).jobs == 3
    assert evaluation(both, 1e5).operations > evaluation(alone, 1e5).operations


def test_circuits_cases_and_exports_count_every_decoder() -> None:
    keys = {
        "cases": {"c": {"kind": "planted", "runs": ["tc-topk4-256"]}},
        "exchange": {"formats": ["circuit-tracer"]},
    }
    clt = load_study(
        {
            **RAW,
            **keys,
            "dictionaries": {"clt": {"kind": "clt", "act": "relu"}, "tc": {}},
            "circuits": {"run": RELU},
        }
    )
    plt = load_study(
        {**RAW, **keys, "dictionaries": {"tc": {}, "other": {"act": "relu"}}, "circuits": {"run": TC_RELU}}
    )
    more = 4 * LAYERS * (10 / 4 - 1) * F * D
    assert cases(clt, 1e5).memory - cases(plt, 1e5).memory == pytest.approx(more)
    assert circuits(clt).memory - circuits(plt).memory == pytest.approx(more)
    assert circuits(clt).jobs == circuits(plt).jobs == 1
    assert exchange(clt).disk - exchange(plt).disk == pytest.approx(more)
