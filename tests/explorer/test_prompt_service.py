"""Results of the prompt service: active features, next tokens, circuits and feature edits."""

import math

import pytest
import torch
from tests.attribution.test_tracer import TEXT, make_tracer

from circuitloom.core.layout import Layout
from circuitloom.core.tables import LABEL, write_table
from circuitloom.corpus.token_names import token_name
from circuitloom.explorer.prompt_service import PromptService, compare_predictions, live_circuit

STRINGS = ["a", "b", "c"]


def test_the_kl_divergence_is_of_before_relative_to_after() -> None:
    before, after = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    # 2 * 0.5 * log(0.5 / 0.25); the reverse KL is infinite
    assert compare_predictions(3, before, after, STRINGS).kl == pytest.approx(math.log(2))
    before, after = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    found = compare_predictions(3, before, after, STRINGS).kl
    assert found == pytest.approx(expected, rel=1e-5) != pytest.approx(reverse, rel=1e-5)


def test_predictions_are_compared_on_the_most_likely_tokens_of_both() -> None:
    before = torch.zeros(40)
    before[:10], before[10] = 0.09, 0.1
    after = torch.zeros(40)
    after[30:40] = 0.1
    result = compare_predictions(3, before, after, [f"t{i}" for i in range(35)])
    assert result.position == 3
    names = [token for token, _, _ in result.rows]
    assert {"t10", "t30", "t34", "⟨#35⟩", "⟨#39⟩"} <= set(names)
    assert len(names) == 20
    most_likely = [max(p, q) for _, p, q in result.rows]
    assert most_likely == sorted(most_likely, reverse=True)
    assert {token: (p, q) for token, p, q in result.rows}["t10"] == pytest.approx((0.1, 0.0))


@pytest.fixture(scope="module")
def tracer(tmp_path_factory):
    return make_tracer(tmp_path_factory.mktemp("prompt"))


@pytest.fixture(scope="module")
def service(tracer, tmp_path_factory) -> PromptService:
    service = PromptService(tmp_path_factory.mktemp("study"))
    service._tracers[None] = tracer
    return service


def result(job):
    assert job.finished.wait(120) and job.error is None, job.error
    return job.result


def test_nodes_of_a_traced_prompt_have_the_labels_of_the_study(tracer, tmp_path) -> None:
    service = PromptService(tmp_path)
    service._tracers[None] = tracer
    layer, feature = (
        int(column[0])
        for column in (tracer.linearize(TEXT).features.layer, tracer.linearize(TEXT).features.feature)
    )
    target = f"feature {layer}/{feature} @{int(tracer.linearize(TEXT).features.position[0])}"
    row = {
        "run": tracer.run,
        "layer": layer,
        "feature": feature,
        "label": "`w5`",
        "source": "rule",
        "kind": "token",
        "f1": 0.5,
    }
    write_table(LABEL, [row], Layout(tmp_path).labels("rules", tracer.run, layer))
    nodes = result(service.trace(TEXT, None, target)).circuit.nodes
    labelled = {
        (row["layer"], row["feature"]): row["label_f1"] for row in nodes if row.get("feature_label") == "`w5`"
    }
    assert labelled == {(layer, feature): 0.5}


def test_active_features_and_next_tokens_are_those_of_the_model(service, tracer) -> None:
    found = result(service.features(TEXT, None))
    model = tracer.linearize(TEXT)
    assert (found.run, len(found.tokens)) == ("tc", len(model.captured.token))
    strengths = [row["activation"] for row in found.active]
    assert strengths == sorted(strengths, reverse=True)
    features = model.features
    assert {(row["layer"], row["position"], row["feature"], row["activation"]) for row in found.active} == {
        *zip(features.layer.tolist(), features.position.tolist(), features.feature.tolist(),
             features.activation.tolist(), strict=True)
    }  # fmt: skip
    with torch.inference_mode():
        expected = tracer.language_model.logits(model.captured.token[None])[0].float().softmax(-1)
    for position, most_likely in enumerate(found.next_tokens):
        p, tokens = expected[position].topk(10)
        assert [token for token, _ in most_likely] == [token_name(tracer.strings, i) for i in tokens.tolist()]
        assert [each for _, each in most_likely] == pytest.approx(p.tolist(), rel=1e-4)


def test_an_edit_shows_the_models_own_probabilities_before_and_the_edited_ones_after(service, tracer) -> None:
    from circuitloom.ablation.feature_edits import edited_probabilities, make_edits
    from circuitloom.config.circuits import FeatureChange

    active = result(service.features(TEXT, None)).active[0]
    change = {"kind": "ablate", "features": [f"{active['layer']}/{active['feature']}"]}
    edit = result(service.edit(TEXT, None, -1, change))
    model = tracer.linearize(TEXT)
    last = len(model.captured.token) - 1
    before = model.captured.probabilities(last)
    edits = make_edits(model, FeatureChange(**change))
    after = edited_probabilities(tracer.language_model, model, edits, last)
    assert edit == compare_predictions(last, before, after, tracer.strings)
    assert edit.kl > 0
    same = {"kind": "scale", "strength": 1.0, "features": change["features"]}
    assert result(service.edit(TEXT, None, -1, same)).kl == pytest.approx(0, abs=1e-6)


