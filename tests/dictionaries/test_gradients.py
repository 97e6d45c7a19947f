"""The loss and gradients of the sparse training step equal those of the dense formula."""

import pytest
import torch

from circuitloom.config import Run
from circuitloom.dictionaries.training.objective import compute_loss, select_entries
from circuitloom.dictionaries.training.parameters import Parameters

TOKENS, D_IN, D_OUT, WIDTH = 64, 12, 10, 200
DEAD = torch.arange(0, WIDTH, 5)
CASES = {
    "relu": {"act": "relu"},
    "topk": {"act": "topk", "k": 7},
    "batchtopk": {"act": "batchtopk", "k": 7},
    "jumprelu": {"act": "jumprelu", "bandwidth": 0.4},
    "jumprelu-tanh": {"act": "jumprelu", "penalty": "tanh", "bandwidth": 0.4},
    "skip": {"act": "topk", "k": 7, "skip": True},
    "paper": {"act": "relu", "loss": "paper"},
}


def parameters(run: Run, seed: int = 0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    p = Parameters(
        W_enc=draw(WIDTH, D_IN) / D_IN**0.5,
        # few features fire, so that sparse products are used
        b_enc=draw(WIDTH) * 0.1 - (2.2 if run.loss == "standard" else 3.5),
        W_dec=draw(WIDTH, D_OUT),
        b_dec=draw(D_OUT),
        threshold=draw(WIDTH).abs() * 0.2 if run.act == "jumprelu" else None,
        W_skip=draw(D_OUT, D_IN) if run.skip else None,
        b_in=draw(D_IN) if run.loss == "paper" else None,
    )
    if run.act in ("topk", "batchtopk"):
        p.b_enc = p.b_enc + 2.2
    for name, value in p.named():
        setattr(p, name, value.requires_grad_(True))
    return p


@pytest.mark.parametrize("name", CASES)
def test_sparse_gradients_equal_the_dense_formula(name: str) -> None:
    run = Run(width=WIDTH, sparsity=0.1, precision="float32", **CASES[name])
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(TOKENS, d, generator=generator) for d in (D_IN, D_OUT))
    results = []
    for dense in (False, True):
        p = parameters(run)
        assert dense or select_entries(p, run, x) is not None, "the sparse path was not used"
        terms = compute_loss(p, run, x, y, variance=11.0, sparsity_weight=0.1, dead=DEAD, dense=dense)
        terms.loss.backward()
        results.append((terms, dict(p.named())))
    (sparse, p_sparse), (dense, p_dense) = results
    assert sparse.loss.item() == pytest.approx(dense.loss.item(), rel=1e-5)
    assert float(sparse.l0) > 0
    assert torch.equal(sparse.fired, dense.fired)
    for key, value in p_dense.items():
        if value.grad is None:
            assert p_sparse[key].grad is None
            continue
        error = (p_sparse[key].grad - value.grad).abs().max() / value.grad.abs().max().clamp_min(1e-9)
        assert error < 1e-5, key


