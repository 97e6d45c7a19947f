"""Tests run with checks of types and shapes."""

import pytest
import torch
from jaxtyping import TypeCheckError

from circuitloom.attribution.graph import shares, threshold


def test_shapes_of_arguments_must_agree_with_each_other() -> None:
    assert shares(torch.ones(2, 3), torch.ones(3, dtype=torch.bool)).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="parameters"):
        shares(torch.ones(2, 3), torch.ones(4, dtype=torch.bool))


def test_types_of_arguments_are_checked_and_an_int_is_a_float() -> None:
    assert threshold(torch.ones(2), 1) == 1.0
    with pytest.raises(TypeCheckError, match="share"):
        threshold(torch.ones(2), "all")
