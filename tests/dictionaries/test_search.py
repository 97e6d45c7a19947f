"""The blockwise search finds what a complete sort finds, for any block shape and dtype."""

import numpy as np
import pytest
import torch

from circuitloom.config import Run
from circuitloom.dictionaries.training import selection
from circuitloom.dictionaries.training.parameters import Parameters
from circuitloom.dictionaries.training.selection import indices_above, select, top_k_per_row, top_n_of_block
from circuitloom.dictionaries.training.sparse import SparsityPattern

SHAPES = {
    "groups of 16": (13, 2048, 8),
    "groups of 4": (5, 1028, 60),
    "no groups": (7, 199, 40),
    "all": (3, 32, 32),
}
DTYPES = [torch.float32, torch.bfloat16]


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["random", "ties", "few positive", "none positive", "a row of zeros"])
def test_the_largest_of_each_row_are_found(case: str, shape: str, dtype: torch.dtype) -> None:
    tokens, width, k = SHAPES[shape]
    scores = scores_of(case, tokens, width, dtype)
    indices = top_k_per_row(scores, k)
    assert torch.equal(indices, indices.unique())
    found = torch.zeros(tokens * width, dtype=torch.bool)
    found[indices] = True
    found = found.view(tokens, width)
    kth = scores.float().sort(dim=1, descending=True).values[:, k - 1 : k]
    assert found[(scores >= kth) & (scores > 0)].all()
    assert not found[scores <= 0].any()
    if case == "random":
        # a tight bound: the search does not visit all entries
        assert found.sum() <= 2 * k * tokens


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["random", "ties", "few positive", "none positive", "a row of zeros"])
def test_the_largest_of_a_block_are_exactly_those_that_reach_the_bound(
    case: str, shape: str, dtype: torch.dtype
) -> None:
    tokens, width, k = SHAPES[shape]
    scores = scores_of(case, tokens, width, dtype)
    indices, bound = top_n_of_block(scores, k * tokens)
    assert bound > 0
    assert indices.tolist() == np.flatnonzero((scores.float() >= bound).numpy()).tolist()
    positive = int((scores > 0).sum())
    assert len(indices) >= min(k * tokens, positive)


def test_scores_above_a_floor_per_feature_are_found() -> None:
    scores = torch.tensor([[0.5, 1.5, 0.0], [0.6, 0.9, 0.1]])
    assert indices_above(scores, torch.tensor([0.5, 1.0, 0.0])).tolist() == [1, 3, 5]


@pytest.mark.parametrize("act", ["topk", "batchtopk", "relu", "jumprelu"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blocks_of_any_size_select_the_same(act: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    width, tokens = 512, 64
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 16, generator=generator)
    by_rank = act in ("topk", "batchtopk")
    if by_rank:
        # one token has most of the largest scores of the batch
        x[5] *= 30
    p = Parameters(
        W_enc=torch.randn(width, 16, generator=generator) / 4,
        b_enc=torch.zeros(width) - (0 if by_rank else 2.5),
        W_dec=torch.randn(width, 16, generator=generator),
        b_dec=torch.zeros(16),
        threshold=torch.rand(width, generator=generator) if act == "jumprelu" else None,
    )
    run = Run(width=width, act=act, k=6, precision="float32")
    one_block = select(p, run, x)
    monkeypatch.setattr(selection, "BLOCK_ENTRIES", rows * width)
    blocks = select(p, run, x)
    assert torch.equal(blocks.pattern.row_start, one_block.pattern.row_start)
    assert torch.equal(blocks.pattern.feature, one_block.pattern.feature)
    torch.testing.assert_close(blocks.pre, one_block.pre)
    dense = x @ p.W_enc.T + p.b_enc
    exact = dense[blocks.pattern.token, blocks.pattern.feature.long()]
    torch.testing.assert_close(blocks.pre, exact, rtol=1e-4, atol=1e-5)


def test_too_many_active_entries_are_computed_by_dense_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(8, 4)
    p = Parameters(torch.ones(64, 4), torch.zeros(64), torch.ones(64, 4), torch.zeros(4))
    calls = []
    monkeypatch.setattr(selection, "BLOCK_ENTRIES", 64)
    monkeypatch.setattr(selection, "indices_above", lambda *args: calls.append(1) or indices_above(*args))
    assert select(p, Run(width=64, act="relu", precision="float32"), x) is None
    assert len(calls) == 1, "one block is enough to decide"


def test_a_pattern_holds_the_given_entries_even_if_tokens_have_none() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    pattern = SparsityPattern.from_flat_indices(mask.flatten().nonzero()[:, 0], 4, 4)
    assert pattern.token.tolist() == [0, 0, 2, 2]
    assert pattern.feature.tolist() == [1, 2, 0, 3]
    kept = pattern.keep(torch.tensor([1, 3]))
    assert kept.row_start.tolist() == [0, 1, 1, 2, 2]
    assert (kept.token.tolist(), kept.feature.tolist()) == ([0, 2], [2, 3])
    dense = torch.arange(8.0).view(4, 2)
    values = torch.tensor([2.0, 10.0])
    assert kept.times(values, dense).tolist() == [[8, 10], [0, 0], [60, 70], [0, 0]]
    assert kept.transposed_times(values, dense).tolist() == [[0, 0], [0, 0], [0, 2], [40, 50]]
    assert kept.sample(dense, dense).tolist() == [5.0, 4 * 6 + 5 * 7]
