"""Comparing dictionaries: shares of influence, predicted effects of ablations, and the report of the groups."""

import pyarrow as pa
import pytest
import torch
from tests.attribution.inputs import BOS, KINDS, PROMPT, load_tiny, make_cross_layer, make_dictionaries
from tests.models import LAYERS, VOCABULARY, tiny_gpt2
from torch import Tensor

from circuitloom.ablation.feature_edits import apply_edits, make_edits
from circuitloom.ablation.interventions import ablate_free
from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import logit_targets, total_effects
from circuitloom.attribution.graph import GraphScores, Roots, trace_graph
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.tracer import feature_name
from circuitloom.cases.case_report import write_report
from circuitloom.cases.compare.full_graph import Flow, FullGraph, full_graph
from circuitloom.cases.compare.measurements import (
    EffectAgreement,
    StepOutcome,
    agreement,
    measure_effects,
    measure_step,
)
from circuitloom.cases.compare.report import CompareResults, PromptOutcome, RunOutcome, make_report
from circuitloom.cases.compare.study import PlantedTruth, draw_prompts, study_compare
from circuitloom.cases.context import CaseContext
from circuitloom.config import load_study
from circuitloom.config.cases import CompareCase
from circuitloom.config.circuits import Circuits, FeatureChange
from circuitloom.core.tables import CONCEPT, METRIC, read_table
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.language_model.model import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny("gpt2", tmp_path_factory.mktemp("models"), "float64")


def graph_of(model, kind: str = "transcoder") -> FullGraph:
    dictionaries = make_dictionaries(model, kind)
    linearized = LinearizedModel(capture_pass(model, read_weights(model), PROMPT), dictionaries, BOS)
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[[20, 21]]
    targets = logit_targets(linearized, torch.tensor([10, 10]), weights)
    return full_graph(linearized, Roots(targets, torch.tensor([0.75, 0.25], dtype=torch.float64)))


def some_features(graph: FullGraph) -> Tensor:
    """Marks every third feature."""
    return torch.arange(graph.columns.active) % 3 == 0


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_effects_are_those_of_the_traced_graph(model, kind):
    graph = graph_of(model, kind)
    traced = trace_graph(graph.model, graph.roots)
    assert graph.scores.replacement == pytest.approx(traced.scores.replacement, rel=1e-9)
    assert graph.scores.completeness == pytest.approx(traced.scores.completeness, rel=1e-9)
    every = torch.arange(graph.columns.active)
    # a backward pass through all features gives the same sums over paths
    expected = total_effects(graph.model, graph.roots.targets)[:, : graph.columns.active].T
    torch.testing.assert_close(graph.predict_each(every), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["transcoder", "cross-layer"])
def test_a_set_is_predicted_as_a_forward_pass_in_which_it_stays_at_zero(model, kind):
    graph = graph_of(model, kind)
    marked = some_features(graph)
    active = graph.columns.active
    z = graph.model.features.activation
    drop = torch.zeros(active, dtype=torch.float64)
    for feature in range(active):
        passed = (graph.effects[feature, :active] / z * drop).sum()
        drop[feature] = z[feature] if marked[feature] else passed
    expected = (graph.effects[active:, :active] / z * drop).sum(1)
    torch.testing.assert_close(graph.predict_set(marked), expected, rtol=1e-9, atol=1e-12)
    one = torch.arange(active) == 5
    torch.testing.assert_close(graph.predict_set(one), graph.predict_each(torch.tensor([5]))[0])


@pytest.mark.parametrize("kind", ["transcoder", "cross-layer"])
def test_influence_is_followed_to_the_first_marked_feature(model, kind):
    graph = graph_of(model, kind)
    marked, columns = some_features(graph), graph.columns
    # random walk from the roots to their sources, absorbed at marked features, tokens and errors
    size = graph.effects.abs()
    size[:, columns.position_embeddings] = 0
    size[:, columns.constant] = 0
    step = size / size.sum(1, keepdim=True)
    at = graph.roots.weight @ step[columns.active :]
    through = around = errors = 0.0
    for _ in range(LAYERS + 1):
        own = at[: columns.active]
        through += float(own[marked].sum())
        around += float(at[columns.embeddings].sum())
        errors += float(at[columns.errors].sum())
        at = (own * ~marked) @ step[: columns.active]
    flow = graph.flow(marked)
    assert flow == pytest.approx((through, around, errors), rel=1e-9)
    assert sum(flow) == pytest.approx(1) and 0.05 < flow.through < 0.95
    none = graph.flow(torch.zeros_like(marked))
    assert none.through == 0
    assert none.around == pytest.approx(graph.scores.replacement, rel=1e-9)