def test_generated_texts_are_those_of_the_library(service, tracer, monkeypatch) -> None:
    from circuitloom.ablation.generation import Sampling, TextGenerator
    from circuitloom.config.circuits import parse_changes

    generator = TextGenerator(
        tracer.language_model, tracer.tokenizer, tracer.context, lambda _run: tracer.dictionaries, "tc"
    )
    monkeypatch.setitem(service._generators, None, generator)
    settings = {"tokens": 8, "temperature": 0.7, "top_k": 20, "seed": 4, "positions": "generated"}
    found = result(service.generate(TEXT, None, "set 0/3=9; ablate 1/5", settings))
    expected = generator.generate(
        TEXT, parse_changes("set 0/3=9; ablate 1/5"), Sampling(8, 0.7, 20, 4), "generated"
    )
    assert (found.prompt, found.spacing, found.kl) == (TEXT, " ", expected.kl.tolist())
    assert found.steered == [tracer.strings[number] for number in expected.steered.token]
    assert found.untouched == [tracer.strings[number] for number in expected.untouched.token]
    assert max(found.kl) > 0.01
    changed = service.generate(TEXT, None, "set 0/3=9; ablate 1/5", settings | {"seed": 5})
    assert result(changed).steered != found.steered


def test_a_traced_prompt_has_its_row_graph_and_paths_strongest_first(service, tracer) -> None:
    from circuitloom.attribution.trace_tables import TraceRows
    from circuitloom.config.circuits import Circuits, Prompt

    traced = result(service.trace(TEXT, None, "logits"))
    rows = TraceRows(tracer.trace(Prompt(text=TEXT, target="logits"), Circuits()), "prompt", tracer.strings)
    in_graph = {row["node"] for row in rows.nodes() if row["in_graph"]}
    assert {row["node"] for row in traced.circuit.nodes} == in_graph
    assert len(traced.circuit.edges) == len(list(rows.edges()))
    assert traced.circuit.tokens == traced.trace["tokens"]
    contributions = [abs(effect) for _, effect in traced.paths]
    assert contributions == sorted(contributions, reverse=True)
    expected = {}
    for step in rows.paths():
        # the last step of a path holds the contribution of all its steps
        expected[step["path"]] = step["effect"]
    assert sorted(contributions) == pytest.approx(sorted(map(abs, expected.values())))
    # paths are written from their source to the target
    assert all(path.split(" > ")[-1].startswith("logit") for path, _ in traced.paths)


def test_invalid_jobs_fail_with_one_line(service) -> None:
    for job in (
        service.trace(TEXT, None, "nonsense"),
        service.edit(TEXT, None, 0, {"kind": "ablate", "features": ["x"]}),
        service.generate(TEXT, None, "set 0/3", {"tokens": 3, "positions": "all"}),
    ):
        assert job.finished.wait(60)
        assert job.error and "\n" not in job.error


def test_a_live_circuit_has_the_columns_of_the_catalogues_macros() -> None:
    rows = [
        {"node": 0, "kind": "feature", "layer": 0, "feature": 7, "position": 1, "token": "a", "influence": 0.25,
         "in_graph": True, "is_root": False},
        {"node": 1, "kind": "embedding", "position": 1, "token": "a", "influence": 0.75, "in_graph": True,
         "is_root": False},
        {"node": 2, "kind": "head", "layer": 0, "head": 1, "position": 1, "token": "a", "in_graph": False,
         "is_root": False},
        {"node": 3, "kind": "logit", "position": 2, "token": "b", "influence": None, "in_graph": True, "is_root": True},
    ]  # fmt: skip
    edges = [
        {"source": s, "target": t, "effect": e, "effect_frozen": e, "effect_free": e}
        for s, t, e in ((0, 3, 1.0), (1, 0, -2.0))
    ]
    circuit = live_circuit(rows, edges, ["<bos>", "a", "b"])
    assert [(row["label"], row["cumulative"]) for row in circuit.nodes] == [
        ("embedding 'a'@1", 0.75), ("0/7 'a'@1", 1.0), ("logit 'b'@2", 1.0),
    ]  # fmt: skip
    assert [(e["source"], e["target"]) for e in circuit.edges] == [
        ("embedding 'a'@1", "0/7 'a'@1"),
        ("0/7 'a'@1", "logit 'b'@2"),
    ]
