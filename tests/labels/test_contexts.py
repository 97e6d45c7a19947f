"""Samples of tokens, compared with sets of tokens that are found one by one."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.activations.inputs import make_tokens

from circuitloom.core.tables import ACTIVATION, write_table
from circuitloom.labels.contexts import (
    NEAR,
    FeatureFirings,
    HeldOutText,
    find_neighbours,
    read_firings,
    read_held_out,
    sample_tokens,
    split_bands,
    spread,
)

SEQUENCES, WIDTH = 30, 6


@pytest.fixture(scope="module")
def text() -> HeldOutText:
    return read_held_out(make_tokens(40), SEQUENCES)


@pytest.fixture(scope="module")
def z(text: HeldOutText) -> np.ndarray:
    """Activations, [feature, token], 0 at tokens that are not scored. Feature 1 fires where feature 0 does, too."""
    random = np.random.default_rng(3)
    z = random.random((WIDTH, len(text.document))) * (random.random((WIDTH, len(text.document))) < 0.1)
    z[1] = np.where(z[0] > 0, 0.5, z[1])
    z[5] = 0
    return z * text.scored


@pytest.fixture(scope="module")
def table(z: np.ndarray, text: HeldOutText, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("tables") / "activation.parquet"
    rows = [
        {
            "run": "r", "layer": 0, "feature": feature, "sequence": token // text.context,
            "position": token % text.context, "activation": z[feature, token],
        }
        for feature, token in zip(*z.nonzero(), strict=True)
    ]  # fmt: skip
    write_table(ACTIVATION, rows, file)
    return file


def test_halves_are_documents_with_even_and_odd_numbers_without_separators(text: HeldOutText) -> None:
    tokens = make_tokens(40)
    token, document = tokens.take(slice(SEQUENCES)).numpy(), tokens.take_document(slice(SEQUENCES)).numpy()
    expected = (token != tokens.separator_id) & (document % 2 == 1)
    expected[:, 0] = False
    assert (text.scoring == expected.ravel()).all()
    assert not (text.scoring & text.learning).any()
    assert ((text.scoring | text.learning) == text.scored).all()


def test_activations_of_features_are_read_in_text_order(
    table: Path, z: np.ndarray, text: HeldOutText
) -> None:
    found = read_firings(table, [4, 0, 5], text.context)
    assert list(found) == [4, 0, 5]
    for feature, firings in found.items():
        assert firings.index.tolist() == z[feature].nonzero()[0].tolist()
        assert firings.value == pytest.approx(z[feature][firings.index])


def test_neighbours_share_the_most_tokens_for_their_numbers(
    table: Path, z: np.ndarray, text: HeldOutText
) -> None:
    firings = read_firings(table, [0, 2, 5], text.context)
    found = find_neighbours(table, firings, text, WIDTH, "test")
    fires = (z > 0) & text.learning
    for feature in (0, 2):
        cosine = (fires @ fires[feature].astype(float)) / np.sqrt(
            np.maximum(fires.sum(1) * fires[feature].sum(), 1)
        )
        cosine[feature] = 0
        expected = [i for i in np.argsort(-cosine, kind="stable") if cosine[i] > 0]
        assert found[feature] == expected[: len(found[feature])] and len(found[feature]) == min(
            5, len(expected)
        )
    assert found[0][0] == 1
    assert found[5] == []


def test_samples_lie_in_their_strata(z: np.ndarray, text: HeldOutText) -> None:
    firings = FeatureFirings(z[0].nonzero()[0], z[0][z[0] > 0])
    neighbour = FeatureFirings(z[2].nonzero()[0], z[2][z[2] > 0])
    tokens = sample_tokens(text, firings, [neighbour], 12, 3, (1, 0))
    fires = z[0] > 0
    sets = {
        "hard": text.scoring & ~fires & (z[2] > 0),
        "others": text.scoring & ~fires & (z[2] == 0),
        "near": np.array([is_near(text, fires, token) for token in range(len(fires))]),
    }
    for name, expected in sets.items():
        sample = getattr(tokens, name)
        assert sample.size == expected.sum() and len(sample.index) == min(12, sample.size)
        assert expected[sample.index].all() and len(set(sample.index.tolist())) == len(sample.index)
    assert [len(band.index) for band in tokens.bands] == [4, 4, 4]
    for number, band in enumerate(tokens.bands):
        inside = fires & text.scoring & (np.minimum((z[0] / z[0].max() * 3).astype(int), 2) == number)
        assert band.size == inside.sum() and inside[band.index].all()


def is_near(text: HeldOutText, fires: np.ndarray, token: int) -> bool:
    """Whether a scoring token without the feature is near one with it, found one by one."""
    return bool(
        text.scoring[token]
        and not fires[token]
        and any(
            fires[other] and text.document[other] == text.document[token]
            for other in range(max(0, token - NEAR), min(len(fires), token + NEAR + 1))
            if other // text.context == token // text.context
        )
    )


def test_a_larger_sample_contains_the_smaller_one(z: np.ndarray, text: HeldOutText) -> None:
    firings = FeatureFirings(z[0].nonzero()[0], z[0][z[0] > 0])
    small, large = (sample_tokens(text, firings, [], n, 3, (1, 0)) for n in (5, 9))
    for a, b in zip(small.strata, large.strata, strict=True):
        assert set(a.index.tolist()) <= set(b.index.tolist())


def test_samples_of_a_feature_that_fires_in_no_scoring_document_have_no_bands(text: HeldOutText) -> None:
    nothing = FeatureFirings(np.zeros(0, np.int64), np.zeros(0))
    tokens = sample_tokens(text, nothing, [], 5, 3, (1, 0))
    assert list(tokens.bands) == [] and tokens.near.size == tokens.hard.size == 0
    assert tokens.others.size == text.scoring.sum()


def test_numbers_are_spread_evenly_as_far_as_groups_last() -> None:
    assert spread([10, 1, 10], 7) == [3, 1, 3]
    assert spread([5, 5], 3) == [1, 2]
    assert spread([1, 2], 9) == [1, 2]
    assert spread([], 4) == []


def test_bands_are_equal_intervals_up_to_the_largest_value() -> None:
    groups = split_bands(np.array([0.1, 1.0, 0.4, 0.5]), 1.0, 2)
    assert [group.tolist() for group in groups] == [[0, 2], [1, 3]]


def test_a_damaged_table_is_named(table: Path, text: HeldOutText, tmp_path: Path) -> None:
    broken = tmp_path / "activation.parquet"
    content = bytearray(table.read_bytes())
    page = pq.read_metadata(table).row_group(0).column(4).data_page_offset
    content[page + 40 : page + 60] = bytes(20)
    broken.write_bytes(content)
    nothing = {0: FeatureFirings(np.zeros(0, np.int64), np.zeros(0))}
    with pytest.raises(ValueError, match=r"activation.parquet: damaged"):
        find_neighbours(broken, nothing, text, WIDTH, "test")
