"""Sets of features grow to what they are made for, and no further."""

from itertools import product

import pytest
import torch

from circuitloom.cases.planted.sets import grow_set

TOKENS = 400


@pytest.fixture(scope="module")
def planted():
    """A concept whose tokens three features share among them, one of which fires elsewhere too, but weakly."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(TOKENS, generator=generator) < 0.3
    part = torch.randint(3, (TOKENS,), generator=generator)
    values = torch.zeros(TOKENS, 5)
    for feature in range(3):
        mine = positive & (part == feature)
        values[mine, feature] = 1 + torch.rand(int(mine.sum()), generator=generator)
    elsewhere = ~positive & (torch.rand(TOKENS, generator=generator) < 0.5)
    values[elsewhere, 1] = 0.9 * torch.rand(int(elsewhere.sum()), generator=generator)
    values[:, 3] = torch.rand(TOKENS, generator=generator)
    choosing = torch.arange(TOKENS) % 2 == 0
    return values, positive, choosing


def test_features_that_share_a_concept_are_found_with_thresholds_that_keep_them_pure(planted):
    grown = grow_set(*planted, most=5)
    assert sorted(grown.columns) == [0, 1, 2]
    assert grown.f1_choosing == grown.f1 == 1.0
    assert 0.5 < dict(zip(grown.columns, grown.thresholds, strict=True))[1] < 1


def test_a_set_has_no_more_features_than_it_may(planted):
    values, positive, choosing = planted
    grown = grow_set(values, positive, choosing, most=2)
    said = (values[:, list(grown.columns)] > torch.tensor(grown.thresholds)).any(1)
    hits = int((said & positive)[~choosing].sum())
    assert len(grown.columns) == 2
    assert grown.f1 == pytest.approx(2 * hits / int(said[~choosing].sum() + positive[~choosing].sum()))


def test_the_first_feature_and_threshold_are_the_best_of_all(planted):
    values, positive, choosing = planted
    noisy = (values + 0.05 * torch.rand(values.shape, generator=torch.Generator().manual_seed(1))).round(
        decimals=2
    )
    truth, best = positive[choosing], 0.0
    for feature, threshold in product(range(5), torch.arange(0, 3, 0.005).tolist()):
        said = noisy[choosing, feature] > threshold
        best = max(best, 2 * int((said & truth).sum()) / max(1, int(said.sum()) + int(truth.sum())))
    assert grow_set(noisy, positive, choosing, most=1).f1_choosing == pytest.approx(best)


def test_what_was_chosen_does_not_depend_on_the_other_half(planted):
    values, positive, choosing = planted
    changed = values.clone()
    changed[~choosing] = 0
    assert (
        grow_set(changed, positive, choosing, 5).thresholds
        == grow_set(values, positive, choosing, 5).thresholds
    )
    assert grow_set(changed, positive, choosing, 5).f1 == 0


def test_of_a_concept_that_has_no_token_nothing_is_said(planted):
    values, positive, choosing = planted
    grown = grow_set(values, torch.zeros_like(positive), choosing, 5)
    assert grown.columns == () and grown.f1_choosing == 0 and grown.f1 != grown.f1
