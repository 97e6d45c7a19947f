import pytest
import torch

from circuitloom.activations.number_format import pack, unpack

X = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 500)[:, None]


@pytest.mark.parametrize(("number_format", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_floats_are_rounded_to_the_nearest_value(number_format, relative):
    error = (unpack(pack(X, number_format)) - X).abs()
    # below 2**-14, float16 has a fixed step of 2**-24
    assert (error <= relative * X.abs() + 2**-25).all()


def test_int8_is_off_by_at_most_half_a_step_of_its_row():
    error = (unpack(pack(X, "int8")) - X).abs()
    step = X.abs().amax(1, keepdim=True) / 127
    assert (error <= step * 0.5001).all()


@pytest.mark.parametrize("number_format", ["float16", "bfloat16", "int8"])
def test_zeros_stay_zeros(number_format):
    assert (unpack(pack(torch.zeros(3, 8), number_format)) == 0).all()


@pytest.mark.parametrize("number_format", ["float16", "bfloat16"])
def test_packed_values_are_a_copy(number_format):
    x = X.to(getattr(torch, number_format))
    packed, before = pack(x, number_format), x.float()
    x.zero_()
    assert torch.equal(unpack(packed), before)
