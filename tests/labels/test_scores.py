"""Scores by hand, and their intervals by a bootstrap over documents."""

import numpy as np
import pytest

from circuitloom.labels.scores import Truth, balanced_accuracy, f1

# three documents of four tokens; the feature fires on x, and p marks predictions:
#   x p | xp . . p | . . p . | x xp xp .
FIRES = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0], bool)
PREDICTED = np.array([1, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0], bool)
DOCUMENT = np.repeat([0, 1, 2], 4)


def truth(**keys) -> Truth:
    nothing = np.zeros(12, bool)
    return Truth(
        FIRES, **{"hard": nothing, "near": nothing} | keys, document=DOCUMENT, tokens=np.full(3, 4.0)
    )


def test_scores_of_a_made_up_feature_are_those_by_hand() -> None:
    hard, near = ~FIRES & (DOCUMENT == 1), np.isin(np.arange(12), [1, 11])
    made = truth(hard=hard, near=near)
    predicted = np.flatnonzero(PREDICTED)
    found = {**made.f1(predicted), **made.accuracies(predicted)}
    # of 5 predictions 3 are right, of 4 firing tokens 3 are predicted
    assert found["precision"] == 3 / 5 and found["recall"] == 3 / 4
    assert found["f1"] == pytest.approx(2 * 3 / (5 + 4))
    # 2 of 8 tokens without the feature are predicted, 1 of 4 hard ones, 1 of 2 near ones
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 6 / 8) / 2)
    assert found["hard_accuracy"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert found["fuzzing"] == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_the_interval_of_f1_is_that_of_the_influence_of_documents() -> None:
    found = truth().f1(np.flatnonzero(PREDICTED))
    hits, whole = np.array([1, 0, 2]), np.array([2 + 1, 1 + 0, 2 + 3])
    influence = (2 * hits - 6 / 9 * whole) / 9
    margin = 1.959964 * np.sqrt(3 / 2 * (influence**2).sum())
    assert found["f1_low"] == pytest.approx(max(0, 6 / 9 - margin))
    assert found["f1_high"] == pytest.approx(min(1, 6 / 9 + margin))


def test_intervals_agree_with_a_bootstrap_over_documents() -> None:
    random = np.random.default_rng(0)
    documents = 300
    fires = random.poisson(3, documents).astype(float)
    hits = random.binomial(fires.astype(int), 0.7).astype(float)
    negatives = random.poisson(40, documents).astype(float)
    false = random.binomial(negatives.astype(int), 0.05).astype(float)
    found = f1(hits, hits + false, fires), balanced_accuracy(hits, fires, false, negatives)
    draws = np.array(
        [
            [score(*(each[chosen] for each in columns)).value for score, columns in (
                (f1, (hits, hits + false, fires)), (balanced_accuracy, (hits, fires, false, negatives))
            )]
            for chosen in random.integers(0, documents, (2000, documents))
        ]
    )  # fmt: skip
    for score, sample in zip(found, draws.T, strict=True):
        assert (score.high - score.low) / (2 * 1.959964) == pytest.approx(sample.std(), rel=0.06)


def test_a_label_that_describes_nothing_scores_at_chance() -> None:
    random = np.random.default_rng(0)
    n, documents = 40_000, 200
    fires = random.random(n) < 0.05
    made = Truth(
        fires, ~fires, ~fires, np.repeat(np.arange(documents), n // documents), np.full(documents, 200.0)
    )
    found = made.accuracies(np.flatnonzero(random.random(n) < 0.3))
    for name in ("balanced_accuracy", "hard_accuracy", "fuzzing"):
        assert found[f"{name}_low"] < 0.5 < found[f"{name}_high"]
        assert found[name] == pytest.approx(0.5, abs=0.02)


def test_what_is_not_measured_is_nan() -> None:
    nothing = np.zeros(12, bool)
    silent = Truth(nothing, nothing, nothing, DOCUMENT, np.full(3, 4.0))
    found = silent.f1(np.array([], int)) | silent.accuracies(np.array([0]))
    assert all(np.isnan(value) for value in found.values())
    # one document has no interval
    one = f1(np.array([2.0]), np.array([3.0]), np.array([2.0]))
    assert one.value == pytest.approx(0.8) and np.isnan(one.low) and np.isnan(one.high)
