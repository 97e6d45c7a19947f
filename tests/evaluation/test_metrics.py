import math

import numpy as np
import pytest
import torch

from circuitloom.evaluation import metrics
from circuitloom.evaluation.metrics import (
    ce_recovered,
    density_histogram,
    firing_sums,
    fractions_unexplained,
    log_probabilities,
    prediction_sums,
    prediction_targets,
    reconstruction_sums,
)


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    # a mean far from zero, different in each dimension: a scalar or batch-wise mean gives a wrong FVU
    y = torch.randn(500, 7, generator=generator) * 3 + torch.arange(7) * 5
    return y, y + torch.randn(500, 7, generator=generator)


def test_reconstruction_metrics_of_two_tokens_equal_those_computed_by_hand():
    y = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    y_hat = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    sums = reconstruction_sums(y, y_hat)
    assert sums.mse == pytest.approx((16 + 4) / 2)
    # the mean is (1.5, 3); squared distances from it 2.25 + 1 and 2.25 + 1
    assert sums.fvu == pytest.approx(20 / 6.5)
    assert sums.cosine == pytest.approx((9 / 15 + 1) / 2)
    assert sums.norm_ratio == pytest.approx((3 / 5 + 2) / 2)
    assert sums.relative_bias == pytest.approx((9 + 16) / (9 + 8))


def test_predicting_the_mean_gives_an_fvu_of_one(pairs):
    y = pairs[0].double()
    assert reconstruction_sums(y, y.mean(0).expand_as(y)).fvu == pytest.approx(1, abs=1e-12)


def test_fractions_unexplained_equal_those_computed_by_hand():
    y = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]])
    y_hat = torch.tensor([[3.0, 0.0], [1.0, 2.0], [1.0, 1.0]])
    # squared errors 16, 1 and 0; squared distances from the mean (1, 1) 13, 2 and 0
    fractions = fractions_unexplained(y, y_hat, torch.ones(2, dtype=torch.float64))
    assert fractions.tolist() == pytest.approx([16 / 13, 1 / 2, 0])
    assert fractions_unexplained(y, torch.ones(3, 2), torch.ones(2))[:2].tolist() == [1, 1]


def test_one_massive_token_is_all_of_the_fvu_but_not_of_the_median(pairs):
    # the massive token also moves the mean, by its norm over the number of tokens
    y, y_hat = (value.repeat(40, 1) for value in pairs)
    massive, massive_hat = y.clone(), y_hat.clone()
    massive[250] *= 281
    massive_hat[250] = 0
    assert reconstruction_sums(y, y_hat).fvu < 0.15
    assert reconstruction_sums(massive, massive_hat).fvu > 0.95
    usual, changed = (
        np.median(fractions_unexplained(a, b, a.mean(0))) for a, b in ((y, y_hat), (massive, massive_hat))
    )
    assert changed == pytest.approx(usual, rel=0.05)


