"""The tokens with the strongest products are those that a full sort finds, ties included."""

import numpy as np
import pytest
import torch

from circuitloom.language_model import strongest_tokens as module
from circuitloom.language_model.strongest_tokens import strongest_tokens


def draw(vectors: int, tokens: int, d: int = 8, largest: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Small integers, whose products are exact in any order of sums and have many ties."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randint(-largest, largest + 1, (n, d), generator=generator).float() for n in (vectors, tokens)
    )  # type: ignore[return-value]


def assert_sorted(found, vectors, rows, n) -> None:
    products = vectors @ rows.T
    for side, descending in enumerate((True, False)):
        expected = products.sort(dim=1, descending=descending, stable=True)
        assert np.array_equal(found.token[:, side], expected.indices[:, :n])
        assert np.array_equal(found.product[:, side], expected.values[:, :n])


@pytest.mark.parametrize("elements", [1, 640, 2**20])
@pytest.mark.parametrize(("tokens", "n"), [(1, 3), (31, 10), (32, 10), (333, 10), (1000, 40), (1031, 1)])
def test_they_equal_a_full_sort_in_any_blocks(tokens, n, elements, monkeypatch):
    monkeypatch.setattr(module, "CACHE_ELEMENTS", elements)
    monkeypatch.setattr(module, "VECTORS", 7)
    vectors, rows = draw(20, tokens)
    found = strongest_tokens(vectors, rows, n)
    assert found.token.shape == (20, 2, min(n, tokens))
    assert_sorted(found, vectors, rows, n)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_they_do_not_depend_on_the_order_of_tokens(order, monkeypatch):
    # in these orders, every block exceeds the threshold, or every product ties with it
    monkeypatch.setattr(module, "CACHE_ELEMENTS", 64)
    vectors, rows = draw(3, 500)
    rows = rows[(rows @ vectors[0]).argsort(descending=order == "descending")]
    vectors = torch.zeros_like(vectors) if order == "equal" else vectors
    found = strongest_tokens(vectors, rows, 5)
    assert_sorted(found, vectors, rows, 5)


def test_products_that_round_are_those_of_a_full_sort():
    generator = torch.Generator().manual_seed(0)
    vectors, rows = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (9, 3000))
    assert_sorted(strongest_tokens(vectors, rows, 4), vectors, rows, 4)


def test_progress_counts_every_vector_once(monkeypatch):
    monkeypatch.setattr(module, "VECTORS", 4)
    seen: list[int] = []
    strongest_tokens(*draw(10, 50), 2, seen.append)
    assert seen == [4, 4, 2]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_weight_that_is_not_finite_is_refused(value, which):
    values = draw(2, 40)
    values[which][1, 3] = value
    with pytest.raises(ValueError, match="not finite; train or load them again"):
        strongest_tokens(*values, 2)


def test_no_vectors_give_no_tokens():
    vectors, rows = draw(0, 40)
    assert strongest_tokens(vectors, rows, 3).token.shape == (0, 2, 3)