def test_effects_are_compared_with_free_ablations(model):
    graph = graph_of(model, "cross-layer")
    ablated = graph.strongest(12)
    influence = graph.influence.node[: graph.columns.active]
    assert len(ablated) == 12 and influence[ablated].min() >= influence.sort(descending=True).values[11]
    measured = ablate_free(model, graph.model, ablated, [graph.roots.targets])
    predicted = graph.predict_each(ablated)
    result = measure_effects(model, graph, 12)
    stacked = torch.stack([predicted.flatten(), measured.flatten()])
    assert result.correlation == pytest.approx(float(torch.corrcoef(stacked)[0, 1]))
    assert result.error == pytest.approx(float((predicted - measured).abs().sum() / measured.abs().sum()))
    assert result.edge_correlation is not None and -1 <= result.edge_correlation <= 1


def test_agreement_by_hand():
    direct, drop = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])
    result = agreement(direct, drop, torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0]))
    assert result.edge_correlation == pytest.approx(1)
    assert result.correlation == pytest.approx(-1)
    assert result.error == pytest.approx((1 + 3) / 3)
    assert result.slope == pytest.approx((2 - 2) / 5)
    nothing = agreement(direct[:1], drop[:1], torch.zeros(2), torch.zeros(2))
    assert nothing.edge_correlation is nothing.correlation is nothing.error is nothing.slope is None


def test_a_step_is_ablated_in_the_model(model):
    graph = graph_of(model)
    features = graph.model.features
    chosen = {0: {int(features.feature[0])}, 1: set()}
    active = ((features.layer == 0) & (features.feature == features.feature[0])).nonzero()[:, 0]
    names = [feature_name(graph.model, int(i)) for i in active]
    edits = make_edits(graph.model, FeatureChange(kind="ablate", features=names))
    expected = apply_edits(model, graph.model, edits, [graph.roots.targets])
    step, weight = measure_step(model, graph, chosen), graph.roots.weight
    assert step.n_features == len(names) > 0
    assert step.root == pytest.approx(float(expected.before @ weight))
    assert step.measured == pytest.approx(float((expected.before - expected.free) @ weight))
    nothing = measure_step(model, graph, {2: set()})
    assert (nothing.n_features, nothing.predicted) == (0, 0) and nothing.measured == pytest.approx(
        0, abs=1e-12
    )


# The case study


def make_case(**keys) -> CompareCase:
    shared = {
        "kind": "compare",
        "groups": {"plt": ["p0", "p1"], "clt": ["c0"]},
        "pairs": ["clt vs plt"],
        "prompts": [{"text": "w9 {word} w31", "target": "logit w20 vs w21"}, {"text": "{word} w5 w6"}],
        "slots": {"word": ["w10", "w11", "w12"]},
        "count": 4,
        "ablated": 6,
        "resamples": 50,
    }
    return CompareCase(**{**shared, **keys})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    model = load_model(tiny_gpt2(folder / "model"), device="cpu")
    runs = {
        "p0": make_dictionaries(model),
        "p1": make_dictionaries(model, k=6),
        "c0": make_cross_layer().layers,
    }
    context = CaseContext(model, load_tokenizer(str(folder / "model")), runs, 32)
    rows = [
        {"run": run, "layer": layer, "l0": 4.0, "fvu": 0.5, "alive": 0.75, "delta_ce": 0.1, "kl": 0.2}
        for run in runs
        for layer in (-1, *range(LAYERS))
    ]
    metrics = pa.Table.from_pylist(
        [dict.fromkeys(METRIC.columns) | row for row in rows], schema=METRIC.schema
    )
    made = study_compare("x", context, metrics, None, make_case(), Circuits())
    write_report(made, folder / "x")
    return made, folder / "x"


def test_all_runs_trace_the_same_prompts(report):
    _, folder = report
    rows = read_table(folder / "compared_prompt.parquet").to_pylist()
    texts = {row["run"]: [(r["text"], r["target"]) for r in rows if r["run"] == row["run"]] for row in rows}
    assert texts["p0"] == texts["p1"] == texts["c0"] and len(set(texts["p0"])) == 4
    assert {row["group_name"] for row in rows} == {"plt", "clt"}
    assert all(0 < row["replacement_score"] < 1 and row["n_through"] is None for row in rows)
    runs = {row["run"]: row for row in read_table(folder / "compared_run.parquet").to_pylist()}
    d, width = 16, 40
    assert runs["p0"]["parameters"] == LAYERS * (2 * d * width + width + d)
    # encoders of three layers, decoders to six outputs
    assert runs["c0"]["parameters"] == (3 + 6) * d * width + LAYERS * (width + d)
    assert runs["c0"]["l0"] == 12 and runs["c0"]["dead"] == 0.25 and runs["c0"]["delta_ce"] == 0.1
    assert "Mean replacement score: plt" in (folder / "result.md").read_text()


def test_claims_are_about_differences_of_the_same_prompts(report):
    made, folder = report
    rows = read_table(folder / "compared_prompt.parquet").to_pylist()
    score = {(row["run"], row["prompt"]): row["replacement_score"] for row in rows}
    differences = [score["c0", i] - (score["p0", i] + score["p1", i]) / 2 for i in range(4)]
    claims = {claim.name: claim for claim in made.claims}
    assert list(claims) == [
        f"clt_above_plt_{score}" for score in ("replacement", "completeness", "edges", "effects")
    ]
    assert claims["clt_above_plt_replacement"].value == pytest.approx(sum(differences) / 4)
    assert claims["clt_above_plt_replacement"].n == 4


