import numpy as np
import pyarrow as pa
import pytest
import torch

from circuitloom.evaluation.concepts import (
    SparseActivations,
    best_features,
    label,
    score_columns,
    score_features,
)
from circuitloom.evaluation.held_out import HeldOut

CONCEPTS = ("caught", "semicolon", "year")


def make_labels(n_tokens: int, density: float, seed: int = 0):
    """Random labels of one sequence a document: the labels, and the same as a matrix [token, concept]."""
    random = np.random.default_rng(seed)
    has = random.random((n_tokens, len(CONCEPTS))) < density
    token = torch.zeros(n_tokens // 10, 11, dtype=torch.int64)
    scored = torch.ones_like(token, dtype=torch.bool)
    scored[:, 0] = False
    document = torch.arange(len(token))[:, None].expand_as(token)
    token_number, concept = has.nonzero()
    table = pa.table(
        {
            "concept": pa.array([CONCEPTS[c] for c in concept]).dictionary_encode(),
            "sequence": token_number // 10,
            "position": token_number % 10 + 1,
        }
    )
    return label(table, HeldOut(token, document, scored, ~scored)), has


def sparse(z: torch.Tensor) -> SparseActivations:
    token, feature = z.nonzero(as_tuple=True)
    return SparseActivations(token.int(), feature.int(), z[token, feature], z.shape[1])


def f1_above(z, threshold, has):
    fires = z > threshold
    total = fires.sum() + has.sum()
    return 2 * (fires & has).sum() / total if total else 0.0


def brute_force(z, has, choosing, floor):
    """(F1 on the choosing half, F1 on the scoring half) at the best of all thresholds, by trying each."""
    values = np.sort(np.unique(np.append(z[choosing][z[choosing] > floor], floor)))
    f1 = [f1_above(z[choosing], threshold, has[choosing]) for threshold in values]
    return max(f1), {
        f1_above(z[~choosing], t, has[~choosing]) for t, f in zip(values, f1, strict=True) if f == max(f1)
    }


@pytest.mark.parametrize("signed", [False, True])
def test_scores_equal_trying_every_threshold(signed):
    labels, has = make_labels(400, 0.2)
    generator = torch.Generator().manual_seed(0)
    # rounded, so that values tie, and sparse
    z = (torch.randn(400, 6, generator=generator) * 4).round() / 4
    if signed:
        scores = score_columns(z, labels, thresholds=2000, signed=True, columns=4)
        # the lowest threshold tried is the smallest value: what fires always is not tried
        floor = z[labels.choosing].min(0).values.numpy()
    else:
        z = z.relu()
        scores = score_features(sparse(z), labels, thresholds=2000)
        floor = np.zeros(6)
    choosing = labels.choosing.numpy()
    for feature in range(6):
        for concept in range(3):
            best, possible = brute_force(z[:, feature].numpy(), has[:, concept], choosing, floor[feature])
            assert float(scores.f1_choosing[feature, concept]) == pytest.approx(best)
            assert any(float(scores.f1[feature, concept]) == pytest.approx(f1) for f1 in possible)
            threshold = float(scores.threshold[feature, concept])
            fires = z[~labels.choosing, feature].numpy() > threshold
            assert float(scores.precision[feature, concept]) == pytest.approx(
                has[~choosing, concept][fires].mean()
            )
            assert float(scores.recall[feature, concept]) == pytest.approx(
                fires[has[~choosing, concept]].mean()
            )


def test_few_thresholds_come_close_to_all_of_them():
    labels, has = make_labels(20_000, 0.01)
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    z = (noise + 3 * torch.from_numpy(has)).relu()
    few, many = (
        score_features(sparse(z), labels, thresholds).f1_choosing.diag() for thresholds in (64, 5000)
    )
    assert (many - few).max() < 0.01
    assert (few <= many + 1e-6).all()


def test_chunks_of_features_change_nothing(monkeypatch):
    labels, _ = make_labels(400, 0.2)
    code = sparse(torch.randn(400, 9, generator=torch.Generator().manual_seed(0)).relu())
    whole = score_features(code, labels, 16)
    monkeypatch.setattr("circuitloom.evaluation.concepts.CHUNK_COUNTS", 2 * 16 * 4)
    for name, column in vars(score_features(code, labels, 16)).items():
        assert torch.equal(column, getattr(whole, name)), name


def test_dense_columns_score_as_their_sparse_code():
    labels, _ = make_labels(400, 0.2)
    z = torch.randn(400, 9, generator=torch.Generator().manual_seed(0))
    dense, coded = score_columns(z, labels, 16, columns=4), score_features(sparse(z.relu()), labels, 16)
    assert all(torch.equal(getattr(dense, name), column) for name, column in vars(coded).items())


def test_a_planted_feature_is_found_with_its_concept():
    labels, has = make_labels(2000, 0.05)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 20, generator=generator).relu() * 0.1
    z[:, 13] = torch.from_numpy(has[:, 1]) * (1 + torch.rand(2000, generator=generator))
    row = list(best_features(score_features(sparse(z), labels, 64), labels, 20))[1]
    assert (row["concept"], row["feature"], row["sign"]) == ("semicolon", 13, 1)
    assert (row["precision"], row["recall"], row["f1"]) == (1, 1, 1)
    assert row["n_positive"] == has[~labels.choosing.numpy(), 1].sum()


