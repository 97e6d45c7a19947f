import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.activations.inputs import make_cache, make_order
from tests.models import tiny_model

from circuitloom.activations.store import open_activations, read_sites
from circuitloom.core.layout import layer_group
from circuitloom.language_model.model import load_model


def read_pairs(x, y, batch, steps, start_step=0):
    """(x, y) of each step."""
    return (tuple(sites.values()) for sites in read_sites({"x": x, "y": y}, batch, steps, start_step))


def test_every_row_is_read_once_per_epoch(cached):
    x = open_activations(cached, "mlp_in", 0)
    epoch = next(x.batches(x.rows))
    batch = 300
    stream = torch.cat(list(x.batches(batch, steps=2 * x.rows // batch + 1)))
    assert torch.equal(stream[: x.rows], epoch)
    assert torch.equal(stream[x.rows : 2 * x.rows], epoch)


def test_a_batch_is_a_function_of_its_step(cached, model):
    x, y = open_activations(cached, "mlp_in", 1), open_activations(cached, "mlp_out", 1, model)
    undisturbed = list(read_pairs(x, y, 500, 12))
    resumed = list(read_pairs(x, y, 500, 12, start_step=7))
    assert len(undisturbed) == 12 and len(resumed) == 5
    for (xa, ya), (xb, yb) in zip(undisturbed[7:], resumed, strict=True):
        assert torch.equal(xa, xb) and torch.equal(ya, yb)


def test_a_batch_may_exceed_an_epoch(cached):
    x = open_activations(cached, "mlp_in", 0)
    batch = next(x.batches(2 * x.rows + 5, steps=1))
    assert torch.equal(batch[-5:], batch[:5])


def test_mlp_out_is_computed_from_mlp_in(cached, model):
    x, y = open_activations(cached, "mlp_in", 1), open_activations(cached, "mlp_out", 1, model)
    xs, ys = next(read_pairs(x, y, 64, 1))
    assert xs.dtype == ys.dtype == torch.float32
    torch.testing.assert_close(ys, model.mlp(1)(xs))
    assert torch.equal(next(y.batches(64)), ys)


def test_a_stored_mlp_out_pairs_with_its_mlp_in(cached, model, tmp_path):
    folder = shutil.copytree(cached, tmp_path / "both")
    make_cache(folder, model, make_order(), "mlp_out")
    x, y = open_activations(folder, "mlp_in", 1), open_activations(folder, "mlp_out", 1)
    xs, ys = next(read_pairs(x, y, 512, 1))
    torch.testing.assert_close(ys, model.mlp(1)(xs), rtol=1e-2, atol=5e-3)


def test_batches_support_backward(cached, model):
    x, y = open_activations(cached, "mlp_in", 0), open_activations(cached, "mlp_out", 0, model)
    xs, ys = next(read_pairs(x, y, 64, 1))
    weight = torch.zeros(ys.shape[1], xs.shape[1], requires_grad=True)
    (xs @ weight.T - ys).square().sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


@pytest.fixture(params=["order", "model"])
def cached_otherwise(request, model, tmp_path) -> Callable[[Path, str], Path]:
    """Caches a site of another model, or in another order."""
    if request.param == "order":
        return lambda folder, site: make_cache(folder, model, make_order(seed=1), site)
    other = load_model(tiny_model("gpt2", tmp_path / "other", seed=1), device="cpu")
    return lambda folder, site: make_cache(folder, other, make_order(), site)


def test_arrays_of_different_models_or_orders_do_not_pair(cache, cached_otherwise):
    cached_otherwise(cache, "resid_pre")
    x, y = open_activations(cache, "mlp_in", 1), open_activations(cache, "resid_pre", 1)
    with pytest.raises(ValueError, match="cached under different models or row orders; delete"):
        read_pairs(x, y, 64, 1)


def test_a_stored_mlp_out_of_another_model_or_order_is_refused(cache, cached_otherwise, model):
    cached_otherwise(cache, "mlp_out")
    with pytest.raises(ValueError, match=r"mlp_out/layer1.*delete what activations.sites does not list"):
        open_activations(cache, "mlp_out", 1, model)
    shutil.rmtree(cache / "mlp_out")
    open_activations(cache, "mlp_out", 1, model)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_detected_and_the_message_names_the_file(seed, cache):
    random = np.random.default_rng(seed)
    layer = layer_group(cache / "mlp_in", 2)
    file = layer / "values" / "c" / "1" / "0"
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(content)
    x = open_activations(cache, "mlp_in", 2)
    with pytest.raises(ValueError, match=re.escape(f"{file}: damaged") + ".*" + re.escape(f"delete {layer}")):
        # all but the last rows, as training reads them
        list(x.batches(300, steps=x.rows // 300))


def test_a_truncated_shard_is_detected_and_named(cache):
    file = layer_group(cache / "mlp_in", 0) / "values" / "c" / "0" / "0"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=re.escape(f"{file}: damaged")):
        list(open_activations(cache, "mlp_in", 0).batches(100, 1))


def test_a_missing_shard_is_detected_and_named(cache):
    file = layer_group(cache / "mlp_in", 0) / "values" / "c" / "2" / "0"
    file.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{file}: missing; delete")):
        open_activations(cache, "mlp_in", 0)


def test_a_site_that_is_not_cached_is_named_with_the_remedy(cached):
    with pytest.raises(ValueError, match=r"add resid_mid to activations.sites"):
        open_activations(cached, "resid_mid", 0)
    with pytest.raises(ValueError, match=r"add mlp_out to activations.sites, or give the model"):
        open_activations(cached, "mlp_out", 0)


def test_reading_can_stop_early(cached):
    import threading

    before = threading.active_count()
    batches = open_activations(cached, "mlp_in", 0).batches(100, steps=1000)
    next(batches)
    batches.close()
    assert threading.active_count() <= before
