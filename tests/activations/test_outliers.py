"""Rows of very large norm are left out of training or capped, and the moments are those of what remains."""

import numpy as np
import pytest
import torch
from tests.activations.test_norms import massive  # noqa: F401

from circuitloom.activations.outliers import OutlierLimits, outlier_limits, with_limited_moments
from circuitloom.activations.store import open_activations
from circuitloom.config.activations import Outliers


def rows(*norms: float) -> torch.Tensor:
    """One row per norm, each in another direction."""
    directions = torch.randn(len(norms), 4, generator=torch.Generator().manual_seed(0))
    return directions / directions.norm(dim=1, keepdim=True) * torch.tensor(norms)[:, None]


def test_an_outlier_at_any_site_is_replaced_by_the_row_before_it():
    batch = {"x": rows(9, 1, 1, 1, 1), "y": rows(1, 1, 9, 9, 1)}
    limits = OutlierLimits({"x": 2, "y": 3}, "drop")
    assert limits.outliers(batch).tolist() == [True, False, True, True, False]
    kept = limits.apply(batch)
    for site in batch:
        # the first row has none before it
        assert torch.equal(kept[site], batch[site][[1, 1, 1, 1, 4]])


def test_a_capped_row_keeps_its_direction_and_others_keep_their_bits():
    batch = {"x": rows(1, 8, 3), "y": rows(0, 1, 40)}
    capped = OutlierLimits({"x": 2, "y": 4}, "cap").apply(batch)
    assert torch.equal(capped["x"][0], batch["x"][0])
    torch.testing.assert_close(capped["x"][1], batch["x"][1] / 4)
    torch.testing.assert_close(capped["x"][2], batch["x"][2] * 2 / 3)
    assert torch.equal(capped["y"][:2], batch["y"][:2])
    torch.testing.assert_close(capped["y"][2], batch["y"][2] / 10)


@pytest.mark.parametrize("action", ["drop", "cap"])
def test_moments_are_those_of_the_rows_without_outliers(action, massive):  # noqa: F811
    stores = {"resid_pre": open_activations(massive[0], "resid_pre", 0)}
    limits = outlier_limits(stores, Outliers(action=action))
    assert limits is not None
    store = stores["resid_pre"]
    x = next(store.batches(store.rows)).double()
    bound = limits.bounds["resid_pre"]
    norm = x.norm(dim=1, keepdim=True)
    expected = x[norm[:, 0] <= bound] if action == "drop" else torch.where(norm > bound, x * bound / norm, x)
    assert (len(x) - len(expected)) == (1 if action == "drop" else 0)
    limited = with_limited_moments(stores, limits, 100, "cpu")["resid_pre"]
    np.testing.assert_allclose(limited.mean, expected.mean(0), rtol=1e-4, atol=1e-5)
    assert limited.scale == pytest.approx(float(expected.square().mean()) ** 0.5, rel=1e-5)
    deviation = (expected - expected.mean(0)).square().sum(1).mean()
    assert limited.variance == pytest.approx(float(deviation), rel=1e-4)
    # the outlier was most of the scale
    assert store.scale > 3 * limited.scale


def test_kept_outliers_have_no_limits(cached):
    store = open_activations(cached, "mlp_in", 0)
    assert outlier_limits({"mlp_in": store}, Outliers()) is None


def test_a_median_of_zero_is_refused(cached):
    store = open_activations(cached, "mlp_in", 0)
    silent = store.__class__(**vars(store) | {"norms": store.norms._replace(median=0.0)})
    with pytest.raises(ValueError, match=r"activations.outliers: the median norm of mlp_in at layer 0 is 0"):
        outlier_limits({"mlp_in": silent}, Outliers(action="drop"))