def test_a_planted_negative_direction_is_found_with_its_sign():
    labels, has = make_labels(2000, 0.05)
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    x[:, 5] += 10 - 3 * torch.from_numpy(has[:, 2])
    scores = [score_columns(sign * x, labels, 64, signed=True) for sign in (1, -1)]
    rows = list(best_features(type(scores[0]).concatenate(scores), labels, 8))
    assert (rows[2]["feature"], rows[2]["sign"]) == (5, -1)
    assert rows[2]["f1"] > 0.95
    assert rows[2]["threshold"] < 0


def test_a_feature_that_says_nothing_scores_no_better_on_the_half_that_is_scored_than_always_firing():
    labels, has = make_labels(5000, 0.1)
    z = torch.rand(5000, 300, generator=torch.Generator().manual_seed(0))
    scores = score_features(sparse(z), labels, 64)
    share = has[~labels.choosing.numpy()].mean()
    best = scores.f1_choosing.argmax(0)
    # chosen as the best of 300 on one half, it owes its lead to chance and loses it on the other
    assert scores.f1.gather(0, best[None]).max() < 2 * share / (1 + share) + 0.03


def test_a_concept_absent_from_the_scoring_half_has_no_score():
    labels, has = make_labels(400, 0.2)
    keep = labels.choosing.numpy() & has[:, 0]
    rows = np.flatnonzero(keep)
    token = torch.zeros(40, 11, dtype=torch.int64)
    scored = torch.ones_like(token, dtype=torch.bool)
    scored[:, 0] = False
    held_out = HeldOut(token, torch.arange(40)[:, None].expand_as(token), scored, ~scored)
    table = pa.table({"concept": ["caught"] * len(rows), "sequence": rows // 10, "position": rows % 10 + 1})
    only = label(table, held_out)
    (row,) = best_features(score_features(sparse(torch.rand(400, 3)), only, 8), only, 3)
    assert (row["n_positive"], row["recall"], row["f1_choosing"] > 0) == (0, None, True)


def test_a_concepts_features_come_by_their_f1_on_the_choosing_half():
    labels, _ = make_labels(400, 0.3)
    scores = score_features(sparse(torch.rand(400, 6)), labels, 16)
    rows = list(best_features(scores, labels, 6, top=4))
    for number, name in enumerate(labels.names):
        mine = [row for row in rows if row["concept"] == name]
        assert [row["rank"] for row in mine] == [0, 1, 2, 3]
        expected = scores.f1_choosing[:, number].sort(descending=True).values[:4]
        assert [row["f1_choosing"] for row in mine] == expected.tolist()


def test_no_concepts_give_no_rows():
    table = pa.table({name: pa.array([], pa.int32()) for name in ("sequence", "position")}).add_column(
        0, "concept", pa.array([], pa.string())
    )
    scored = torch.ones(4, 5, dtype=torch.bool)
    labels = label(table, HeldOut(torch.zeros(4, 5).long(), torch.zeros(4, 5).long(), scored, ~scored))
    assert list(best_features(score_features(sparse(torch.rand(20, 3)), labels, 8), labels, 3)) == []


def test_labels_of_positions_that_are_not_scored_are_left_out_and_documents_stay_whole():
    scored = torch.tensor([[False, True, True, False, True], [False, True, False, True, True]])
    document = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 2, 2, 2]])
    held_out = HeldOut(torch.zeros(2, 5).long(), document, scored, ~scored)
    table = pa.table(
        {
            "concept": ["b", "a", "b", "b"],
            "sequence": [0, 0, 1, 7],
            "position": [3, 2, 4, 1],
        }  # (7, 1) is not held out
    )
    labels = label(table, held_out)
    assert labels.names == ("a", "b")
    assert labels.choosing.tolist() == [True, True, False, False, True, True]
    assert labels.positives(choosing=True).tolist() == [1, 1]
    assert labels.positives(choosing=False).tolist() == [0, 0]
