"""Claims, and the intervals that decide them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from circuitloom.cases import claims
from circuitloom.cases.case_report import CaseReport, result_page, verdict
from circuitloom.cases.claims import Bootstrap, Claim, make_claim, mean, ratio

BOOTSTRAP = Bootstrap(1000, 0.95, 0)


def test_intervals_cover_a_known_mean_as_often_as_their_confidence():
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        _, low, high = Bootstrap(400, 0.9, seed).interval(random.normal(3, 2, (40, 1)), mean)
        covered += low <= 3 <= high
    # 180 expected; percentile intervals of 40 rows cover a little less
    assert 165 <= covered <= 192


def test_an_interval_of_a_mean_has_the_width_of_its_standard_error():
    rows = np.random.default_rng(1).normal(0, 1, (400, 1))
    value, low, high = Bootstrap(4000, 0.95, 0).interval(rows, mean)
    assert value == pytest.approx(rows.mean())
    assert high - low == pytest.approx(2 * 1.96 * rows.std() / 20, rel=0.1)


def test_a_ratio_divides_sums_and_does_not_average_ratios():
    rows = np.array([[1.0, 1.0], [0.0, 9.0]])
    assert BOOTSTRAP.interval(rows, ratio)[0] == pytest.approx(0.1)


def test_rows_are_resampled_with_all_their_columns():
    rows = np.repeat(np.arange(1.0, 9.0)[:, None], 2, 1)
    assert BOOTSTRAP.interval(rows, ratio) == (1, 1, 1)


def test_the_interval_does_not_depend_on_the_size_of_chunks(monkeypatch):
    rows = np.random.default_rng(0).normal(0, 1, (10, 1))
    value, low, high = BOOTSTRAP.interval(rows, mean)
    monkeypatch.setattr(claims, "CHUNK", 70)
    assert BOOTSTRAP.interval(rows, mean) == pytest.approx((value, low, high))


@pytest.mark.parametrize("rows", [[], np.array([[1.0, 0.0]]), np.empty((3, 0))])
def test_an_undefined_statistic_has_no_value_and_its_claim_fails(rows):
    statistic = ratio if len(rows) == 1 else (lambda samples: np.full(len(samples), np.nan))
    claim = make_claim("x", "the share", rows, 0.0, BOOTSTRAP, statistic)
    assert (claim.value, claim.low, claim.high) == (None, None, None)
    assert not claim.holds
    assert verdict([claim]) == "0 of 1 claims hold; these fail: x."


def test_samples_on_which_the_statistic_is_undefined_are_dropped():
    # half of the samples of two rows have one denominator or the other alone
    value, low, high = BOOTSTRAP.interval(np.array([[1.0, 1.0], [2.0, 0.0]]), ratio)
    assert value == 3 and low == 1 and high == 3


@pytest.mark.parametrize(
    ("relation", "low", "high", "holds"),
    [
        ("above", 0.5, 0.9, True),
        ("above", 0.49, 0.9, False),
        ("below", 0.1, 0.5, True),
        ("below", 0.1, 0.51, False),
    ],
)
def test_a_claim_holds_where_its_interval_lies_on_the_claimed_side(relation, low, high, holds):
    claim = Claim("x", "it", (low + high) / 2, low, high, 0.5, 10, relation=relation)
    assert claim.holds is holds
    assert claim.row("case")["holds"] is holds
    assert verdict([claim]) == ("1 of 1 claims hold." if holds else "0 of 1 claims hold; these fail: x.")


def test_a_ratio_over_a_total_that_is_not_positive_is_undefined():
    rows = np.array([[-0.5, -0.5], [-0.4, -0.45], [-0.55, -0.6]])
    claim = make_claim("kept", "the share", rows, 0.75, Bootstrap(100, 0.95, 0), ratio)
    assert claim.value is None and not claim.holds


def test_one_row_and_mostly_undefined_samples_have_no_interval():
    bootstrap = Bootstrap(200, 0.95, 0)
    assert bootstrap.interval(np.array([[3.0]]), mean) == (3.0, None, None)
    rows = np.array([[1.0], [2.0], [3.0]])
    seldom = bootstrap.interval(rows, lambda rows: np.where(rows.sum((1, 2)) == 6, 1.0, np.nan))
    assert seldom == (1.0, None, None)


def test_the_page_has_question_answer_claims_pictures_and_method_in_this_order():
    claims = [
        Claim("good", "share of a | b", 0.9, 0.8, 1.0, 0.5, 10),
        Claim("too_low", "F1", 0.2, 0.1, 0.3, 0.5, 7, "documents", published=0.25),
        Claim("unknown", "ratio", None, None, None, 0.5, 0, relation="below"),
    ]
    figures = {"curve": (Figure(), "A curve.")}
    page = result_page(
        CaseReport("name", "a title", "Is it so?", ["It is.", "It is large."], claims, {}, figures, ["How."])
    )
    assert page.split("\n\n") == [
        "# name: a title",
        "Is it so?",
        "It is. It is large. 1 of 3 claims hold; these fail: too low, unknown.",
        "| claim | what is measured | value | interval | claimed | holds | over | published |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| good | share of a \\| b | 0.900 | 0.800 to 1 | ≥ 0.500 | yes | 10 prompts |  |\n"
        "| too low | F1 | 0.200 | 0.100 to 0.300 | ≥ 0.500 | **no** | 7 documents | 0.250 |\n"
        "| unknown | ratio | not measurable |  | ≤ 0.500 | **no** | 0 prompts |  |",
        "![curve](curve.png)",
        "A curve.",
        "## Method",
        "How.\n",
    ]
