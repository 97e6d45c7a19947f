"""Samples of tokens, compared with sets of tokens that are found one by one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.activations.inputs import make_tokens
from tests.features.inputs import STRINGS

from circuitloom.core.tables import ACTIVATION, write_table
from circuitloom.corpus.token_arrays import scored_positions
from circuitloom.labels.contexts import (
    FeatureActivations,
    JudgedTokens,
    read_activations,
    sample_tokens,
    split_bands,
    spread,
)
from circuitloom.labels.firings import Firings, Neighbours, read_firings
from circuitloom.labels.text import NEAR, LabelText, read_text

SEQUENCES, WIDTH, BANDS = 30, 8, 3
TOKENS = make_tokens(40)


@dataclass(frozen=True)
class Layer:
    """Random activations of a layer: `z` is [feature, token], and 0 at tokens that are not scored."""

    text: LabelText
    z: np.ndarray
    document: np.ndarray
    table: Path
    scoring: Firings
    neighbours: Neighbours

    def sample(self, feature: int, n: int) -> JudgedTokens:
        activations = read_activations(self.table, [feature], TOKENS.context)[feature]
        return sample_tokens(feature, self.scoring, self.neighbours, activations, n, BANDS, 1)


@pytest.fixture(scope="module")
def layer(tmp_path_factory) -> Layer:
    rows = slice(SEQUENCES)
    token, document = TOKENS.take(rows).numpy(), TOKENS.take_document(rows).numpy().ravel()
    random = np.random.default_rng(3)
    z = random.random((WIDTH, token.size)) * (random.random((WIDTH, token.size)) < 0.1)
    z[7] = 0
    z *= scored_positions(token, TOKENS.separator_id).ravel()
    file = tmp_path_factory.mktemp("tables") / "activation.parquet"
    written = [
        {
            "run": "r", "layer": 0, "feature": feature, "sequence": index // TOKENS.context,
            "position": index % TOKENS.context, "activation": z[feature, index],
        }
        for feature, index in zip(*z.nonzero(), strict=True)
    ]  # fmt: skip
    write_table(ACTIVATION, written, file)
    text = read_text(TOKENS, SEQUENCES, STRINGS)
    learning, scoring = read_firings(file, WIDTH, TOKENS.context, text)
    return Layer(text, z, document, file, scoring, Neighbours(learning, len(text.names) + 1))


def test_activations_of_features_are_read_in_text_order(layer: Layer) -> None:
    found = read_activations(layer.table, [4, 0, 7], TOKENS.context)
    assert list(found) == [4, 0, 7]
    for feature, activations in found.items():
        assert activations.index.tolist() == layer.z[feature].nonzero()[0].tolist()
        assert activations.value == pytest.approx(layer.z[feature][activations.index])


def is_near(layer: Layer, fires: np.ndarray, index: int) -> bool:
    """Whether a token is near one with the feature, in its document."""
    return any(
        fires[other] and layer.document[other] == layer.document[index]
        for other in range(max(0, index - NEAR), min(len(fires), index + NEAR + 1))
    )


def test_samples_lie_in_their_strata(layer: Layer) -> None:
    tokens, half = layer.sample(0, 12), layer.text.scoring.index
    assert (layer.document[half] % 2 == 1).all()
    fires = layer.z[0] > 0
    similar = (layer.z[layer.neighbours.similar[0]] > 0).any(0)
    near = np.array([is_near(layer, fires, index) for index in half.tolist()])
    sets = {
        "hard": (~fires & similar)[half],
        "others": (~fires & ~similar)[half],
        "near": ~fires[half] & near,
    }
    for name, expected in sets.items():
        sample = getattr(tokens, name)
        assert sample.size == expected.sum() and len(sample.position) == min(12, sample.size) > 0
        assert expected[sample.position].all() and len(set(sample.position.tolist())) == len(sample.position)
    assert [len(band.position) for band in tokens.bands] == [4, 4, 4]
    number = np.minimum((layer.z[0] / layer.z[0].max() * BANDS).astype(int), BANDS - 1)
    for i, band in enumerate(tokens.bands):
        inside = (fires & (number == i))[half]
        assert band.size == inside.sum() and inside[band.position].all()


def test_a_larger_sample_contains_the_smaller_one(layer: Layer) -> None:
    for a, b in zip(layer.sample(2, 5).strata, layer.sample(2, 9).strata, strict=True):
        assert a.size == b.size
        assert set(a.position.tolist()) <= set(b.position.tolist())


def test_samples_of_a_feature_that_fires_in_no_scoring_document_have_no_bands(layer: Layer) -> None:
    tokens = layer.sample(7, 5)
    assert list(tokens.bands) == [] and tokens.near.size == 0
    assert tokens.hard.size + tokens.others.size == len(layer.text.scoring)


def test_numbers_are_spread_evenly_as_far_as_groups_last() -> None:
    assert spread([10, 1, 10], 7) == [3, 1, 3]
    assert spread([5, 5], 3) == [1, 2]
    assert spread([1, 2], 9) == [1, 2]
    assert spread([], 4) == []


def test_bands_are_equal_intervals_up_to_the_largest_value() -> None:
    groups = split_bands(np.array([0.1, 1.0, 0.4, 0.5]), np.array([1.0]), 2)
    assert [group.tolist() for group in groups] == [[0, 2], [1, 3]]
    assert split_bands(np.zeros(0), np.zeros(0), 2) == []


def test_activations_of_a_half_are_those_at_its_tokens() -> None:
    half = FeatureActivations(np.array([2, 5, 9]), np.array([1.0, 2.0, 3.0])).inside(np.array([1, 5, 9]))
    assert (half.index.tolist(), half.value.tolist()) == ([5, 9], [2.0, 3.0])
