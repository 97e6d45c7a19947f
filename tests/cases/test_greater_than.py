"""The case study of greater-than finds the components of a model that was built by hand."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cases.year_model import CARRIER, LENGTH, PLACE, TEMPLATE, YEARS, N, make_case, open_year_model

from circuitloom.ablation.causal_effects import original_logits, replacement_values
from circuitloom.ablation.circuits import draw_random_features
from circuitloom.ablation.common_circuit import COMMON_CONDITIONS
from circuitloom.attribution.capture import read_weights
from circuitloom.attribution.paths import EMBEDDING, FEATURE, HEAD
from circuitloom.cases.case_report import CaseReport, write_report
from circuitloom.cases.claims import lead, leading_share, least_mean, mean_correlation, mean_ranks
from circuitloom.cases.context import CaseContext
from circuitloom.cases.greater_than.measurements import (
    ALL_REPLACED,
    UNTOUCHED,
    GreaterThanResults,
    ablated_name,
    find_common_years,
    logit_attribution,
    replaced_name,
    year_metrics,
)
from circuitloom.cases.greater_than.prompts import find_answers, greater_than, make_prompts
from circuitloom.cases.greater_than.study import measure_greater_than, study_greater_than
from circuitloom.config.cases import GreaterThanCase
from circuitloom.core.tables import read_table
from circuitloom.corpus.templates import FINDING, TESTING
from circuitloom.language_model.residual import Norm

STARTS = YEARS[:-1]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> CaseContext:
    return open_year_model(tmp_path_factory.mktemp("years"))


@pytest.fixture(scope="module")
def found(context: CaseContext) -> GreaterThanResults:
    return measure_greater_than("years", context, make_case())


@pytest.fixture(scope="module")
def report(context: CaseContext) -> CaseReport:
    return study_greater_than("years", context, make_case())


def claims(report: CaseReport) -> dict:
    return {claim.name: claim for claim in report.claims}


def test_the_metric_is_later_minus_other_years_among_the_answers():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    year, start = torch.tensor([10, 20, 30, 40, 50]), torch.tensor([10, 30, 49])
    p = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    expected = [p[0, 1:].sum() - p[0, 0], p[1, 3:].sum() - p[1, :3].sum(), p[2, 4] - p[2, :4].sum()]
    torch.testing.assert_close(greater_than(logits, year, start), torch.stack(expected))


def test_the_metric_of_all_logits_equals_the_metric_of_the_answers(
    context: CaseContext, found: GreaterThanResults
):
    metrics = year_metrics(found.prompts, found.answers, context.tokenizer.separator_id)
    values = [float(prompt.metric(original_logits(context.model, prompt)[None])) for prompt in metrics]
    assert values == pytest.approx(found.conditions[UNTOUCHED].tolist(), abs=1e-5)
    assert not torch.equal(*(p.metric(torch.randn(2, len(context.tokenizer.strings()))) for p in metrics[:2]))


def test_both_halves_have_every_start_year_and_each_prompt_its_counterpart(
    context: CaseContext, found: GreaterThanResults
):
    prompts = found.prompts
    assert len(prompts) == 2 * len(STARTS) and prompts.dropped == 0 and prompts.place == PLACE
    for half in (FINDING, TESTING):
        assert prompts.of(half).start.tolist() == list(STARTS)
    texts = set(prompts.text)
    assert texts == {TEMPLATE.format(noun=noun, year=year) for noun in ("war", "siege") for year in STARTS}
    changed = prompts.token != prompts.other
    assert changed.nonzero()[:, 1].tolist() == [PLACE] * len(prompts)
    strings = context.tokenizer.strings()
    for column, years in ((prompts.token, prompts.start), (prompts.other, prompts.other_start)):
        assert [strings[i] for i in column[:, PLACE].tolist()] == [str(year) for year in years.tolist()]
    assert prompts.scored.tolist() == [False] + [True] * (LENGTH - 1)


def test_one_filling_per_year_is_halved_by_years(context: CaseContext):
    answers = find_answers(make_case(), context.tokenizer)
    prompts = make_prompts(make_case(fillings=1), context.tokenizer, 16, answers)
    assert prompts.of(FINDING).start.tolist() == list(STARTS[::2])
    assert prompts.of(TESTING).start.tolist() == list(STARTS[1::2])


def test_exact_transcoders_change_nothing_and_an_ablated_mlp_leaves_chance(found: GreaterThanResults):
    original = found.conditions[UNTOUCHED]
    assert original.mean() > 0.9
    for name in (replaced_name(0), replaced_name(1), ALL_REPLACED):
        torch.testing.assert_close(found.conditions[name], original, atol=1e-5, rtol=0)
    # all years are equally likely: number of later years minus number of the others, per start year
    chance = torch.tensor([(N - 1 - i - (i + 1)) / N for i in range(N - 1)]).repeat_interleave(2)
    for layer in (0, 1):
        torch.testing.assert_close(found.conditions[ablated_name(layer, "zero")], chance, atol=1e-4, rtol=0)


def test_transcoders_of_what_the_mlp_adds_are_used_at_that_site(
    context: CaseContext, found: GreaterThanResults
):
    """In GPT-2 the two sites have the same values; a norm behind the MLP is passed only by what is written before."""
    added = {layer: replace(each, site_out="mlp_added") for layer, each in context.transcoders.items()}
    again = measure_greater_than("years", replace(context, runs={"exact": added}), make_case())
    assert again.conditions.keys() == found.conditions.keys()
    for name, values in again.conditions.items():
        torch.testing.assert_close(values, found.conditions[name])
    gain = torch.linspace(0.5, 2, 48)
    weights = read_weights(context.model)
    block = replace(weights.blocks[1], norm_mlp_after=Norm(gain, torch.zeros(48), False))
    weights = replace(weights, blocks=[weights.blocks[0], block])
    feature, token = torch.arange(3), torch.tensor([7, 8])
    rows = weights.unembedding.rows[token]
    for transcoder, factor in ((context.transcoders[1], gain), (added[1], 1.0)):
        expected = (factor * transcoder.W_dec[feature]) @ rows.T
        torch.testing.assert_close(logit_attribution(weights, transcoder, feature, token), expected)


def test_the_layer_and_the_head_are_found(found: GreaterThanResults):
    assert found.layer == 1
    assert (int(found.patching.layer[found.head]), int(found.patching.head[found.head])) == CARRIER
    shares = found.patching.effect.mean(1) / found.patching.total.mean()
    expected = torch.zeros(4)
    expected[2 * CARRIER[0] + CARRIER[1]] = 1
    torch.testing.assert_close(shares, expected, atol=1e-4, rtol=0)
    assert (found.patching.total > 0.1).all()


def test_the_layer_or_feature_named_by_the_case_is_studied(context: CaseContext):
    assert measure_greater_than("years", context, make_case(layer=0)).layer == 0
    found = measure_greater_than("years", context, make_case(feature="1/3"))
    assert (found.layer, found.feature) == (1, 3)
    with pytest.raises(ValueError, match="layer 2: run exact has no transcoder there; choose from 0, 1"):
        measure_greater_than("years", context, make_case(layer=2))
    with pytest.raises(ValueError, match="layer 1 has features 0 to 6, not 7"):
        measure_greater_than("years", context, make_case(feature="1/7"))


def test_each_feature_fires_at_its_year_promotes_later_ones_and_reads_its_year(found: GreaterThanResults):
    years = found.years
    assert years.year.tolist() == list(STARTS) and years.head == CARRIER
    assert years.score is not None
    for feature, activation, attribution, score in zip(
        years.feature.tolist(), years.activation, years.attribution, years.score, strict=True
    ):
        assert (activation > 0).nonzero()[:, 0].tolist() == [feature]
        assert int(score.argmax()) == feature and score[feature] > 2 * score.topk(2).values[1]
        assert ((attribution > 0) == (torch.arange(len(STARTS)) > feature)).all()
    assert (found.direct >= 0).all() and int((found.direct > 0.1).sum()) == len(years.feature)


def test_a_feature_of_layer_0_is_deembedded_through_no_later_head(context: CaseContext):
    found = measure_greater_than("years", context, make_case(layer=0))
    # heads 1.0 and 1.1 do not reach MLP 0; those of layer 0 read nothing
    assert found.years.head is not None and found.years.head[0] == 0
    assert found.years.score is not None and not found.years.score.any()


def test_the_circuit_is_what_was_built_and_recovers_the_metric_alone(found: GreaterThanResults):
    circuit = found.circuit
    assert circuit.parts(HEAD) == [CARRIER]
    traced = {YEARS.index(int(year)) for year in found.prompts.of(FINDING).spread(4).start}
    assert set(circuit.parts(FEATURE)) == {(layer, i) for layer in (0, 1) for i in traced}
    ends = [position for kind, _, _, position in circuit.contribution if kind == EMBEDDING]
    assert PLACE in ends
    # the circuit only has the start years that were traced
    known = torch.tensor([YEARS.index(year) in traced for year in found.prompts.of(TESTING).start.tolist()])
    alone = found.ablations["zero"]
    torch.testing.assert_close(alone.circuit[known], alone.untouched[known], atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.without_features[known], alone.none[known], atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.circuit[~known], alone.none[~known], atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.all, alone.untouched, atol=1e-5, rtol=0)


def test_random_features_match_the_circuit_per_layer_and_fire_on_the_prompts(
    context: CaseContext, found: GreaterThanResults
):
    metrics = year_metrics(found.prompts, found.answers, context.tokenizer.separator_id)
    kept = found.circuit.components(found.basis)
    fill = replacement_values(context.model, found.basis, metrics, "mean")
    drawn = [draw_random_features(found.basis, kept, fill, seed) for seed in range(8)]
    for own, part, filled in zip(found.basis.slices, found.basis.parts, fill, strict=True):
        for each in drawn:
            assert each[own].sum() == kept[own].sum()
            if part.kind == "head":
                assert torch.equal(each[own], kept[own])
            else:
                assert filled[0][each[own]].all()
    assert any(not torch.equal(drawn[0], each) for each in drawn[1:])


def test_contributions_to_the_answer_come_from_the_start_year(
    context: CaseContext, found: GreaterThanResults
):
    inputs = found.contributions
    values = inputs.token.sum(1) + inputs.error.sum((1, 2)) + inputs.position.sum(1) + inputs.constant
    prompts = found.prompts.of(TESTING).spread(4)
    logits = context.model.logits(prompts.token)[:, -1, found.answers.token]
    for value, row, start in zip(values, logits, prompts.start, strict=True):
        later = found.answers.year > start
        torch.testing.assert_close(value, row[later].mean() - row[~later].mean(), atol=1e-3, rtol=1e-4)
    others = inputs.token.clone()
    others[:, PLACE] = 0
    assert (inputs.token[:, PLACE] > 3 * others.abs().sum(1)).all()
    # exact transcoders have no error; they are not used at BOS
    assert inputs.error[:, :, 1:].abs().max() < 1e-4


def test_the_metric_with_all_features_kept_is_that_of_the_replaced_model(found: GreaterThanResults):
    testing = torch.tensor([half == TESTING for half in found.prompts.half])
    for layer_curve in found.curves:
        curve = layer_curve.curve
        torch.testing.assert_close(
            curve.kept[:, -1], found.conditions[replaced_name(1)][testing].to(curve.kept), atol=1e-5, rtol=0
        )
        if layer_curve.ablation == "zero":
            zero = found.conditions[ablated_name(1, "zero")][testing]
            torch.testing.assert_close(curve.kept[:, 0], zero.to(curve.kept), atol=1e-4, rtol=0)


def test_claims_have_the_values_of_the_model_that_was_built(report: CaseReport, tmp_path: Path):
    by_name = claims(report)
    assert by_name["head_share"].value == pytest.approx(1, abs=1e-3) and by_name["head_share"].holds
    # features are the neurons, so neither is better
    assert by_name["few_features_zero"].value == pytest.approx(0, abs=1e-6)
    assert by_name["zero_ablated"].value == pytest.approx(0, abs=1e-3)
    assert by_name["replaced_worst"].value == pytest.approx(by_name["untouched"].value, abs=1e-4)
    for name in (
        "untouched",
        "replaced_all",
        "zero_ablated",
        "head_first",
        "direct_effect",
        "deembedding",
        "year_first",
    ):
        assert by_name[name].holds, name
    write_report(report, tmp_path)
    for table in GreaterThanCase.tables:
        assert len(read_table(tmp_path / f"{table}.parquet")), table
    assert {f"{figure}.png" for figure in GreaterThanCase.figures} == {f.name for f in tmp_path.glob("*.png")}
    page = (tmp_path / "result.md").read_text()
    assert "head 1.0" in page and "0 were left out" in page and "nan" not in page


def test_published_values_are_reported_with_the_measured_ones(context: CaseContext):
    published = {"untouched": 0.9, "without_feature": 0.7}
    by_name = claims(study_greater_than("years", context, make_case(published=published)))
    assert by_name["untouched"].published == 0.9 and by_name["replaced"].published is None
    assert by_name["feature_removed"].published == pytest.approx(0.2)


def test_subtracting_a_feature_changes_only_the_metric_of_its_year(context: CaseContext):
    found = measure_greater_than("years", context, make_case(feature="1/2"))
    lost = found.conditions[UNTOUCHED] - found.conditions["without feature 1/2"]
    assert (lost.abs() > 0.1).tolist() == [int(start) == YEARS[2] for start in found.prompts.start]


def test_tables_agree_with_each_other(report: CaseReport):
    outcomes = report.tables["outcome"]
    metric = [row["value"] for row in outcomes if row["condition"] == UNTOUCHED]
    assert np.mean(metric) == pytest.approx(claims(report)["untouched"].value)
    for circuit in ("paths", "leaves"):
        rows = [row for row in report.tables["source"] if row["circuit"] == circuit]
        assert [row["rank"] for row in rows] == list(range(len(rows)))
        assert sum(abs(row["share"]) for row in rows) <= 1 + 1e-6
        best = next(row for row in rows if row["kind"] == "token")
        assert best["relative_position"] == PLACE - LENGTH + 1 and best["token"] is None
    curves = [row for row in report.tables["faithfulness"] if row["ranking"] == "circuit"]
    assert {row["ablation"] for row in curves} == {"zero", "mean"}
    assert [row["faithfulness"] for row in curves if row["n_kept"] == 0] == [0, 0]


def test_the_statistics_of_claims_are_correct():
    rows = np.array([[[3.0, 1, 2], [5, 3, 1]]])
    assert least_mean(rows).tolist() == [1.5] and lead(rows).tolist() == [2.0]
    assert leading_share(rows).tolist() == [(4 - 2) / 1.5]
    assert mean_ranks([5, 1, 5, 9]).tolist() == [1.5, 0, 1.5, 3]
    x = np.arange(5.0)
    assert mean_correlation(np.stack([x, 2 * x + 1, x, -x], 1)[None]) == pytest.approx([0])
    assert mean_correlation(np.stack([x, 3 - 2 * x], 1)[None]) == pytest.approx([-1])
    assert np.isnan(mean_correlation(np.stack([x, 0 * x], 1)[None])).all()


def test_the_picture_of_the_metric_has_a_bar_for_each_layer_and_condition(
    found: GreaterThanResults, report: CaseReport
):
    axes = report.figures["metric"][0].axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers[::2]}
    mean = {name: float(values.mean()) for name, values in found.conditions.items()}
    assert heights == {
        "replaced by transcoder": pytest.approx(
            [mean[n] for n in (replaced_name(0), replaced_name(1), ALL_REPLACED)]
        ),
        "set to zero": pytest.approx([mean[ablated_name(layer, "zero")] for layer in (0, 1)]),
        "set to its mean": pytest.approx([mean[ablated_name(layer, "mean")] for layer in (0, 1)]),
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "all"]


def test_the_picture_of_curves_has_features_and_neurons_in_a_panel_per_ablation(
    found: GreaterThanResults, report: CaseReport
):
    panels = report.figures["kept"][0].axes
    assert [panel.get_title() for panel in panels] == [
        "the others set to zero",
        "the others set to their mean",
    ]
    for panel, kind in zip(panels, ("zero", "mean"), strict=True):
        lines = {line.get_label(): line for line in panel.lines}
        for each in found.curves:
            if each.ablation == kind:
                name = {"features": "transcoder features", "neurons": "neurons"}[each.units]
                assert lines[name].get_xdata().tolist() == each.curve.n_kept.tolist()
                assert lines[name].get_ydata() == pytest.approx(each.curve.kept.double().mean(0).numpy())


def test_the_picture_of_years_has_a_panel_per_feature_and_quantity(
    found: GreaterThanResults, report: CaseReport
):
    years = found.years
    panels = np.array(report.figures["years"][0].axes).reshape(3, len(years.feature))
    assert [panel.get_title() for panel in panels[0]] == [f"feature 1/{i}" for i in years.feature.tolist()]
    for row, values in zip(panels, (years.activation, years.score, years.attribution), strict=True):
        for panel, own in zip(row, values, strict=True):
            assert panel.lines[0].get_xdata().tolist() == list(STARTS)
            assert panel.lines[0].get_ydata().tolist() == own.tolist()


def test_the_common_circuit_has_the_features_that_all_start_years_share(
    context: CaseContext, found: GreaterThanResults, report: CaseReport
):
    """Each year has features of its own, so that no feature is common to the graphs of all years."""
    common = found.common
    assert common is not None
    (template,) = common.templates
    assert template.circuit == [] and template.graph.n_prompts == len(STARTS)
    assert template.prompts.names[PLACE] == "{year}" and template.prompts.text == TEMPLATE
    rows = report.tables["aggregate_node"]
    features = [row for row in rows if row["kind"] == "feature"]
    assert {(row["layer"], row["token"]) for row in features} == {(0, "{year}"), (1, "c")}
    assert all(row["share"] == pytest.approx(1 / len(STARTS)) for row in features)
    values = claims(report)
    assert values["common_sufficient"].value == pytest.approx(0, abs=1e-6)
    # together, the features of all graphs are sufficient and necessary on the other half
    conditions = dict(zip(COMMON_CONDITIONS, common.metric.T, strict=True))
    untouched = found.conditions[UNTOUCHED].double()
    torch.testing.assert_close(conditions["all aggregated features alone"], untouched, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        conditions["without all aggregated features"], conditions["features ablated"], atol=1e-3, rtol=0
    )
    case = make_case(common=0.1, aggregated=3)
    again = find_common_years(context.tracer(), found.prompts, found.answers, case, None)
    assert again is not None and len(again.templates[0].circuit) == 2 * 3
    assert Counter(found.prompts.half[i] for i in again.measured) == {FINDING: 3, TESTING: 3}
