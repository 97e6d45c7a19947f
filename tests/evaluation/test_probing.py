"""Sparse probes find the features that were planted, and their scores are those of a count by hand."""

import math

import pytest
import torch

from circuitloom.evaluation import probing
from circuitloom.evaluation.concepts import SparseActivations
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.evaluation.probing import (
    PENALTY,
    LabelCounts,
    ProbeInputs,
    Score,
    choose_features,
    dense_probe_scores,
    fit_dense_probes,
    fit_probe,
    interval,
    make_tasks,
    ratio_score,
    sparse_probe_scores,
)


def documents(number: int, length: int) -> HeldOut:
    """A sequence per document, all of whose positions are scored."""
    token = torch.zeros(number, length, dtype=torch.int64)
    document = torch.arange(number)[:, None].expand_as(token)
    scored = torch.ones_like(token, dtype=torch.bool)
    return HeldOut(token, document, scored, ~scored)


def sparse(z: torch.Tensor) -> SparseActivations:
    token, feature = z.nonzero(as_tuple=True)
    return SparseActivations(token.int(), feature.int(), z[token, feature], z.shape[1])


@pytest.fixture
def random_case() -> tuple[torch.Tensor, HeldOut, dict[str, torch.Tensor]]:
    """Activations [token, feature] that are mostly 0, and two labels."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 6, generator=generator).relu() * (torch.rand(400, 6, generator=generator) < 0.4)
    labels = {name: torch.rand(400, generator=generator) < share for name, share in (("a", 0.2), ("b", 0.6))}
    return z, documents(40, 10), labels


def test_labels_that_are_rare_in_a_half_are_left_out_and_named() -> None:
    held_out = documents(4, 5)
    rare = torch.zeros(20, dtype=torch.bool)
    rare[[0, 1, 10, 11, 5]] = True
    tasks, left_out = make_tasks({"rare": rare, "half": torch.arange(20) % 2 == 0}, held_out, least=2)
    # documents 1 and 3 have one token with the label
    assert tasks.names == ("half",) and left_out == ["rare"]
    assert tasks.training.tolist() == ([True] * 5 + [False] * 5) * 2


def test_a_text_of_one_document_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 1 document.*--tokens"):
        make_tasks({}, documents(1, 8), least=1)


def test_mean_differences_are_those_of_the_training_half_dense_or_sparse(random_case) -> None:
    z, held_out, labels = random_case
    tasks, _ = make_tasks(labels, held_out, least=1)
    training = torch.arange(400) // 10 % 2 == 0
    expected = torch.stack(
        [z[training & own].mean(0) - z[training & ~own].mean(0) for own in labels.values()], 1
    )
    for inputs in (ProbeInputs(z, tasks), ProbeInputs(sparse(z), tasks)):
        torch.testing.assert_close(inputs.mean_differences(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(inputs.select([4, 1]), z[:, [4, 1]].T)


def test_the_features_with_the_largest_differences_of_either_sign_are_chosen() -> None:
    differences = torch.tensor([[0.1, 0.0], [-3.0, 0.5], [2.0, 0.2]])
    assert choose_features(differences, 2).T.tolist() == [[1, 2], [1, 2]]
    assert choose_features(differences, 9).shape == (3, 2)


def loss(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The loss of a probe on columns that are already scaled, written as in the docstring."""
    score = x @ weight + bias
    parts = [
        torch.nn.functional.softplus(-score[label]).mean(),
        torch.nn.functional.softplus(score[~label]).mean(),
    ]
    return sum(parts) / 2 + PENALTY / 2 * weight.square().sum()


def test_a_probe_has_the_least_loss(random_case) -> None:
    z, _, labels = random_case
    x = z[:, :3].double()
    x = x / x.square().mean(0).sqrt()
    probe = fit_probe(x.float(), labels["a"])
    weight = probe.weight.clone().requires_grad_()
    bias = torch.tensor(probe.bias, dtype=torch.float64, requires_grad=True)
    loss(weight, bias, x, labels["a"]).backward()
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs() < 1e-4
    # and it is no trivial one
    assert probe.weight.abs().max() > 0.05


def test_a_probe_of_one_binary_feature_has_the_log_odds() -> None:
    # the feature fires on 30 of 40 tokens with the label, and on 10 of 60 without: shares 3/4 and 1/6
    fires = torch.tensor([1.0] * 30 + [0.0] * 10 + [1.0] * 10 + [0.0] * 50)
    label = torch.arange(100) < 40
    probe = fit_probe(2 * fires[:, None], label)
    assert probe.bias == pytest.approx(math.log((1 / 4) / (5 / 6)), abs=0.02)
    assert 2 * float(probe.weight) + probe.bias == pytest.approx(math.log((3 / 4) / (1 / 6)), abs=0.02)
    assert torch.equal(probe(2 * fires[:, None]), fires > 0)


