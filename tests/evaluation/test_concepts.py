import numpy as np
import pyarrow as pa
import pytest
import torch

from circuitloom.evaluation.concepts import (
    SparseActivations,
    best_features,
    concept_annotations,
    score_columns,
    score_features,
)
from circuitloom.evaluation.held_out import HeldOut

CONCEPTS = ("caught", "semicolon", "year")


def make_annotations(n_tokens: int, density: float, seed: int = 0):
    """Random annotations, one document per sequence, and the same as a matrix [token, concept]."""
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
    return concept_annotations(table, HeldOut(token, document, scored, ~scored)), has


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
    annotations, has = make_annotations(400, 0.2)
    generator = torch.Generator().manual_seed(0)
    # rounded, so that values tie, and sparse
    z = (torch.randn(400, 6, generator=generator) * 4).round() / 4
    if signed:
        scores = score_columns(z, annotations, thresholds=2000, signed=True, columns=4)
        # the lowest threshold is the smallest value: a feature that always fires is not tried
        floor = z[annotations.choosing].min(0).values.numpy()
    else:
        z = z.relu()
        scores = score_features(sparse(z), annotations, thresholds=2000)
        floor = np.zeros(6)
    choosing = annotations.choosing.numpy()
    for feature in range(6):
        for concept in range(3):
            best, possible = brute_force(z[:, feature].numpy(), has[:, concept], choosing, floor[feature])
            assert float(scores.f1_choosing[feature, concept]) == pytest.approx(best)
            assert any(float(scores.f1[feature, concept]) == pytest.approx(f1) for f1 in possible)
            threshold = float(scores.threshold[feature, concept])
            fires = z[~annotations.choosing, feature].numpy() > threshold
            assert float(scores.precision[feature, concept]) == pytest.approx(
                has[~choosing, concept][fires].mean()
            )
            assert float(scores.recall[feature, concept]) == pytest.approx(
                fires[has[~choosing, concept]].mean()
            )


def test_few_thresholds_give_nearly_the_scores_of_all():
    annotations, has = make_annotations(20_000, 0.01)
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    z = (noise + 3 * torch.from_numpy(has)).relu()
    few, many = (
        score_features(sparse(z), annotations, thresholds).f1_choosing.diag() for thresholds in (64, 5000)
    )
    assert (many - few).max() < 0.01
    assert (few <= many + 1e-6).all()


def test_scores_do_not_depend_on_the_number_of_features_scored_at_once(monkeypatch):
    annotations, _ = make_annotations(400, 0.2)
    code = sparse(torch.randn(400, 9, generator=torch.Generator().manual_seed(0)).relu())
    at_once = score_features(code, annotations, 16)
    monkeypatch.setattr("circuitloom.evaluation.concepts.MAX_COUNTS", 2 * 16 * 4)
    for name, column in vars(score_features(code, annotations, 16)).items():
        assert torch.equal(column, getattr(at_once, name)), name


def test_dense_and_sparse_activations_have_the_same_scores():
    annotations, _ = make_annotations(400, 0.2)
    z = torch.randn(400, 9, generator=torch.Generator().manual_seed(0))
    dense, coded = (
        score_columns(z, annotations, 16, columns=4),
        score_features(sparse(z.relu()), annotations, 16),
    )
    assert all(torch.equal(getattr(dense, name), column) for name, column in vars(coded).items())


def test_a_planted_feature_is_found_with_its_concept():
    annotations, has = make_annotations(2000, 0.05)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 20, generator=generator).relu() * 0.1
    z[:, 13] = torch.from_numpy(has[:, 1]) * (1 + torch.rand(2000, generator=generator))
    row = list(best_features(score_features(sparse(z), annotations, 64), annotations, 20))[1]
    assert (row["concept"], row["feature"], row["sign"]) == ("semicolon", 13, 1)
    assert (row["precision"], row["recall"], row["f1"]) == (1, 1, 1)
    assert row["n_positive"] == has[~annotations.choosing.numpy(), 1].sum()


def test_a_planted_negative_direction_is_found_with_its_sign():
    annotations, has = make_annotations(2000, 0.05)
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    x[:, 5] += 10 - 3 * torch.from_numpy(has[:, 2])
    scores = [score_columns(sign * x, annotations, 64, signed=True) for sign in (1, -1)]
    rows = list(best_features(type(scores[0]).concatenate(scores), annotations, 8))
    assert (rows[2]["feature"], rows[2]["sign"]) == (5, -1)
    assert rows[2]["f1"] > 0.95
    assert rows[2]["threshold"] < 0


def test_a_random_feature_scores_no_better_on_the_scoring_half_than_one_that_always_fires():
    annotations, has = make_annotations(5000, 0.1)
    z = torch.rand(5000, 300, generator=torch.Generator().manual_seed(0))
    scores = score_features(sparse(z), annotations, 64)
    share = has[~annotations.choosing.numpy()].mean()
    best = scores.f1_choosing.argmax(0)
    # the best of 300 on one half is best by chance, not on the other half
    assert scores.f1.gather(0, best[None]).max() < 2 * share / (1 + share) + 0.03


def test_a_concept_absent_from_the_scoring_half_has_no_score():
    annotations, has = make_annotations(400, 0.2)
    keep = annotations.choosing.numpy() & has[:, 0]
    rows = np.flatnonzero(keep)
    token = torch.zeros(40, 11, dtype=torch.int64)
    scored = torch.ones_like(token, dtype=torch.bool)
    scored[:, 0] = False
    held_out = HeldOut(token, torch.arange(40)[:, None].expand_as(token), scored, ~scored)
    table = pa.table({"concept": ["caught"] * len(rows), "sequence": rows // 10, "position": rows % 10 + 1})
    only = concept_annotations(table, held_out)
    (row,) = best_features(score_features(sparse(torch.rand(400, 3)), only, 8), only, 3)
    assert (row["n_positive"], row["recall"], row["f1_choosing"] > 0) == (0, None, True)


def test_features_of_a_concept_are_ordered_by_f1_on_the_choosing_half():
    annotations, _ = make_annotations(400, 0.3)
    scores = score_features(sparse(torch.rand(400, 6)), annotations, 16)
    rows = list(best_features(scores, annotations, 6, top=4))
    for number, name in enumerate(annotations.names):
        mine = [row for row in rows if row["concept"] == name]
        assert [row["rank"] for row in mine] == [0, 1, 2, 3]
        expected = scores.f1_choosing[:, number].sort(descending=True).values[:4]
        assert [row["f1_choosing"] for row in mine] == expected.tolist()


def test_no_concepts_give_no_rows():
    table = pa.table({name: pa.array([], pa.int32()) for name in ("sequence", "position")}).add_column(
        0, "concept", pa.array([], pa.string())
    )
    scored = torch.ones(4, 5, dtype=torch.bool)
    annotations = concept_annotations(
        table, HeldOut(torch.zeros(4, 5).long(), torch.zeros(4, 5).long(), scored, ~scored)
    )
    assert (
        list(best_features(score_features(sparse(torch.rand(20, 3)), annotations, 8), annotations, 3)) == []
    )


def test_annotations_of_unscored_positions_are_dropped_and_no_document_is_in_both_halves():
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
    annotations = concept_annotations(table, held_out)
    assert annotations.names == ("a", "b")
    assert annotations.choosing.tolist() == [True, True, False, False, True, True]
    assert annotations.positives(choosing=True).tolist() == [1, 1]
    assert annotations.positives(choosing=False).tolist() == [0, 0]
