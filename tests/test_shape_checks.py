"""Tests run with checks of types and shapes."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from tests import lazy_checks
from torch import Tensor

from circuitloom.attribution.graph import shares, threshold


def test_shapes_of_arguments_must_agree_with_each_other() -> None:
    assert shares(torch.ones(2, 3), torch.ones(3, dtype=torch.bool)).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="parameters"):
        shares(torch.ones(2, 3), torch.ones(4, dtype=torch.bool))


def test_types_of_arguments_are_checked_and_an_int_is_a_float() -> None:
    assert threshold(torch.ones(2), 1) == 1.0
    with pytest.raises(TypeCheckError, match="share"):
        threshold(torch.ones(2), "all")


def test_nested_functions_share_their_checks_and_keep_their_own_values() -> None:
    checked = lazy_checks._checked(typechecker=lazy_checks.check)

    def times(factor: float):
        @checked
        def product(x: Float[Tensor, " d"], y: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
            # a call of another of these functions meanwhile
            return factor * x * y if factor > 0 else times(-factor)(x, y)

        return product

    two, three, minus = times(2.0), times(3.0), times(-5.0)
    x = torch.ones(4)
    assert len(lazy_checks._stand_ins.keys() & {(two.__wrapped__.__code__, items(two))}) == 1
    for function, factor in ((two, 2), (three, 3), (minus, 5), (two, 2)):
        with pytest.raises(TypeCheckError, match="parameters"):
            function(x, torch.ones(5))
        assert torch.equal(function(x, x), factor * x)


def items(function) -> tuple:
    return tuple(function.__wrapped__.__annotations__.items())
