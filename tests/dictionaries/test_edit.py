"""The three ways to edit features of a site agree, and decoding active features equals decoding all."""

import pytest
import torch
from tests.attribution.inputs import load_tiny, make_dictionaries
from torch import Tensor

from circuitloom.dictionaries.dictionary import Dictionary


@pytest.fixture(params=["sae", "transcoder", "skip transcoder"])
def dictionary(request, tmp_path) -> Dictionary:
    model = load_tiny("gpt2", tmp_path)
    if request.param == "sae":
        return make_dictionaries(model, site_in="mlp_out", site_out="mlp_out")[1]
    return make_dictionaries(model, request.param)[1]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.randn(7, 16, generator=torch.Generator().manual_seed(1))


def test_a_dictionary_is_an_sae_or_a_transcoder_and_reads_accordingly(dictionary, x, y):
    assert dictionary.is_sae != dictionary.is_transcoder
    assert torch.equal(dictionary.encoder_input(x, y), y if dictionary.is_sae else x)


@pytest.mark.parametrize("keep_error", [True, False])
def test_ablating_active_features_equals_the_dense_edit(dictionary, x, y, keep_error):
    mask = torch.rand(dictionary.width, generator=torch.Generator().manual_seed(2)) < 0.5
    dense = dictionary.edit(x, y, lambda z: z.masked_fill(mask, 0.0), keep_error)
    sparse = dictionary.ablate(x, y, lambda _token, feature: mask[feature], keep_error)
    torch.testing.assert_close(sparse, dense)


def test_subtracting_one_feature_equals_the_dense_edit(dictionary, x, y):
    z = dictionary.encode(dictionary.encoder_input(x, y))
    feature = int(z.sum(0).argmax())
    mask = torch.arange(dictionary.width) == feature
    dense = dictionary.edit(x, y, lambda z: z.masked_fill(mask, 0.0))
    torch.testing.assert_close(dictionary.subtract_feature(y, feature, z[:, feature]), dense)


def test_an_edit_without_change_keeps_the_value_or_gives_the_reconstruction(dictionary, x, y):
    read = dictionary.encoder_input(x, y)
    assert torch.equal(dictionary.edit(x, y, lambda z: z), y)
    assert torch.equal(dictionary.edit(x, y, lambda z: z, keep_error=False), dictionary(read))
    torch.testing.assert_close(
        dictionary.decode_sparse(*dictionary.encode_sparse(read), read), dictionary(read)
    )
