"""The search finds what sorting everything finds, whatever the block's shape and number format."""

import numpy as np
import pytest
import torch

from circuitloom.config import Run
from circuitloom.dictionaries.training import selection
from circuitloom.dictionaries.training.parameters import Parameters
from circuitloom.dictionaries.training.selection import largest_of_block, largest_of_rows, reaching, select

SHAPES = {
    "groups of 16": (13, 2048, 8),
    "groups of 4": (5, 1028, 60),
    "no groups": (7, 199, 40),
    "all": (3, 32, 32),
}
FORMATS = [torch.float32, torch.bfloat16]


def scores_of(case: str, tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    scores = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    if case == "ties":
        return (scores * 2).round() / 2
    if case == "few positive":
        return scores - 2.5
    if case == "none positive":
        return -scores.abs() - 0.1
    if case == "a row of zeros":
        scores[1] = 0
    return scores


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["random", "ties", "few positive", "none positive", "a row of zeros"])
def test_the_largest_of_each_row_are_found(case: str, shape: str, dtype: torch.dtype) -> None:
    tokens, width, k = SHAPES[shape]
    scores = scores_of(case, tokens, width, dtype)
    places = largest_of_rows(scores, k)
    assert torch.equal(places, places.unique())
    found = torch.zeros(tokens * width, dtype=torch.bool)
    found[places] = True
    found = found.view(tokens, width)
    kth = scores.float().sort(dim=1, descending=True).values[:, k - 1 : k]
    assert found[(scores >= kth) & (scores > 0)].all()
    assert not found[scores <= 0].any()
    if case == "random":
        # the bound is close: the search is no pass over everything
        assert found.sum() <= 2 * k * tokens


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["random", "ties", "few positive", "none positive", "a row of zeros"])
def test_the_largest_of_a_block_are_all_that_reach_the_bound(
    case: str, shape: str, dtype: torch.dtype
) -> None:
    tokens, width, k = SHAPES[shape]
    scores = scores_of(case, tokens, width, dtype)
    places, bound = largest_of_block(scores, k * tokens)
    assert bound > 0
    assert places.tolist() == np.flatnonzero((scores.float() >= bound).numpy()).tolist()
    positive = int((scores > 0).sum())
    assert len(places) >= min(k * tokens, positive)


def test_places_that_reach_a_floor_of_each_feature() -> None:
    scores = torch.tensor([[0.5, 1.5, 0.0], [0.6, 0.9, 0.1]])
    assert reaching(scores, torch.tensor([0.5, 1.0, 0.0])).tolist() == [1, 3, 5]


@pytest.mark.parametrize("act", ["topk", "batchtopk", "relu", "jumprelu"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blocks_of_any_size_select_the_same(act: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    width, tokens = 512, 64
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 16, generator=generator)
    by_rank = act in ("topk", "batchtopk")
    if by_rank:
        # one token has most of the batch's largest
        x[5] *= 30
    p = Parameters(
        W_enc=torch.randn(width, 16, generator=generator) / 4,
        b_enc=torch.zeros(width) - (0 if by_rank else 2.5),
        W_dec=torch.randn(width, 16, generator=generator),
        b_dec=torch.zeros(16),
        threshold=torch.rand(width, generator=generator) if act == "jumprelu" else None,
    )
    run = Run(width=width, act=act, k=6, precision="float32")
    whole = select(p, run, x)
    monkeypatch.setattr(selection, "BLOCK_ENTRIES", rows * width)
    parts = select(p, run, x)
    assert torch.equal(parts.pattern.row_start, whole.pattern.row_start)
    assert torch.equal(parts.pattern.feature, whole.pattern.feature)
    torch.testing.assert_close(parts.pre, whole.pre)
    dense = x @ p.W_enc.T + p.b_enc
    exact = dense[parts.pattern.token, parts.pattern.feature.long()]
    torch.testing.assert_close(parts.pre, exact, rtol=1e-4, atol=1e-5)


def test_too_many_entries_are_left_to_dense_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(8, 4)
    p = Parameters(torch.ones(64, 4), torch.zeros(64), torch.ones(64, 4), torch.zeros(4))
    asked = []
    monkeypatch.setattr(selection, "BLOCK_ENTRIES", 64)
    monkeypatch.setattr(selection, "reaching", lambda *given: asked.append(1) or reaching(*given))
    assert select(p, Run(width=64, act="relu", precision="float32"), x) is None
    assert len(asked) == 1, "the first block says it"
