"""Norms of cached activations: a few massive tokens are found, named and reported."""

import json

import numpy as np
import pytest
import torch
import zarr
from tests.activations.inputs import make_cache, make_order, make_tokens
from tests.activations.test_cache import all_rows
from tests.models import CONTEXT, LAYERS, VOCABULARY

from circuitloom.activations.norms import norm_rows, warning
from circuitloom.activations.row_order import row_order, write_row_origins
from circuitloom.activations.statistics import NormStatistics, norm_statistics
from circuitloom.activations.store import open_activations
from circuitloom.core.layout import layer_group
from circuitloom.core.tables import ACTIVATION_NORM, read_table, write_table
from circuitloom.core.zarr_groups import consolidate
from circuitloom.language_model.model import load_model

MASSIVE = 63
"""A token whose embedding is made large."""
STRINGS = [f"w{number}" for number in range(VOCABULARY)]


def test_statistics_of_four_norms_equal_those_computed_by_hand():
    statistics = norm_statistics(np.array([3, 400, 4, 5], np.float32))
    assert statistics == NormStatistics(
        median=4.5, largest=400, largest_row=1, top_share=160_000 / 160_050, n_over={10: 1, 100: 0}
    )
    assert statistics.largest_over_median == pytest.approx(400 / 4.5)
    assert NormStatistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics


def test_the_top_share_is_that_of_one_row_in_a_thousand():
    norms = np.ones(3000, np.float32)
    norms[[7, 2000, 2999]] = 10
    assert norm_statistics(norms).top_share == pytest.approx(300 / (2997 + 300))
    assert norm_statistics(np.ones(999, np.float32)).top_share == pytest.approx(1 / 999)


@pytest.mark.parametrize("norms", [[0.0, 0.0], [2.0]])
def test_norms_of_zero_and_of_one_row_have_finite_statistics(norms):
    statistics = norm_statistics(np.array(norms, np.float32))
    assert statistics.top_share == (1 if norms[0] else 0)
    assert statistics.n_over == {10: 0, 100: 0}


@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
def test_norms_are_those_of_the_stored_or_recomputed_rows(site, model, cached):
    store = open_activations(cached, site, 1, model)
    expected = norm_statistics(torch.linalg.vector_norm(all_rows(cached, site, 1, model), dim=1).numpy())
    assert store.norms.median == pytest.approx(expected.median, rel=1e-3)
    assert store.norms.largest == pytest.approx(expected.largest, rel=1e-3)
    assert store.norms.largest_row == expected.largest_row
    assert store.norms.top_share == pytest.approx(expected.top_share, rel=1e-2)


@pytest.fixture(scope="module")
def massive(model_folder, tmp_path_factory):
    """Residual streams in which one token of sequence 5 has a norm far above the others', and the training tokens."""
    folder = tmp_path_factory.mktemp("massive")
    model = load_model(model_folder, device="cpu")
    tokens = make_tokens(70)
    token = np.asarray(tokens.token[:])
    token[token == MASSIVE] = MASSIVE - 1
    token[5, 9] = MASSIVE
    tokens.token[:] = token
    model.module.transformer.wte.weight.data[MASSIVE] *= 500
    order = row_order(tokens, 0, 1024)
    make_cache(folder, model, order, "resid_pre", dtype="bfloat16")
    write_row_origins(order, folder / "rows.zarr")
    return folder, tokens


def test_a_massive_token_is_named_with_its_place(massive, tmp_path):
    folder, tokens = massive
    rows = norm_rows(folder, ["resid_pre"], [0, 2], tokens, STRINGS)
    write_table(ACTIVATION_NORM, rows, tmp_path / "activation_norm.parquet")
    first, last = read_table(tmp_path / "activation_norm.parquet").to_pylist()
    assert (first["layer"], last["layer"]) == (0, 2)
    assert (first["sequence"], first["position"], first["token"]) == (5, 9, "w63")
    assert first["largest_over_median"] > 100
    assert first["top_share"] > 0.9
    assert (first["n_over_10"], first["n_over_100"]) == (1, 1)
    assert first["n_tokens"] == open_activations(folder, "resid_pre", 0).rows


def test_only_large_norms_are_warned_of(massive, cached, model):
    folder, tokens = massive
    rows = norm_rows(folder, ["resid_pre"], range(LAYERS), tokens, STRINGS)
    line = warning(rows, 20)
    assert line is not None and "\n" not in line
    assert line.startswith(
        f"massive activations at 3 of 3 sites and layers: at resid_pre of layer {rows[0]['layer']}"
    )
    assert "'w63' (sequence 5, position 9)" in line
    assert "set activations.outliers.action" in line
    assert warning(rows, 1e9) is None


def test_a_cache_of_mlp_in_also_has_rows_of_mlp_out(model, tmp_path):
    order, tokens = make_order(40), make_tokens(40)
    make_cache(tmp_path, model, order)
    write_row_origins(order, tmp_path / "rows.zarr")
    rows = norm_rows(tmp_path, ["mlp_in"], [0, 1], tokens, STRINGS)
    assert [(row["site"], row["layer"]) for row in rows] == [
        ("mlp_in", 0), ("mlp_out", 0), ("mlp_in", 1), ("mlp_out", 1),
    ]  # fmt: skip
    make_cache(tmp_path, model, order, "mlp_out")
    both = norm_rows(tmp_path, ["mlp_in", "mlp_out"], [0], tokens, STRINGS)
    assert [row["site"] for row in both] == ["mlp_in", "mlp_out"]
    # measured in the same pass over the same tokens
    assert both[1] == rows[1]
    assert all(0 < row["position"] < CONTEXT for row in rows)


def test_a_cache_without_norms_is_refused_with_a_remedy(cache):
    group = zarr.open_group(layer_group(cache / "mlp_in", 0), mode="r+", use_consolidated=False)
    attributes = dict(group.attrs)
    del attributes["norms"]
    group.attrs.put(attributes)
    consolidate(layer_group(cache / "mlp_in", 0))
    with pytest.raises(ValueError, match="cached by an older version; delete it and run again"):
        open_activations(cache, "mlp_in", 0)
