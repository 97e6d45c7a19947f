"""Features that two dictionaries share are counted, in any order and by cosine."""

from dataclasses import replace

import pytest
import torch

from circuitloom.dictionaries.cross_layer import CrossLayerDictionary
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.evaluation import stability
from circuitloom.evaluation.stability import (
    NearestNeighbours,
    compare_features,
    mean_largest_cosine,
    seed_pairs,
)

EYE = torch.eye(6)


def dictionary(W_enc: torch.Tensor, W_dec: torch.Tensor) -> Dictionary:
    return Dictionary(W_enc, torch.zeros(len(W_enc)), W_dec, torch.zeros(W_dec.shape[1]), act="relu")


def all_alive(*dictionaries) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (torch.ones(each.width, dtype=torch.bool) for each in dictionaries)
    return first, second


def test_the_same_features_in_another_order_are_all_shared() -> None:
    first = dictionary(3 * EYE[:4], EYE[:4])
    order = [2, 0, 3, 1]
    second = replace(first, W_enc=first.W_enc[order], W_dec=2 * first.W_dec[order])
    found = compare_features(first, second, all_alive(first, second))
    assert found is not None
    assert (found.decoder, found.encoder, found.shared, found.n_features) == (1, 1, 1, 8)
    assert found.matched == {0.7: 1, 0.9: 1}


def test_cosines_and_shares_are_those_counted_by_hand() -> None:
    # cosines of the decoder rows: 1, 0.8 and 0; the encoders of the second pair point elsewhere
    first = dictionary(EYE[:3], EYE[:3])
    second = dictionary(
        torch.stack([EYE[0], EYE[5], EYE[4]]), torch.stack([EYE[0], 0.8 * EYE[1] + 0.6 * EYE[3], EYE[4]])
    )
    found = compare_features(first, second, all_alive(first, second))
    assert found is not None
    assert found.decoder == pytest.approx((1 + 0.8 + 0 + 1 + 0.8 + 0) / 6)
    assert found.encoder == pytest.approx(2 / 6)
    assert found.matched == pytest.approx({0.7: 4 / 6, 0.9: 2 / 6})
    assert found.shared == pytest.approx(2 / 6)


def test_a_feature_is_the_partner_of_one_other_only() -> None:
    # both features of the first are nearest to feature 0 of the second, whose nearest is feature 1
    first = torch.tensor([[0.9, 0.1], [1.0, 0.0]])
    second = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    partner, cosine = NearestNeighbours.of(first, second).mutual()
    assert partner.tolist() == [-1, 0] and float(cosine[1]) == 1


def test_features_that_never_fire_are_left_out() -> None:
    first = dictionary(EYE[:3], EYE[:3])
    second = dictionary(EYE[:3], torch.stack([EYE[0], EYE[5], EYE[5]]))
    alive = torch.tensor([True, False, False])
    found = compare_features(first, second, (alive, alive))
    assert found is not None and found.decoder == 1 and found.n_features == 2
    assert compare_features(first, second, (alive, torch.zeros(3, dtype=torch.bool))) is None


def test_neighbours_do_not_depend_on_the_chunks(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(30, 5, generator=generator), torch.randn(20, 5, generator=generator)
    whole, alone = NearestNeighbours.of(first, second), mean_largest_cosine(first)
    monkeypatch.setattr(stability, "CHUNK", 7)
    parts = NearestNeighbours.of(first, second)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second, dim=2)
    for each in (whole, parts):
        assert torch.equal(each.forth, cosines.argmax(1)) and torch.equal(each.back, cosines.argmax(0))
    assert mean_largest_cosine(first) == pytest.approx(alone)
    own = torch.nn.functional.cosine_similarity(first[:, None], first, dim=2) - 3 * torch.eye(30)
    assert alone == pytest.approx(float(own.amax(1).mean()))


def test_cross_layer_decoders_are_compared_relative_to_the_outputs_scales() -> None:
    def layer(W_dec: torch.Tensor) -> CrossLayerDictionary:
        return CrossLayerDictionary(
            EYE[:1], torch.zeros(1), W_dec, torch.zeros(6), act="relu", outputs=(0, 1), scales=(1.0, 10.0)
        )  # fmt: skip

    first, second = (
        layer(torch.stack([EYE[0], 10 * EYE[1]])[None]),
        layer(torch.stack([EYE[0], 10 * EYE[2]])[None]),
    )
    found = compare_features(first, second, all_alive(first, second))
    assert found is not None and found.decoder == pytest.approx(0.5)


def test_runs_that_differ_in_the_seed_alone_are_pairs() -> None:
    base = {"name": "", "width": 8, "seed": 0}
    configs = {
        "a": base, "a-seed1": base | {"name": "x", "seed": 1}, "wide": base | {"width": 9},
        "a-seed2": base | {"seed": 2}, "again": base,
        "imported": base | {"files": "x"}, "imported1": base | {"files": "x", "seed": 1},
    }  # fmt: skip
    assert seed_pairs(configs) == [
        ("a", "a-seed1"), ("a", "a-seed2"), ("a-seed1", "a-seed2"), ("a-seed1", "again"), ("a-seed2", "again"),
    ]  # fmt: skip