def test_prompts_are_drawn_from_the_templates_in_turn():
    drawn = draw_prompts(make_case(count=5))
    assert len(drawn) == 6 and len({each.text for each in drawn}) == 6
    assert [each.target for each in drawn] == ["logit w20 vs w21", "logits"] * 3


def test_features_of_a_step_are_those_above_the_bound_on_the_choosing_half():
    rows = [
        {"run": run, "layer": layer, "feature": feature, "concept": concept, "f1_choosing": f1, "f1": 1 - f1}
        for run, layer, feature, concept, f1 in (
            ("a", 0, 3, "plural", 0.5),
            ("a", 0, 4, "plural", 0.4),
            ("a", 2, 3, "plural", 0.9),
            ("a", 1, 7, "other", 0.9),
            ("b", 0, 8, "plural", 0.9),
        )
    ]
    empty = torch.zeros(0, 0, dtype=torch.int64)
    held_out = HeldOut(empty, empty, empty.bool(), empty.bool())
    truth = PlantedTruth(held_out, CONCEPT.schema.empty_table(), pa.Table.from_pylist(rows))
    assert truth.features("a", ["plural"], 0.5) == {0: {3}, 2: {3}}
    assert truth.features("a", ["plural", "other"], 0.5) == {0: {3}, 1: {7}, 2: {3}}
    with pytest.raises(ValueError, match=r"single is no concept .* choose from other, plural"):
        truth.features("a", ["single"], 0.5)


def test_claims_about_steps_compare_predicted_and_measured_drops():
    case = make_case(
        concepts=True,
        groups={"plt": ["p0"]},
        pairs=[],
        prompts=[{"text": "w1", "through": "plural"}],
        slots={},
    )

    outcomes = [
        PromptOutcome(
            "plt", "p0", number, case.prompts[0], 9, GraphScores(0.5, 0.5, 0.5),
            EffectAgreement(None, None, None, None), StepOutcome(2, Flow(share, 0.1, 0.2), 3.0, predicted, measured),
        )
        for number, (share, predicted, measured) in enumerate([(0.7, 1.0, 2.0), (0.3, 3.0, 4.0)])
    ]  # fmt: skip
    run = RunOutcome("plt", "p0", 1, 1, 1.0, 0.1, None, None, 0.0, None)
    claims = {
        each.name: each for each in make_report(CompareResults("x", case, [run], outcomes, None)).claims
    }
    assert claims["plt_names_the_step"].value == pytest.approx(0.5)
    assert claims["plt_predicts_the_step"].value == pytest.approx((1 + 1) / (2 + 4))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pairs": ["clt vs sae"]}, "no group sae; choose from plt, clt"),
        ({"pairs": ["clt"]}, "write GROUP vs GROUP"),
        ({"pairs": ["clt vs clt"]}, "write GROUP vs GROUP"),
        ({"run": "p0"}, "name its runs under `groups`"),
        ({"groups": {"a": ["x"], "b": ["x"]}, "pairs": []}, "a run is named twice"),
        ({"prompts": [{"text": "{thing}"}]}, "nothing fills"),
        ({"prompts": [{"text": "w1", "target": "feature 0/1"}]}, "only logits can be compared"),
        ({"prompts": [{"text": "w1", "through": "plural"}]}, "set concepts: true"),
    ],
)
def test_keys_that_cannot_be_used_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        make_case(**keys)


def small_study(groups: dict, **keys) -> dict:
    case = {"kind": "compare", "groups": groups, "prompts": [{"text": "he was caught"}], **keys}
    return {
        "name": "x",
        "corpus": {"source": "chronicle"},
        "language_model": {"source": "pretrain", "layers": 2, "d_model": 32, "heads": 2},
        "training": {"width": 64},
        "dictionaries": {
            "plt": {"name": "plt"},
            "clt": {"kind": "clt", "name": "clt"},
            "sae": {"kind": "sae", "name": "sae"},
        },
        "cases": {"compared": case},
    }


def test_a_study_compares_transcoders_and_cross_layer_transcoders():
    study = load_study(small_study({"a": ["clt"], "b": ["plt"]}))
    assert study.case_runs("compared") == ["clt", "plt"]
    with pytest.raises(
        ValueError, match=r"cases.compared: there is no run of transcoders sae; choose from plt, clt"
    ):
        load_study(small_study({"a": ["clt"], "b": ["sae"]}))
    with pytest.raises(ValueError, match=r"cases.compared: there is no run tc; choose from plt, clt"):
        load_study(small_study({"a": ["clt"], "b": ["tc"]}))


def test_a_case_study_without_runs_needs_none():
    config = small_study({"a": ["clt"]})
    config["dictionaries"], config["cases"] = {}, {"steps": {"kind": "known_steps"}}
    assert load_study(config).case_runs("steps") == []