def test_the_probe_does_not_depend_on_where_the_search_begins(random_case) -> None:
    z, _, labels = random_case
    alone = fit_probe(z[:, :3], labels["b"])
    further = fit_probe(z[:, :3], labels["b"], fit_probe(z[:, :2], labels["b"]))
    torch.testing.assert_close(further.weight, alone.weight, atol=1e-3, rtol=1e-3)


def test_probes_are_trained_on_evenly_spaced_tokens_of_each_class(random_case, monkeypatch) -> None:
    _, held_out, labels = random_case
    tasks, _ = make_tasks(labels, held_out, least=1)
    training = set(tasks.training.nonzero()[:, 0].tolist())
    assert set(tasks.training_rows[0].tolist()) == training
    monkeypatch.setattr(probing, "PER_CLASS", 50)
    rows = make_tasks(labels, held_out, least=1)[0].training_rows[0]
    assert set(rows.tolist()) <= training
    having = (labels["a"] & tasks.training).nonzero()[:, 0]
    lacking = (~labels["a"] & tasks.training).nonzero()[:, 0]
    # about 40 tokens have the label, and 160 lack it, of which every fourth is read
    assert len(having) <= 50 and 3 * 50 < len(lacking) <= 4 * 50
    assert rows.tolist() == [*having.tolist(), *lacking.tolist()[::4]]


def test_a_probe_of_separable_labels_is_finite_and_right() -> None:
    x = torch.tensor([[0.0], [0.0], [1.0], [1.1]])
    probe = fit_probe(x, torch.tensor([False, False, True, True]))
    assert probe(x).tolist() == [False, False, True, True]
    assert torch.isfinite(probe.weight).all()
    # features that never fire carry nothing
    assert float(fit_probe(torch.zeros(4, 1), torch.tensor([False, False, True, True])).weight) == 0


def test_dense_probes_are_the_probes_of_each_task(random_case) -> None:
    _, _, labels = random_case
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    label = torch.stack([labels["a"], x[:, 0] + 0.5 * x[:, 1] > 0.1], 1)
    weight, bias = fit_dense_probes(x, label)
    for task in range(2):
        # columns of mean 0 and standard deviation 1, up to the penalty's effect
        probe = fit_probe((x - x.mean(0)) / x.std(0), label[:, task])
        theirs = (x - x.mean(0)) / x.std(0) @ probe.weight.float() + probe.bias
        ours = x @ weight[:, task] + bias[task]
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)


def test_balanced_accuracy_is_counted_by_hand() -> None:
    # recall 2/3 of the label, 1/2 of its absence
    predicted = torch.tensor([True, True, False, True, False])
    label = torch.tensor([True, True, True, False, False])
    score = LabelCounts(label, torch.tensor([0, 0, 1, 1, 1]), 2).balanced_accuracy(predicted)
    assert score.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    # document 0: (2 - 2/3 * 2) / 3, document 1: (0 - 2/3) / 3; and for the absence 0 and (1 - 1/2 * 2) / 2
    assert score.influence.tolist() == pytest.approx([1 / 9, -1 / 9])


def test_an_interval_covers_the_true_value_in_95_of_100_texts() -> None:
    generator, covered = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        # documents of different length and quality, whose expected ratio is 0.6
        length = torch.randint(1, 30, (60,), generator=generator).double()
        quality = 0.2 + 0.8 * torch.rand(60, generator=generator).double()
        low, high = interval(ratio_score(length * quality, length))
        assert low is not None and high is not None
        covered += low <= 0.6 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_score_that_no_document_changes_has_no_interval() -> None:
    assert interval(Score(1.0, torch.zeros(5, dtype=torch.float64))) == (None, None)
    low, high = interval(Score(0.99, torch.tensor([0.1, -0.1], dtype=torch.float64)))
    assert low is not None and low < 0.99 and high == 1.0


def test_one_planted_feature_is_found_and_two_are_needed_for_a_split_label() -> None:
    held_out = documents(60, 10)
    generator = torch.Generator().manual_seed(0)
    part = torch.randint(0, 4, (600,), generator=generator)
    z = 0.1 * torch.rand(600, 8, generator=generator)
    z[:, 5] += part == 0
    z[:, 2] += part == 1
    labels = {"one": part == 0, "split": part <= 1, "noise": torch.rand(600, generator=generator) < 0.5}
    tasks, _ = make_tasks(labels, held_out, least=10)
    scores = {k: dict(zip(labels, own, strict=True)) for k, own in
              sparse_probe_scores(ProbeInputs(sparse(z), tasks), tasks, (1, 2)).items()}  # fmt: skip
    assert scores[1]["one"].value == 1
    # one of two halves is found: recall 1/2 of the label, 1 of its absence
    assert scores[1]["split"].value == pytest.approx(3 / 4, abs=0.05)
    assert scores[2]["split"].value == 1
    assert abs(scores[2]["noise"].value - 0.5) < 0.1
    assert [score.value for score in dense_probe_scores(z, tasks)][:2] == [1, 1]