def test_sums_over_uneven_batches_equal_numpy_on_the_entire_set(pairs):
    y, y_hat = pairs
    parts = [reconstruction_sums(a, b) for a, b in zip(y.split(77), y_hat.split(77), strict=True)]
    sums = parts[0]
    for part in parts[1:]:
        sums += part
    a, b = (value.double().numpy() for value in pairs)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    assert sums.n == 500
    assert sums.mse == pytest.approx(((a - b) ** 2).sum(1).mean())
    assert sums.fvu == pytest.approx(((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum())
    assert sums.cosine == pytest.approx(((a * b).sum(1) / norm_a / norm_b).mean())
    assert sums.norm_ratio == pytest.approx((norm_b / norm_a).mean())
    assert sums.relative_bias == pytest.approx((b**2).sum(1).mean() / (a * b).sum(1).mean())


def test_a_zero_reconstruction_has_cosine_zero_not_nan():
    assert reconstruction_sums(torch.ones(2, 3), torch.zeros(2, 3)).cosine == 0


def test_densities_count_tokens_on_which_a_feature_fires():
    # feature 0 fires on both tokens of the first batch, feature 2 on one of the second
    sums = firing_sums(torch.tensor([0, 0]), 4, 2) + firing_sums(torch.tensor([2]), 4, 18)
    assert sums.l0 == pytest.approx(3 / 20)
    assert sums.density.tolist() == pytest.approx([0.1, 0, 0.05, 0])
    assert sums.alive == 0.5
    assert sums.fraction_denser_than(0.01) == 0.5
    assert sums.fraction_denser_than(0.05) == 0.25
    assert sums.fraction_denser_than(0.1) == 0


def test_firing_equals_counting_a_dense_matrix():
    z = torch.randn(60, 9, generator=torch.Generator().manual_seed(0)).relu()
    z[:, 3] = 0
    sums = firing_sums(z.nonzero()[:, 1], 9, 60)
    dense = z.numpy() != 0
    assert sums.l0 == pytest.approx(dense.sum(1).mean())
    assert sums.density.tolist() == pytest.approx(dense.mean(0).tolist())
    assert sums.alive == pytest.approx(8 / 9)


def test_every_feature_is_in_the_bin_of_its_log_density():
    density = torch.tensor([0.0, 1.0, 0.5, 1e-3, 1.5e-3, 1e-9], dtype=torch.float64)
    bins = density_histogram(density)
    assert bins[0] == (None, None, 1)
    assert sum(count for _, _, count in bins) == len(density)
    low, high, count = bins[-1]
    assert (low, high, count) == (-0.25, 0.0, 1)  # 1.0; log10(0.5) = -0.30 lies in the bin below
    assert [count for low, _, count in bins if low == -3.0] == [2]
    assert bins[1][2] == 1  # rarer than the lowest bin


def test_cross_entropy_and_divergence_equal_those_computed_by_hand():
    # two tokens, one prediction: p = (1/4, 3/4), q = (1/2, 1/2), the next token is 1
    token, scored = torch.tensor([[0, 1]]), torch.tensor([[True, True]])
    targets = prediction_targets(token, scored)
    original = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]).log()
    log_p = log_probabilities(original, targets)
    sums = prediction_sums(torch.zeros(1, 2, 2), targets, log_p)
    assert sums.n == 1
    assert sums.ce == pytest.approx(math.log(2))
    assert sums.kl == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert prediction_sums(original, targets, log_p).kl == pytest.approx(0, abs=1e-7)


def test_predictions_in_chunks_equal_the_formula_in_numpy(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, original = torch.randn(2, 3, 11, 5, generator=generator) * 4
    token = torch.randint(0, 5, (3, 11), generator=generator)
    scored = torch.rand(3, 11, generator=generator) < 0.6
    for name in ("CHUNK_ELEMENTS", "CHUNK_ROWS"):
        assert getattr(metrics, name) > 4
        monkeypatch.setattr(metrics, name, 4)
    targets = prediction_targets(token, scored)
    sums = prediction_sums(logits, targets, log_probabilities(original, targets))

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    q, p = log_softmax(logits.double().numpy()), log_softmax(original.double().numpy())
    places = [(s, t) for s in range(3) for t in range(10) if scored[s, t]]
    assert sums.n == len(places)
    assert sums.ce == pytest.approx(np.mean([-q[s, t, token[s, t + 1]] for s, t in places]), rel=1e-6)
    assert sums.kl == pytest.approx(
        np.mean([(np.exp(p[s, t]) * (p[s, t] - q[s, t])).sum() for s, t in places]), rel=1e-6
    )


def test_only_predictions_at_scored_positions_count():
    token = torch.tensor([[1, 5, 6, 1, 7]])
    targets = prediction_targets(token, token != 1)
    assert targets.source.tolist() == [1, 2]
    assert targets.token.tolist() == [
        6,
        1,
    ]  # the end of a document is predicted, the token after its BOS is not


def test_ce_recovered_is_one_for_the_original_and_zero_for_the_ablated_model():
    assert ce_recovered(2.0, 2.0, 3.0) == 1
    assert ce_recovered(3.0, 2.0, 3.0) == 0
    assert ce_recovered(2.25, 2.0, 3.0) == 0.75
    assert math.isnan(ce_recovered(2.0, 2.0, 2.0))