@pytest.mark.parametrize("dead", [DEAD, DEAD[: D_IN // 2], DEAD[:1]], ids=["some chosen", "all fit", "one"])
def test_auxk_is_the_error_of_dead_features_reconstructing_the_residual(dead: torch.Tensor) -> None:
    run = Run(width=WIDTH, act="topk", k=7, precision="float32")
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(TOKENS, d, generator=generator) for d in (D_IN, D_OUT))
    p = parameters(run)
    terms = compute_loss(p, run, x, y, 11.0, 0.0, dead)
    with torch.no_grad():
        pre = x @ p.W_enc.T + p.b_enc
        scores = pre * p.W_dec.norm(dim=1)
        z = torch.zeros_like(pre).scatter(1, scores.topk(7, dim=1).indices, 1.0) * pre.relu()
        error = y - z @ p.W_dec - p.b_dec
        k_aux = min(D_IN // 2, len(dead))
        best = scores[:, dead].topk(k_aux, dim=1).indices
        z_dead = torch.zeros(TOKENS, len(dead)).scatter(1, best, 1.0) * pre[:, dead].relu()
        residual_hat = z_dead @ p.W_dec[dead]
        expected = (error - residual_hat).pow(2).sum() / (error - error.mean(0)).pow(2).sum() / 32
    assert float(terms.auxiliary) == pytest.approx(float(expected), rel=1e-5)
    none = compute_loss(p, run, x, y, 11.0, 0.0, DEAD[:0])
    assert float(none.auxiliary) == 0


def test_the_squared_error_and_its_gradient_equal_those_of_the_formula() -> None:
    from circuitloom.dictionaries.training.objective import SquaredError

    generator = torch.Generator().manual_seed(4)
    y, weight = torch.randn(TOKENS, D_OUT, generator=generator), torch.rand(TOKENS, generator=generator)
    y_hat = torch.randn(TOKENS, D_OUT, generator=generator).requires_grad_(True)
    expected = (y - y_hat).square().sum(1)
    gradient = torch.autograd.grad((weight * expected).sum(), y_hat)[0]
    squared, residual = SquaredError.apply(y, y_hat)
    assert torch.equal(squared, expected)
    assert torch.equal(residual, y - y_hat)
    assert torch.equal(torch.autograd.grad((weight * squared).sum(), y_hat)[0], gradient)


def test_jumprelu_has_the_gradients_of_the_rectangle_kernel() -> None:
    from circuitloom.dictionaries.training.objective import JumpReLU, StepFunction

    pre = torch.tensor([0.95, 1.05, 1.3], requires_grad=True)
    threshold = torch.full((3,), 1.0, requires_grad=True)
    JumpReLU.apply(pre, threshold, 0.2).sum().backward()
    assert torch.equal(pre.grad, torch.tensor([0.0, 1.0, 1.0]))
    # -threshold / bandwidth within half a bandwidth of the threshold
    assert torch.allclose(threshold.grad, torch.tensor([-5.0, -5.0, 0.0]))
    pre.grad = threshold.grad = None
    steps = StepFunction.apply(pre, threshold, 0.2)
    assert steps.tolist() == [0.0, 1.0, 1.0]
    (steps * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert pre.grad is None
    assert torch.allclose(threshold.grad, torch.tensor([-5.0, -10.0, 0.0]))


def test_batchtopk_keeps_the_largest_of_the_batch_even_if_one_token_has_most_of_them() -> None:
    run = Run(width=WIDTH, act="batchtopk", k=2, precision="float32")
    p = parameters(run)
    x = torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(3)) * 0.05
    x[0] *= 200
    with torch.no_grad():
        pattern = select_entries(p, run, x).pattern
        scores = (x @ p.W_enc.T + p.b_enc) * p.decoder_norm
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[pattern.token, pattern.feature.long()] = True
    expected = scores >= scores.flatten().topk(2 * TOKENS).values[-1].clamp_min(1e-30)
    assert torch.equal(kept, expected)
    assert kept[0].sum() > 4 * run.k


def test_choosing_in_bfloat16_keeps_the_features_that_float32_keeps() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(512, 64, generator=generator)
    p = Parameters(
        W_enc=torch.randn(2048, 64, generator=generator) / 8,
        b_enc=torch.zeros(2048),
        W_dec=torch.randn(2048, 64, generator=generator) / 8,
        b_dec=torch.zeros(64),
    )
    chosen = []
    for precision in ("float32", "bfloat16"):
        pattern = select_entries(p, Run(width=2048, k=32, precision=precision), x).pattern
        mask = torch.zeros(512, 2048, dtype=torch.bool)
        mask[pattern.token, pattern.feature.long()] = True
        chosen.append(mask)
    assert (chosen[0] & chosen[1]).sum() / chosen[0].sum() > 0.9995
