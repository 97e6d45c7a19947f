"""Muon follows torch's update rule, in any number format."""

import pytest
import torch

from circuitloom.language_model.muon import Muon, orthogonalize

SHAPES = [(16, 16), (48, 16), (16, 48), (16, 16), (48, 16)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.003), (torch.float32, 0.02)])
def test_the_updates_are_those_of_torch(dtype, tolerance):
    """torch computes in bfloat16."""
    start = [random(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    torch_muon = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    ours = [matrix.clone() for matrix in start]
    muon = Muon(ours, weight_decay=0.1, dtype=dtype)
    for step in range(3):
        gradients = [random(*shape, seed=10 * step + i) for i, shape in enumerate(SHAPES)]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch_muon.step()
        muon.step(gradients, 0.02)
    for ours_after, theirs_after, before in zip(ours, theirs, start, strict=True):
        change = theirs_after.detach() - before
        assert (ours_after - before - change).norm() < tolerance * change.norm()


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8)])
def test_orthogonalizing_keeps_singular_vectors_and_equalizes_singular_values(shape):
    left, _ = torch.linalg.qr(random(shape[0], 8))
    right, _ = torch.linalg.qr(random(shape[1], 8, seed=1))
    values = torch.linspace(1, 100, 8)
    matrices = torch.stack([(left * values) @ right.T, (left * values.flip(0)) @ right.T])
    for result in orthogonalize(matrices, torch.float32):
        inner = left.T @ result @ right
        assert inner.diagonal().min() > 0.65 and inner.diagonal().max() < 1.25
        torch.testing.assert_close(inner - inner.diagonal().diag(), torch.zeros(8, 8), atol=1e-4, rtol=0)


def test_a_gradient_of_zero_changes_nothing_but_the_decay():
    matrix = random(8, 8)
    expected = matrix * (1 - 0.5 * 0.1)
    Muon([matrix], weight_decay=0.1, dtype=torch.float32).step([torch.zeros(8, 8)], 0.5)
    torch.testing.assert_close(matrix, expected)


def test_a_restored_state_continues_with_the_same_updates():
    one, other = [random(8, 8)], [random(8, 8)]
    first, second = (Muon(m, weight_decay=0, dtype=torch.float32) for m in (one, other))
    first.step([random(8, 8, seed=1)], 0.1)
    other[0].copy_(one[0])
    second.load_state_dict(first.state_dict())
    for muon in (first, second):
        muon.step([random(8, 8, seed=2)], 0.1)
    assert torch.equal(one[0], other[0])
