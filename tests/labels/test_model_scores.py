"""Scores from verdicts on samples, compared with values computed by hand and with independent formulas."""

import numpy as np
import pytest

from circuitloom.labels.model_scores import DocumentBootstrap, Stratum, Verdicts, score, share_score


def beta_quantiles(a: float, b: float, shares: list[float]) -> np.ndarray:
    """Quantiles of the beta distribution, by integration over the angle whose squared sine is its value."""
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.sin(angle) ** (2 * a - 1) * np.cos(angle) ** (2 * b - 1)
    below = np.append(0, np.cumsum(density[1:] + density[:-1]))
    return np.sin(np.interp(shares, below / below[-1], angle)) ** 2


def stratum(size: int, predicted: list[int], first_document: int = 0) -> Stratum:
    n = len(predicted)
    return Stratum(size, np.arange(first_document, first_document + n), np.array(predicted, float))


def test_scores_are_weighted_back_to_the_numbers_of_tokens() -> None:
    verdicts = Verdicts(
        bands=[stratum(30, [1, 0]), stratum(10, [1, 1])],
        near=stratum(100, [1, 1, 0, 0]),
        hard=stratum(200, [1, 0, 0, 0]),
        others=stratum(1800, [0, 0, 0, 0]),
    )
    columns = verdicts.columns()
    recall = (30 * 0.5 + 10 * 1) / 40
    false = 200 * 0.25 / 2000
    assert columns["recall"] == pytest.approx(recall)
    assert columns["precision"] == pytest.approx(25 / (25 + 50))
    assert columns["f1"] == pytest.approx(2 * 25 / (25 + 50 + 40))
    assert columns["balanced_accuracy"] == pytest.approx((recall + 1 - false) / 2)
    assert columns["hard_accuracy"] == pytest.approx((recall + 0.75) / 2)
    assert columns["fuzzing"] == pytest.approx((recall + 0.5) / 2)
    assert columns["n_tokens"] == 40
    for name in ("f1", "balanced_accuracy", "hard_accuracy", "fuzzing"):
        assert 0 <= columns[f"{name}_low"] <= columns[name] <= columns[f"{name}_high"] <= 1


def test_scores_of_nothing_are_null() -> None:
    empty = stratum(0, [])
    columns = Verdicts([], empty, empty, stratum(50, [0, 1])).columns()
    assert columns["f1"] is columns["f1_low"] is columns["recall"] is columns["fuzzing"] is None
    assert columns["n_tokens"] == 0


def test_a_label_that_predicts_nothing_has_f1_0_and_no_precision() -> None:
    none = stratum(90, [0, 0])
    columns = Verdicts([stratum(10, [0, 0])], none, none, none).columns()
    assert (columns["f1"], columns["recall"], columns["precision"]) == (0, 0, None)


def test_unjudged_bands_are_left_out_of_the_recall() -> None:
    strata = [stratum(30, []), stratum(10, [1, 0])]
    assert DocumentBootstrap(strata).rate(strata)[0] == 0.5


@pytest.mark.parametrize(("yes", "n"), [(4, 4), (0, 10), (7, 10)])
def test_the_interval_of_one_token_per_document_is_that_of_jeffreys_prior(yes: int, n: int) -> None:
    found = share_score(np.arange(n), np.array([1.0] * yes + [0.0] * (n - yes)))
    low, high = beta_quantiles(yes + 0.5, n - yes + 0.5, [0.025, 0.975])
    assert found.value == yes / n
    assert found.low == pytest.approx(min(low, yes / n), abs=0.02)
    assert found.high == pytest.approx(max(high, yes / n), abs=0.02)


def test_tokens_of_one_document_tell_less_than_those_of_many() -> None:
    verdicts = np.array([1.0, 0.0] * 20)
    apart = share_score(np.arange(40), verdicts)
    together = share_score(np.repeat([0, 1], 20), np.sort(verdicts))
    assert (together.high - together.low) > 2 * (apart.high - apart.low)


def test_intervals_contain_the_true_f1_of_samples_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    n, without, recall, false = 400, 9600, 0.8, 0.05
    true = 2 * n * recall / (n * recall + without * false + n)
    inside = 0
    for _ in range(60):
        strata = [
            stratum(n, (random.random(40) < recall).astype(int).tolist()),
            stratum(without, (random.random(40) < false).astype(int).tolist(), 40),
        ]
        empty = stratum(0, [])
        columns = Verdicts(strata[:1], empty, empty, strata[1]).columns()
        inside += columns["f1_low"] <= true <= columns["f1_high"]
    assert inside >= 53


def test_the_same_verdicts_give_the_same_interval() -> None:
    strata = [stratum(10, [1, 0, 1])]
    assert score(DocumentBootstrap(strata).rate(strata)) == score(DocumentBootstrap(strata).rate(strata))
