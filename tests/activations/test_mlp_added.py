"""What an MLP adds is computed from cached inputs of the MLP, with moments and norms of its own."""

import shutil

import pytest
import torch
import zarr
from tests.activations.inputs import make_cache, make_order, make_tokens
from tests.activations.test_cache import all_rows, direct
from tests.activations.test_norms import STRINGS
from tests.architectures import tiny_architecture
from tests.models import D_MODEL

from circuitloom.activations.cache import cache_shards_of_job
from circuitloom.activations.norms import norm_rows
from circuitloom.activations.row_order import write_row_origins
from circuitloom.activations.shards import join_shards
from circuitloom.activations.statistics import norm_statistics
from circuitloom.activations.store import must_compute, open_activations, read_sites
from circuitloom.config import Activations
from circuitloom.config.activations import MLP_OUTPUTS
from circuitloom.core.layout import layer_group
from circuitloom.core.zarr_groups import consolidate
from circuitloom.language_model.model import LanguageModel, load_model

CHANGED = ("gemma3_text", "olmo2", "granite")
"""Models with a norm behind the MLP, and with a residual multiplier."""


@pytest.fixture(scope="module", params=CHANGED)
def changed(request, tmp_path_factory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("model") / request.param
    return load_model(tiny_architecture(request.param, folder), device="cpu")


@pytest.fixture(scope="module")
def changed_cache(changed, tmp_path_factory):
    """mlp_in of two layers, in bfloat16; read only."""
    folder = tmp_path_factory.mktemp("activations")
    return make_cache(folder, changed, make_order(40), dtype="bfloat16", layers=[0, 2])


def test_rows_are_computed_by_the_mlp_and_what_follows_it(changed, changed_cache, tmp_path):
    expected = direct(changed, make_order(40), "mlp_added", 2, tmp_path)
    rows = all_rows(changed_cache, "mlp_added", 2, changed)
    assert (rows - expected).norm() / expected.norm() < 2e-2
    returned = all_rows(changed_cache, "mlp_out", 2, changed)
    assert (rows - returned).norm() / expected.norm() > 0.1


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("site", MLP_OUTPUTS)
def test_moments_and_norms_are_those_of_the_rows(site, layer, changed, changed_cache):
    store = open_activations(changed_cache, site, layer, changed)
    x = all_rows(changed_cache, site, layer, changed).double()
    mean = x.mean(0)
    torch.testing.assert_close(store.mean.double(), mean, rtol=1e-2, atol=1e-2)
    assert store.scale == pytest.approx(float(x.square().sum(1).mean() / D_MODEL) ** 0.5, rel=1e-2)
    assert store.variance == pytest.approx(float((x - mean).square().sum(1).mean()), rel=1e-2)
    norms = norm_statistics(torch.linalg.vector_norm(x, dim=1).float().numpy())
    assert store.norms.median == pytest.approx(norms.median, rel=1e-2)
    assert store.norms.largest == pytest.approx(norms.largest, rel=2e-2)


def test_a_batch_has_all_sites_of_the_same_rows(changed, changed_cache):
    stores = {s: open_activations(changed_cache, s, 0, changed) for s in ("mlp_in", *MLP_OUTPUTS)}
    batch = next(read_sites(stores, 64, 1))
    for site in MLP_OUTPUTS:
        torch.testing.assert_close(batch[site], changed.map_to(site, 0)(batch["mlp_in"]))


def test_a_stored_site_equals_the_computed_one(changed, changed_cache, tmp_path):
    folder = shutil.copytree(changed_cache, tmp_path / "both")
    make_cache(folder, changed, make_order(40), "mlp_added", dtype="bfloat16", layers=[0, 2])
    assert must_compute(changed_cache, "mlp_added", 2) and not must_compute(folder, "mlp_added", 2)
    stored, computed = all_rows(folder, "mlp_added", 2), all_rows(changed_cache, "mlp_added", 2, changed)
    assert (stored - computed).norm() / stored.norm() < 2e-2
    both = [open_activations(each, "mlp_added", 2, changed) for each in (folder, changed_cache)]
    # measured in passes over the same tokens
    assert torch.equal(both[0].mean, both[1].mean) and both[0].norms == both[1].norms
    # a stored site of another order of rows does not belong to the cached mlp_in
    make_cache(folder, changed, make_order(40, seed=1), "mlp_added", dtype="bfloat16", layers=[0, 2])
    with pytest.raises(ValueError, match=r"mlp_added/layer2.*delete what activations.sites does not list"):
        open_activations(folder, "mlp_added", 2, changed)


def test_several_jobs_measure_what_one_job_measures(changed, changed_cache, tmp_path):
    config = Activations(dtype="bfloat16", layers=[0, 2], jobs=2)
    jobs = [tmp_path / f"job{job}" for job in range(2)]
    for job, folder in enumerate(jobs):
        cache_shards_of_job("mlp_in", make_order(40), changed, config, job, folder)
    join_shards(jobs, tmp_path / "joined")
    one, joined = (
        zarr.open_group(layer_group(folder / "mlp_in", 2), mode="r").attrs.asdict()
        for folder in (changed_cache, tmp_path / "joined")
    )
    assert one == joined and "moments_mlp_added" in one


def test_the_table_of_norms_has_rows_of_both_outputs(changed, changed_cache, tmp_path):
    folder = shutil.copytree(changed_cache, tmp_path / "cache")
    order, tokens = make_order(40), make_tokens(40)
    write_row_origins(order, folder / "rows.zarr")
    rows = norm_rows(folder, ["mlp_in"], [0, 2], tokens, STRINGS)
    names = [(row["site"], row["layer"]) for row in rows]
    assert names == [(site, layer) for layer in (0, 2) for site in ("mlp_in", *MLP_OUTPUTS)]
    assert rows[1]["median_norm"] != rows[2]["median_norm"]
    make_cache(folder, changed, order, "mlp_added", dtype="bfloat16", layers=[0, 2])
    assert norm_rows(folder, ["mlp_added"], [0], tokens, STRINGS)[0] == rows[2]
    assert len(norm_rows(folder, ["mlp_in", "mlp_added"], [0, 2], tokens, STRINGS)) == 6


def test_a_cache_that_did_not_measure_it_is_refused(changed, changed_cache, tmp_path):
    folder = shutil.copytree(changed_cache, tmp_path / "cache")
    group = zarr.open_group(layer_group(folder / "mlp_in", 0), mode="r+", use_consolidated=False)
    group.attrs.put({key: value for key, value in group.attrs.items() if not key.endswith("mlp_added")})
    consolidate(layer_group(folder / "mlp_in", 0))
    open_activations(folder, "mlp_out", 0, changed)
    with pytest.raises(ValueError, match="cached by an older version; delete it and run again"):
        open_activations(folder, "mlp_added", 0, changed)


def test_in_a_model_that_adds_the_mlp_s_output_as_it_is_both_are_one(model, cached):
    added, out = (open_activations(cached, site, 1, model) for site in ("mlp_added", "mlp_out"))
    assert torch.equal(next(added.batches(64)), next(out.batches(64)))
    assert (added.moments.to_json(), added.norms) == (out.moments.to_json(), out.norms)
    attributes = zarr.open_group(layer_group(cached / "mlp_in", 1), mode="r").attrs
    assert "moments_mlp_out" in attributes and "moments_mlp_added" not in attributes
    with pytest.raises(ValueError, match=r"add mlp_added to activations\.sites, or give the model"):
        open_activations(cached, "mlp_added", 1)
