"""The kernels of pretraining match torch's."""

import pytest
import torch
import torch.nn.functional as F

from circuitloom.language_model import kernels


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_dense_attention_is_causal_softmax_attention():
    query, key, value = (random(3, 2, 10, 8, seed=i) for i in range(3))
    output, _ = kernels.dense_attention(torch.nn.Identity(), query, key, value, None, scaling=8**-0.5)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [7, 2500])
def test_loss_and_gradients_equal_those_of_all_logits(rows, dtype):
    # values that bfloat16 holds exactly, so that only the error of the logits' gradient is rounded
    hidden = random(rows, 16).bfloat16().float().requires_grad_()
    unembedding = (random(50, 16, seed=1) / 4).bfloat16().float().requires_grad_()
    target = torch.randint(50, (rows,), generator=torch.Generator().manual_seed(2))
    loss = kernels.next_token_loss(hidden, unembedding, target, dtype)
    expected = F.cross_entropy(hidden @ unembedding.T, target)
    tolerance = 0.01 if dtype == torch.bfloat16 else 1e-5
    assert abs(loss - expected) < tolerance / 5
    ours = torch.autograd.grad(3 * loss, (hidden, unembedding))
    for gradient, exact in zip(ours, torch.autograd.grad(3 * expected, (hidden, unembedding)), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - exact).norm() < tolerance * exact.norm()


def test_a_large_vocabulary_has_blocks_of_fewer_tokens(monkeypatch):
    hidden, unembedding = random(23, 16).requires_grad_(), random(50, 16, seed=1).requires_grad_()
    target = torch.arange(23)
    whole = kernels.next_token_loss(hidden, unembedding, target, torch.float32)
    gradients = torch.autograd.grad(whole, (hidden, unembedding))
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 4 * 50 + 49)
    multiply, sizes = torch.Tensor.float, []
    monkeypatch.setattr(torch.Tensor, "float", lambda each: sizes.append(each.numel()) or multiply(each))
    loss = kernels.next_token_loss(hidden, unembedding, target, torch.float32)
    assert sizes == [4 * 50] * 5 + [3 * 50]
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, unembedding)), gradients)
