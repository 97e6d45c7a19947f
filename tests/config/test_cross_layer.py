"""Cross-layer transcoders: their keys, and stages that refuse them or leave them out."""

from typing import Any

import pytest

from circuitloom.config import load_study

STUDY: dict[str, Any] = {
    "name": "x",
    "corpus": {"source": "chronicle"},
    "language_model": {"source": "pretrain", "layers": 2},
    "training": {"width": 64, "k": 4},
    "dictionaries": {
        "clt": {"kind": "clt", "act": "batchtopk", "reach": ["all", 1], "budget": "all"},
        "plt": {"k": [4]},
    },
}
NAME = "clt-batchtopk4-64-budgetall"
PROMPTS: dict[str, Any] = {"other": {"text": "he was caught"}}
BEHAVIOUR: dict[str, Any] = {"prompts": [{"text": "he was caught", "target": "logit by"}]}


def test_a_run_is_named_after_its_reach_and_budget() -> None:
    study = load_study(STUDY)
    assert list(study.runs) == [NAME, "clt-batchtopk4-64-reach1-budgetall", "tc-topk4-64"]
    run = study.runs[NAME]
    assert (run.site_in, run.site_out, run.is_cross_layer) == ("mlp_in", "mlp_out", True)
    assert not study.runs["tc-topk4-64"].is_cross_layer


def test_every_run_is_exported_unless_some_are_named() -> None:
    study = load_study({**STUDY, "exchange": {"formats": ["circuit-tracer"]}})
    assert study.exported_runs == list(study.runs)
    assert study.traced_run == "tc-topk4-64"


REFUSED = {
    "reach of a transcoder": (
        {"dictionaries": {"a": {"reach": 1}}},
        r"^dictionaries\.a.*reach and budget are keys of cross-layer transcoders.*set kind: clt",
    ),
    "budget of topk": (
        {"dictionaries": {"a": {"kind": "clt", "budget": "all"}}},
        r"^dictionaries\.a.*budget: all shares the k of act: batchtopk.*act is topk",
    ),
    "the paper's loss": (
        {"dictionaries": {"a": {"kind": "clt", "act": "relu", "loss": "paper"}}},
        r"^dictionaries\.a.*loss: paper is defined for transcoders of one layer",
    ),
    "pickled files": (
        {"dictionaries": {"a": {"kind": "clt", "files": "some/layer{layer}.pt", "name": "b", "act": "relu"}}},
        r"^dictionaries\.a.*set kind: transcoder",
    ),
    "a site that no MLP writes": (
        {"dictionaries": {"a": {"kind": "clt", "site": "resid_mid"}}},
        r"^dictionaries\.a.*reconstructs mlp_out or mlp_added, not resid_mid",
    ),
    "a sweep of both kinds": (
        {"dictionaries": {"a": {"kind": ["clt", "transcoder"]}}},
        r"^dictionaries\.a: cross-layer transcoders are trained in a job of all layers.*one sweep for each",
    ),
    "outliers that are dropped": (
        {"activations": {"outliers": {"action": "drop"}}},
        r"^dictionaries\.clt: with activations\.outliers\.action: drop.*set it to keep or cap",
    ),
    "greater-than": (
        {
            "cases": {
                "c": {"kind": "greater_than", "run": NAME, "template": "{year} to {century}", "slots": {}}
            }
        },
        rf"^cases\.c\.run: {NAME} is a cross-layer transcoder, and greater_than replaces the MLP of one layer",
    ),
    "an export to a format without cross-layer transcoders": (
        {"exchange": {"formats": ["sparsify"], "runs": [NAME]}},
        rf"^exchange\.formats: sparsify has no cross-layer transcoders, and {NAME} is .*or use circuit-tracer",
    ),
    "an export of topk": (
        {"dictionaries": {"a": {"kind": "clt"}}, "exchange": {"formats": ["circuit-tracer"]}},
        r"^exchange\.formats: circuit-tracer's .* have relu or thresholds and no skip, and .* of topk; name other",
    ),
    "an export of a skip connection": (
        {
            "dictionaries": {"a": {"kind": "clt", "act": "relu", "skip": True}},
            "exchange": {"formats": ["circuit-tracer"]},
        },
        r"^exchange\.formats: circuit-tracer's .* is a cross-layer transcoder with skip; name other runs",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_in_one_line(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as raised:
        load_study({**STUDY, **changes})
    assert "\n" not in str(raised.value)


def test_prompts_without_a_run_to_trace_through_are_refused() -> None:
    saes = {"saes": {"kind": "sae"}}
    with pytest.raises(ValueError, match=r"^circuits\.prompts: .*add a sweep of transcoders"):
        load_study({**STUDY, "dictionaries": saes, "circuits": {"prompts": PROMPTS}})
    with pytest.raises(
        ValueError, match=rf"^circuits\.prompts\.own\.run: {NAME} is no run .*none: add a sweep"
    ):
        named = {"own": {**PROMPTS["other"], "run": NAME}}
        load_study({**STUDY, "dictionaries": saes, "circuits": {"prompts": named}})


def test_a_prompt_is_traced_through_its_run_or_transcoders_or_a_cross_layer_transcoder() -> None:
    prompts = {**PROMPTS, "own": {"text": "she was", "run": NAME}}
    study = load_study({**STUDY, "circuits": {"prompts": prompts}})
    assert study.traceable == ["tc-topk4-64", NAME, "clt-batchtopk4-64-reach1-budgetall"]
    assert [study.run_of_prompt(name) for name in prompts] == ["tc-topk4-64", NAME]
    only = {"clt": STUDY["dictionaries"]["clt"]}
    study = load_study({**STUDY, "dictionaries": only, "circuits": {"prompts": prompts}})
    assert [study.run_of_prompt(name) for name in prompts] == [NAME, NAME]
    assert study.traced_run == NAME
    assert load_study({**STUDY, "circuits": {"run": NAME}}).traced_run == NAME


def test_behaviours_and_cases_take_a_cross_layer_transcoder() -> None:
    planted = {"kind": "planted", "runs": ["tc-topk4-64"]}
    study = load_study(
        {
            **STUDY,
            "circuits": {"behaviours": {"b": {**BEHAVIOUR, "runs": [NAME, "tc-topk4-64"]}}},
            "cases": {"own": {**planted, "run": NAME}, "other": {**planted, "runs": [NAME]}},
        }
    )
    assert study.case_runs("own") == [NAME, "tc-topk4-64"]
    assert study.case_runs("other") == ["tc-topk4-64", NAME]
