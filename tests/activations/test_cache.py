import numpy as np
import pytest
import torch
import zarr
from tests.activations.inputs import SHARD_ROWS, make_cache, make_order, make_tokens
from tests.models import D_MODEL, LAYERS

from circuitloom.activations import cache
from circuitloom.activations.row_order import write_row_origins
from circuitloom.activations.store import open_activations
from circuitloom.core.layout import layer_group
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import load_model

TOLERANCE = {"float16": 1e-3, "bfloat16": 1e-2, "int8": 2e-2}


def all_rows(folder, site, layer, model=None):
    activations = open_activations(folder, site, layer, model)
    return next(activations.batches(activations.rows, 1))


def direct(model, order, site, layer, folder):
    """Each row's activation, from a forward pass of its sequence alone."""
    write_row_origins(order, folder / "rows.zarr")
    origin = zarr.open_group(folder / "rows.zarr", mode="r")
    tokens = make_tokens(len(order.token), order.separator_id).take(slice(None))
    x = torch.cat([capture(model, s[None], [Site(site, layer)])[Site(site, layer)] for s in tokens])
    return x[tuple(torch.from_numpy(origin[name][:]).long() for name in ("sequence", "position"))]


@pytest.mark.parametrize("number_format", TOLERANCE)
def test_rows_map_back_to_their_tokens_in_every_format(number_format, model, tmp_path):
    order = make_order(70)
    make_cache(tmp_path, model, order, dtype=number_format, batch=16)
    expected = direct(model, order, "mlp_in", 1, tmp_path)
    error = (all_rows(tmp_path, "mlp_in", 1) - expected).norm() / expected.norm()
    assert error < TOLERANCE[number_format]


@pytest.mark.parametrize("site", ["mlp_in", "mlp_out", "resid_pre"])
def test_rows_map_back_to_their_tokens_at_every_site_of_every_architecture(site, any_model, tmp_path):
    order = make_order(40, bos_id=None)
    make_cache(tmp_path, any_model, order, site)
    for layer in range(LAYERS):
        expected = direct(any_model, order, site, layer, tmp_path)
        torch.testing.assert_close(all_rows(tmp_path, site, layer), expected, rtol=1e-3, atol=2e-3)


def test_resid_mid_of_sequential_blocks_is_stored(model, tmp_path):
    order = make_order(40)
    make_cache(tmp_path, model, order, "resid_mid", layers=[1])
    expected = direct(model, order, "resid_mid", 1, tmp_path)
    torch.testing.assert_close(all_rows(tmp_path, "resid_mid", 1), expected, rtol=1e-3, atol=2e-3)
    assert not layer_group(tmp_path / "resid_mid", 0).exists()


def test_recomputed_mlp_output_equals_the_models(any_model, tmp_path):
    order = make_order(40)
    make_cache(tmp_path, any_model, order)
    expected = direct(any_model, order, "mlp_out", 2, tmp_path)
    error = (all_rows(tmp_path, "mlp_out", 2, any_model) - expected).norm() / expected.norm()
    assert error < 2e-3


def test_values_are_independent_of_the_batch_size(model, tmp_path):
    for batch in (3, 64):
        make_cache(tmp_path / str(batch), model, make_order(70), batch=batch)
    a, b = (all_rows(tmp_path / str(batch), "mlp_in", 2) for batch in (3, 64))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_moments_are_those_of_the_stored_or_recomputed_rows(model, cached):
    for site in ("mlp_in", "mlp_out"):
        activations = open_activations(cached, site, 0, model)
        x = all_rows(cached, site, 0, model).double()
        mean = x.mean(0)
        torch.testing.assert_close(activations.mean.double(), mean, rtol=1e-3, atol=1e-4)
        assert activations.scale == pytest.approx(float(x.square().sum(1).mean() / D_MODEL) ** 0.5, rel=1e-3)
        assert activations.variance == pytest.approx(float((x - mean).square().sum(1).mean()), rel=1e-3)


def test_the_last_shard_may_be_short(cached):
    rows = open_activations(cached, "mlp_in", 0).rows
    assert rows % SHARD_ROWS
    assert len(list((layer_group(cached / "mlp_in", 0) / "values" / "c").iterdir())) == -(-rows // SHARD_ROWS)


def test_a_value_beyond_float16_is_refused(model_folder, tmp_path):
    model = load_model(model_folder, device="cpu")
    model.block(1).ln_2.weight.data *= 1e6
    with pytest.raises(ValueError, match=r"layer 1: mlp_in reaches .*; set activations.dtype to bfloat16"):
        make_cache(tmp_path, model, make_order(40))
    assert not (tmp_path / "mlp_in").exists()
    make_cache(tmp_path, model, make_order(40), dtype="bfloat16")


def test_activations_that_are_not_finite_are_refused(model_folder, tmp_path):
    model = load_model(model_folder, device="cpu")
    model.block(2).ln_2.bias.data[0] = float("nan")
    with pytest.raises(
        ValueError, match=r"layer 2: mlp_in is not finite in float32; check the model's weights"
    ):
        make_cache(tmp_path, model, make_order(40), dtype="int8")


@pytest.mark.parametrize("site", ["mlp_in", "mlp_out", "resid_pre"])
def test_activations_that_overflow_float16_are_refused_with_the_remedy(site, model_folder, tmp_path):
    model = load_model(model_folder, "float16", device="cpu")
    model.block(1).mlp.c_fc.bias.data[:] = 5
    model.block(1).mlp.c_proj.weight.data[:] = 6e4
    with pytest.raises(ValueError, match=r"is not finite in float16; set language_model\.dtype to bfloat16"):
        make_cache(tmp_path, model, make_order(40), site, dtype="bfloat16")


def test_a_layer_that_the_model_lacks_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"activations.layers: no layer 9; choose from 0 to 2"):
        make_cache(tmp_path, model, make_order(40), layers=[0, 9])


def test_bfloat16_is_stored_as_uint16_and_named_in_the_attributes(model, tmp_path):
    make_cache(tmp_path, model, make_order(40), dtype="bfloat16")
    group = zarr.open_group(layer_group(tmp_path / "mlp_in", 0), mode="r")
    assert group.attrs["number_format"] == "bfloat16"
    bits = np.asarray(group["values"][:5])
    assert bits.dtype == np.uint16
    values = torch.from_numpy(bits).view(torch.bfloat16).float()
    torch.testing.assert_close(values, all_rows(tmp_path, "mlp_in", 0)[:5])


@pytest.mark.parametrize("number_format", TOLERANCE)
def test_rows_do_not_depend_on_the_device_of_the_buffers(number_format, model, tmp_path, monkeypatch):
    order = make_order(70)
    for name, fits in (("host", False), ("gpu", True)):
        monkeypatch.setattr(cache, "_buffers_fit_on_gpu", lambda *_, fits=fits: fits)
        make_cache(tmp_path / name, model, order, dtype=number_format)
    for layer in range(LAYERS):
        host, gpu = (all_rows(tmp_path / name, "mlp_in", layer) for name in ("host", "gpu"))
        assert torch.equal(host, gpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_stores_the_same_rows_as_a_cpu(fits, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_buffers_fit_on_gpu", lambda *_: fits)
    for device in ("cpu", "cuda"):
        make_cache(tmp_path / device, load_model(model_folder, device=device), make_order(120))
    for layer in range(LAYERS):
        cpu, gpu = (all_rows(tmp_path / device, "mlp_in", layer) for device in ("cpu", "cuda"))
        torch.testing.assert_close(cpu, gpu, rtol=1e-2, atol=2e-3)
