"""The case study of greater-than finds what was put into a model that was made by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cases.year_model import CARRIER, LENGTH, PLACE, TEMPLATE, YEARS, N, make_case, open_year_model

from circuitloom.ablation.causal_effects import find_fill, untouched
from circuitloom.attribution.paths import EMBEDDING, FEATURE, HEAD
from circuitloom.cases.case_report import CaseReport, write_findings
from circuitloom.cases.context import FINDING, TESTING, CaseContext
from circuitloom.cases.greater_than.circuit import draw_like
from circuitloom.cases.greater_than.claims import correlation, lead, leading_share, least, ranks
from circuitloom.cases.greater_than.measured import YearMeasurements, measure_all, spread
from circuitloom.cases.greater_than.passes import ALL, UNTOUCHED, ablating, replacing
from circuitloom.cases.greater_than.prompts import find_answers, greater_than, make_prompts, year_probes
from circuitloom.cases.greater_than.study import study_greater_than
from circuitloom.config.cases import GreaterThanCase
from circuitloom.core.tables import read_table

STARTS = YEARS[:-1]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> CaseContext:
    return open_year_model(tmp_path_factory.mktemp("years"))


@pytest.fixture(scope="module")
def found(opened: CaseContext) -> YearMeasurements:
    return measure_all("years", opened, make_case())


@pytest.fixture(scope="module")
def findings(opened: CaseContext) -> CaseReport:
    return study_greater_than("years", opened, make_case())


def claims(findings: CaseReport) -> dict:
    return {claim.name: claim for claim in findings.claims}


def test_the_metric_is_later_less_other_years_among_the_answers_alone():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    year, start = torch.tensor([10, 20, 30, 40, 50]), torch.tensor([10, 30, 49])
    p = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    expected = [p[0, 1:].sum() - p[0, 0], p[1, 3:].sum() - p[1, :3].sum(), p[2, 4] - p[2, :4].sum()]
    torch.testing.assert_close(greater_than(logits, year, start), torch.stack(expected))


def test_a_probe_reads_the_same_metric_off_all_logits(opened: CaseContext, found: YearMeasurements):
    probes = year_probes(found.prompts, found.answers, opened.tokenizer.bos_id)
    values = [float(probe.metric(untouched(opened.model, probe)[None])) for probe in probes]
    assert values == pytest.approx(found.conditions[UNTOUCHED].tolist(), abs=1e-5)
    assert not torch.equal(*(p.metric(torch.randn(2, len(opened.tokenizer.strings()))) for p in probes[:2]))


def test_both_halves_have_every_start_year_and_each_prompt_its_counterpart(
    opened: CaseContext, found: YearMeasurements
):
    prompts = found.prompts
    assert len(prompts) == 2 * len(STARTS) and prompts.dropped == 0 and prompts.place == PLACE
    for half in (FINDING, TESTING):
        assert prompts.of(half).start.tolist() == list(STARTS)
    texts = set(prompts.text)
    assert texts == {TEMPLATE.format(noun=noun, year=year) for noun in ("war", "siege") for year in STARTS}
    changed = prompts.token != prompts.other
    assert changed.nonzero()[:, 1].tolist() == [PLACE] * len(prompts)
    strings = opened.tokenizer.strings()
    for column, years in ((prompts.token, prompts.start), (prompts.other, prompts.other_start)):
        assert [strings[i] for i in column[:, PLACE].tolist()] == [str(year) for year in years.tolist()]
    assert prompts.scored.tolist() == [False] + [True] * (LENGTH - 1)


def test_one_filling_a_year_is_halved_by_years(opened: CaseContext):
    answers = find_answers("{year}", opened.tokenizer.strings())
    prompts = make_prompts(make_case(fillings=1), opened.tokenizer, 16, answers)
    assert prompts.of(FINDING).start.tolist() == list(STARTS[::2])
    assert prompts.of(TESTING).start.tolist() == list(STARTS[1::2])


def test_exact_transcoders_change_nothing_and_an_ablated_mlp_leaves_chance(found: YearMeasurements):
    whole = found.conditions[UNTOUCHED]
    assert whole.mean() > 0.9
    for name in (replacing(0), replacing(1), ALL):
        torch.testing.assert_close(found.conditions[name], whole, atol=1e-5, rtol=0)
    # all years alike: start by start, those later less the others
    chance = torch.tensor([(N - 1 - i - (i + 1)) / N for i in range(N - 1)]).repeat_interleave(2)
    for layer in (0, 1):
        torch.testing.assert_close(found.conditions[ablating(layer, "zero")], chance, atol=1e-4, rtol=0)


def test_bos_keeps_its_original_in_every_replacement(opened: CaseContext, found: YearMeasurements):
    from circuitloom.cases.greater_than.passes import ablated, replaced

    y = torch.randn(2, LENGTH, opened.transcoders[0].d_out)
    for edit in (
        replaced(opened.transcoders[0], found.prompts.scored),
        ablated(0.0, found.prompts.scored),
    ):
        made = edit(torch.randn_like(y), y)
        assert torch.equal(made[:, 0], y[:, 0])
        assert (made[:, 1:] != y[:, 1:]).any(-1).all()


def test_the_layer_and_the_head_are_found(found: YearMeasurements):
    assert found.layer == 1
    assert (int(found.shifts.layer[found.head]), int(found.shifts.head[found.head])) == CARRIER
    shares = found.shifts.shift.mean(1) / found.shifts.total.mean()
    expected = torch.zeros(4)
    expected[2 * CARRIER[0] + CARRIER[1]] = 1
    torch.testing.assert_close(shares, expected, atol=1e-4, rtol=0)
    assert (found.shifts.total > 0.1).all()


def test_a_layer_that_is_named_is_the_one_that_is_studied(opened: CaseContext):
    assert measure_all("years", opened, make_case(layer=0)).layer == 0
    found = measure_all("years", opened, make_case(feature="1/3"))
    assert (found.layer, found.feature) == (1, 3)
    with pytest.raises(ValueError, match="layer 2: run exact has no transcoder there; choose from 0, 1"):
        measure_all("years", opened, make_case(layer=2))
    with pytest.raises(ValueError, match="layer 1 has features 0 to 6, not 7"):
        measure_all("years", opened, make_case(feature="1/7"))


def test_each_feature_fires_at_its_year_promotes_later_ones_and_reads_its_year(found: YearMeasurements):
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


def test_a_feature_of_layer_0_is_deembedded_through_no_later_head(opened: CaseContext):
    found = measure_all("years", opened, make_case(layer=0))
    # heads 1.0 and 1.1 do not reach MLP 0; those of layer 0 read nothing
    assert found.years.head is not None and found.years.head[0] == 0
    assert found.years.score is not None and not found.years.score.any()


def test_the_circuit_is_what_was_built_and_keeps_all_of_it_alone(found: YearMeasurements):
    circuit = found.circuit
    assert circuit.parts(HEAD) == [CARRIER]
    traced = {YEARS.index(int(year)) for year in spread(found.prompts.of(FINDING), 4).start}
    assert set(circuit.parts(FEATURE)) == {(layer, i) for layer in (0, 1) for i in traced}
    ends = [position for kind, _, _, position in circuit.contribution if kind == EMBEDDING]
    assert PLACE in ends
    # of all start years the circuit has those that were traced
    known = torch.tensor([YEARS.index(year) in traced for year in found.prompts.of(TESTING).start.tolist()])
    alone = found.alone["zero"]
    torch.testing.assert_close(alone.kept[known], alone.untouched[known], atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.featureless[known], alone.none[known], atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.kept[~known], alone.none[~known], atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.all, alone.untouched, atol=1e-5, rtol=0)


def test_features_are_drawn_as_many_a_layer_from_those_that_fire(
    opened: CaseContext, found: YearMeasurements
):
    probes = year_probes(found.prompts, found.answers, opened.tokenizer.bos_id)
    kept = found.circuit.components(found.basis)
    fill = find_fill(opened.model, found.basis, probes, "mean")
    drawn = [draw_like(found.basis, kept, fill, seed) for seed in range(8)]
    for own, part, filled in zip(found.basis.slices, found.basis.parts, fill, strict=True):
        for each in drawn:
            assert each[own].sum() == kept[own].sum()
            if part.kind == "head":
                assert torch.equal(each[own], kept[own])
            else:
                assert filled[0][each[own]].all()
    assert any(not torch.equal(drawn[0], each) for each in drawn[1:])


def test_what_flows_to_the_answer_comes_from_the_start_year(opened: CaseContext, found: YearMeasurements):
    leaves = found.leaves
    values = leaves.token.sum(1) + leaves.error.sum((1, 2)) + leaves.position.sum(1) + leaves.constant
    prompts = spread(found.prompts.of(TESTING), 4)
    logits = opened.model.logits(prompts.token)[:, -1, found.answers.token]
    for value, row, start in zip(values, logits, prompts.start, strict=True):
        later = found.answers.year > start
        torch.testing.assert_close(value, row[later].mean() - row[~later].mean(), atol=1e-3, rtol=1e-4)
    others = leaves.token.clone()
    others[:, PLACE] = 0
    assert (leaves.token[:, PLACE] > 3 * others.abs().sum(1)).all()
    # exact transcoders miss nothing; only at BOS are they not used
    assert leaves.error[:, :, 1:].abs().max() < 1e-4


def test_the_metric_with_all_features_kept_is_that_of_the_replaced_model(found: YearMeasurements):
    testing = torch.tensor([half == TESTING for half in found.prompts.half])
    for kept in found.kept:
        curve = kept.curve
        torch.testing.assert_close(
            curve.kept[:, -1], found.conditions[replacing(1)][testing].to(curve.kept), atol=1e-5, rtol=0
        )
        if kept.ablation == "zero":
            zero = found.conditions[ablating(1, "zero")][testing]
            torch.testing.assert_close(curve.kept[:, 0], zero.to(curve.kept), atol=1e-4, rtol=0)


def test_every_claim_says_what_it_measured(findings: CaseReport, tmp_path: Path):
    by_name = claims(findings)
    assert by_name["head_share"].value == pytest.approx(1, abs=1e-3) and by_name["head_share"].holds
    # features are the neurons, so that none is ahead
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
    write_findings(findings, tmp_path)
    for table in GreaterThanCase.tables:
        assert len(read_table(tmp_path / f"{table}.parquet")), table
    for figure in GreaterThanCase.figures:
        assert (tmp_path / f"{figure}.png").stat().st_size > 10_000
    page = (tmp_path / "result.md").read_text()
    assert "head 1.0" in page and "0 were left out" in page and "nan" not in page


def test_published_values_stand_beside_what_was_measured(opened: CaseContext):
    published = {"untouched": 0.9, "without_feature": 0.7}
    by_name = claims(study_greater_than("years", opened, make_case(published=published)))
    assert by_name["untouched"].published == 0.9 and by_name["replaced"].published is None
    assert by_name["feature_removed"].published == pytest.approx(0.2)


def test_without_a_feature_its_year_alone_is_lost(opened: CaseContext):
    found = measure_all("years", opened, make_case(feature="1/2"))
    lost = found.conditions[UNTOUCHED] - found.conditions["without feature 1/2"]
    assert (lost.abs() > 0.1).tolist() == [int(start) == YEARS[2] for start in found.prompts.start]


def test_tables_agree_with_each_other(findings: CaseReport):
    outcomes = findings.tables["outcome"]
    metric = [row["value"] for row in outcomes if row["condition"] == UNTOUCHED]
    assert np.mean(metric) == pytest.approx(claims(findings)["untouched"].value)
    for circuit in ("paths", "leaves"):
        rows = [row for row in findings.tables["source"] if row["circuit"] == circuit]
        assert [row["rank"] for row in rows] == list(range(len(rows)))
        assert sum(abs(row["share"]) for row in rows) <= 1 + 1e-6
        best = next(row for row in rows if row["kind"] == "token")
        assert best["relative_position"] == PLACE - LENGTH + 1 and best["token"] is None
    curves = [row for row in findings.tables["faithfulness"] if row["ranking"] == "circuit"]
    assert {row["ablation"] for row in curves} == {"zero", "mean"}
    assert [row["faithfulness"] for row in curves if row["n_kept"] == 0] == [0, 0]


def test_statistics_of_claims_are_what_they_are_called():
    rows = np.array([[[3.0, 1, 2], [5, 3, 1]]])
    assert least(rows).tolist() == [1.5] and lead(rows).tolist() == [2.0]
    assert leading_share(rows).tolist() == [(4 - 2) / 1.5]
    assert ranks([5, 1, 5, 9]).tolist() == [1.5, 0, 1.5, 3]
    x = np.arange(5.0)
    assert correlation(np.stack([x, 2 * x + 1, x, -x], 1)[None]) == pytest.approx([0])
    assert correlation(np.stack([x, 3 - 2 * x], 1)[None]) == pytest.approx([-1])
    assert np.isnan(correlation(np.stack([x, 0 * x], 1)[None])).all()
