"""What a study exports is checked when its config is read."""

import pytest

from circuitloom.config import Run, load_study
from circuitloom.config.exchange import refusal

STUDY = {
    "name": "some",
    "corpus": {"source": "chronicle", "context": 32},
    "language_model": {"source": "pretrain", "layers": 2, "d_model": 16, "heads": 2},
    "training": {"width": 64, "k": 4},
    "dictionaries": {
        "topk": {"kind": ["transcoder", "sae"], "act": "topk"},
        "relu": {"act": "relu", "name": "relu"},
    },
}


def runs(**exchange) -> list[str]:
    return load_study({**STUDY, "exchange": exchange}).exported_runs


def test_nothing_is_exported_by_default() -> None:
    assert load_study(STUDY).exported_runs == []
    assert runs(runs=["relu"]) == []


def test_all_runs_are_exported_unless_some_are_named() -> None:
    assert runs(formats=["sparsify"], runs=["sae-topk4-64", "sae-topk4-64"]) == ["sae-topk4-64"]
    study = {**STUDY, "dictionaries": {"topk": STUDY["dictionaries"]["topk"]}}
    exported = load_study({**study, "exchange": {"formats": ["sparsify"]}}).exported_runs
    assert exported == ["tc-topk4-64", "sae-topk4-64"]


def test_an_unknown_run_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^exchange.runs: there is no run x; choose from tc-topk4-64, sae-"):
        runs(formats=["saelens"], runs=["x"])


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("circuit-tracer", {"kind": "sae"}, "has transcoders only"),
        ("saelens", {"act": "topk"}, "SAELens has no topk transcoder"),
        ("saelens", {"kind": "sae", "act": "relu", "skip": True}, "no SAE with a skip"),
        ("sparsify", {"act": "batchtopk"}, "sparsify has topk only, and some is batchtopk"),
        ("circuit-tracer", {"act": "topk"}, None),
        ("circuit-tracer", {"act": "jumprelu", "skip": True}, None),
        ("saelens", {"act": "relu", "skip": True}, None),
        ("saelens", {"kind": "sae", "act": "topk"}, None),
        ("sparsify", {"act": "topk", "skip": True}, None),
    ],
)
def test_a_run_is_refused_where_the_format_cannot_hold_it(name, keys: dict, words: str | None) -> None:
    reason = refusal(name, Run(width=8, k=4, name="some", **keys), [0, 1])
    assert reason is None if words is None else reason is not None and words in reason


def test_circuit_tracer_needs_every_layer_from_0() -> None:
    run = Run(width=8, k=4, name="some")
    reason = refusal("circuit-tracer", run, [0, 2])
    assert reason is not None and reason.endswith("add layer 1 to activations.layers")
