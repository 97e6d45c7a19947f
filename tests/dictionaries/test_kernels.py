"""The Triton kernels equal dense formulas, on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch

from circuitloom.activations.statistics import Moments
from circuitloom.config import Run
from circuitloom.dictionaries.kernels import fixed_k
from circuitloom.dictionaries.training import trainer as trainer_module
from circuitloom.dictionaries.training.cross_layer_objective import compute_cross_layer_loss
from circuitloom.dictionaries.training.objective import (
    LossTerms,
    activate_selected,
    compute_loss,
    select_entries,
)
from circuitloom.dictionaries.training.parameters import Parameters
from circuitloom.dictionaries.training.trainer import Trainer

pytest.importorskip("triton", reason="pip install triton, to run the kernels in its interpreter")
from circuitloom.dictionaries.kernels.products import EntriesByFeature, sample, times, transposed_times
from circuitloom.dictionaries.kernels.search import choose_top_k, find_candidates

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative error in norm; bfloat16 has 8 significant bits."""


TOKENS, WIDTH = (96, 500) if DEVICE == "cuda" else (32, 100)
"""The interpreter takes milliseconds per token and feature."""


@pytest.fixture(autouse=True)
def kernels(monkeypatch) -> None:
    monkeypatch.setattr(fixed_k, "uses_kernels", lambda run, x: run.act == "topk")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def scores_of(case: str, width: int) -> torch.Tensor:
    scores = draw(3, width)
    if case == "few levels":
        return (scores * 2).round()
    if case == "all equal":
        return torch.zeros_like(scores)
    if case == "all negative":
        return -scores.abs() - 1
    if case == "one group":
        scores[:, 7::1024] += 9
    return scores


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [40, 1024, 5000, 70_000])
@pytest.mark.parametrize("case", ["random", "few levels", "all equal", "all negative", "one group"])
def test_candidates_hold_the_largest_scores(case: str, width: int, dtype: torch.dtype) -> None:
    scores = scores_of(case, width).to(dtype)
    candidates, counts = find_candidates(scores, 20)
    for row, places, count in zip(scores, candidates, counts, strict=True):
        found = places[:count].long()
        assert count >= 20 and len(found.unique()) == count
        assert torch.equal(row[found].sort(descending=True).values[:20], row.topk(20).values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_scores_decide_and_ties_go_to_the_lowest_features(dtype: torch.dtype) -> None:
    tokens, width, d, k = 6, 300, 50, 9
    x, weight, bias = draw(tokens, d).to(dtype), draw(width, d, seed=1).to(dtype), draw(width, seed=2)
    weight[200:], bias[200:] = weight[:100], bias[:100]
    norm = draw(width, seed=3).abs()
    score = x.float() @ weight.float().T + bias
    candidates, counts = find_candidates(score, 20)
    feature, pre = choose_top_k(x, weight, bias, norm, candidates, counts, k)
    # a stable sort leaves equal scores in the order of the features
    exact = torch.einsum("td,fd->tf", x.double(), weight.double()) + bias.double()
    expected = exact.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values
    assert torch.equal(feature.long(), expected)
    assert error(pre, (exact / norm.double()).gather(1, expected)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "k", "width"), [(12, 7, 90), (128, 32, 150), (300, 33, 120), (1100, 3, 20)])
def test_products_equal_dense_ones(d: int, k: int, width: int, dtype: torch.dtype) -> None:
    tokens = 5
    features = torch.stack([draw(width, seed=t).argsort()[:k].sort().values for t in range(tokens)]).int()
    values, left, right = draw(tokens, k), draw(tokens, d).to(dtype), draw(width, d, seed=1).to(dtype)
    z = torch.zeros(tokens, width, dtype=torch.float64, device=DEVICE).scatter(
        1, features.long(), values.double()
    )
    assert error(times(values, features, right), z @ right.double()) < 1e-5
    product = left.double() @ right.double().T
    assert error(sample(left, right, features), product.gather(1, features.long())) < 1e-5
    pattern = fixed_k.FixedKEntries(features.flatten(), k, width, dtype)
    transposed, sums = transposed_times(values, pattern._by_feature, left)
    assert error(transposed, z.T @ left.double()) < 1e-5
    assert error(sums, z.sum(0)) < 1e-5
    never = z.abs().sum(0) == 0
    assert never.any()
    assert torch.count_nonzero(transposed[never]) == 0


def test_features_active_on_all_tokens_are_summed_in_segments() -> None:
    tokens, width, d, k = 700, 6, 20, 2
    features = torch.stack([torch.full((tokens,), 2), torch.full((tokens,), 4)], 1).int().to(DEVICE)
    features[300:, 1] = 5
    values, dense = draw(tokens, k), draw(tokens, d)
    z = torch.zeros(tokens, width, device=DEVICE).scatter(1, features.long(), values)
    product, sums = transposed_times(values, EntriesByFeature.sort(features.flatten(), width), dense)
    assert error(product, z.double().T @ dense.double()) < 1e-5
    assert error(sums, z.double().sum(0)) < 1e-5


def parameters(width: int = WIDTH, d_in: int = 20, d_out: int = 36, bias: float = 0.0) -> Parameters:
    p = Parameters(
        W_enc=draw(width, d_in) / d_in**0.5,
        b_enc=draw(width, seed=1) * 0.1 + bias,
        W_dec=draw(width, d_out, seed=2),
        b_dec=draw(d_out, seed=3),
        W_skip=draw(d_out, d_in, seed=4) / d_in,
    )
    for name, value in p.named():
        setattr(p, name, value.requires_grad_(True))
    return p


def terms_of(p: Parameters, run: Run, dense: bool) -> tuple[LossTerms, dict[str, torch.Tensor]]:
    x, y = draw(TOKENS, p.W_enc.shape[1], seed=5), draw(TOKENS, p.W_dec.shape[1], seed=6)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    terms = compute_loss(p, run, x, y, 11.0, 0.0, none, dense=dense)
    terms.loss.backward()
    return terms, {name: value.grad for name, value in p.named() if value.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [0.0, -3.0])
def test_loss_and_gradients_equal_the_dense_formulas(bias: float, precision: str) -> None:
    # under a bias of -3 fewer than k features are positive
    run = Run(width=WIDTH, k=7, precision=precision)
    terms, gradients = terms_of(parameters(bias=bias), run, dense=False)
    expected, dense = terms_of(parameters(bias=bias), run, dense=True)
    assert float(expected.l0) < 7 if bias else float(expected.l0) == 7
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[precision]
    for name in ("loss", "fvu", "l0"):
        value, reference = (getattr(each, name).item() for each in (terms, expected))
        assert value == pytest.approx(reference, rel=tolerance), name
    # bfloat16 changes a few choices near the k-th score
    assert (terms.fired != expected.fired).float().mean() < tolerance
    assert gradients.keys() == dense.keys()
    for name, gradient in gradients.items():
        assert error(gradient, dense[name]) < 5 * tolerance, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loss_and_gradients_of_a_cross_layer_transcoder_equal_the_dense_formulas(precision: str) -> None:
    d, run = 12, Run(kind="clt", width=WIDTH, k=7, precision=precision)
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[precision]
    xs, ys = ([draw(TOKENS, d, seed=seed + i) for i in range(2)] for seed in (5, 7))
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    results = []
    for dense in (False, True):
        layers = [parameters(d_in=d, d_out=count * d) for count in (2, 1)]
        for p in layers:
            p.b_dec, p.W_skip = draw(d, seed=3).requires_grad_(True), None
        terms = compute_cross_layer_loss(layers, run, xs, ys, (11.0, 12.0), 0.0, [none, none], dense)
        sum(each.loss for each in terms).backward()
        results.append((terms, [{name: value.grad for name, value in p.named()} for p in layers]))
    (terms, gradients), (expected, dense_gradients) = results
    for i in range(2):
        assert terms[i].fvu.item() == pytest.approx(expected[i].fvu.item(), rel=tolerance)
        assert gradients[i].keys() == dense_gradients[i].keys() == {"W_enc", "b_enc", "W_dec", "b_dec"}
        for name, gradient in gradients[i].items():
            assert error(gradient, dense_gradients[i][name]) < 5 * tolerance, (i, name)


def test_gradients_in_bfloat16_are_those_of_the_same_choice_in_float32() -> None:
    run = Run(width=WIDTH, k=7, precision="bfloat16")
    p, x, weights = parameters(), draw(TOKENS, 20, seed=5), draw(TOKENS, 36, seed=6)
    z_sparse = activate_selected(p, run, select_entries(p, run, x))
    (z_sparse.decode(p.W_dec) * weights).sum().backward()
    got = {name: value.grad.clone() for name, value in p.named() if value.grad is not None}
    exact = parameters()
    features = z_sparse.pattern.feature.view(TOKENS, 7).long()
    chosen = torch.zeros(TOKENS, WIDTH, device=DEVICE).scatter(1, features, 1)
    z = (x @ exact.W_enc.T + exact.b_enc).relu() * chosen
    (z @ exact.W_dec * weights).sum().backward()
    assert set(got) == {"W_enc", "b_enc", "W_dec"}
    for name, gradient in got.items():
        assert error(gradient, getattr(exact, name).grad) < TOLERANCE[torch.bfloat16], name


def train(device: str, run: Run) -> tuple[list[float], Parameters]:
    steps = run.tokens // run.batch
    # a different token for each feature to start from: of tied features the CPU keeps all
    x = draw(run.batch + run.width, 24).to(device)
    mean, square = x.mean(0).cpu(), float(x.square().sum(1).mean())
    stored = Moments(mean, (square / 24) ** 0.5, square - float(mean.square().sum()))
    trainer = Trainer(run, 0, stored, stored, (x, x))
    fvu = []
    for i in range(steps):
        fvu.append(float(trainer.step(i, x[: run.batch], x[: run.batch]).fvu))
    return fvu, trainer.parameters


def test_training_has_the_loss_curve_of_the_cpu(monkeypatch) -> None:
    keys = {"width": WIDTH, "k": 5, "batch": TOKENS, "tokens": 3 * TOKENS, "learning_rate": 1e-2, "warmup": 0}
    run = Run(kind="sae", precision="float32", **keys)
    fvu, _ = train(DEVICE, run)
    monkeypatch.setattr(fixed_k, "uses_kernels", lambda run, x: False)
    expected, _ = train("cpu", run)
    assert expected[-1] < 0.95 * expected[0]
    assert fvu == pytest.approx(expected, rel=1e-3)


def test_training_again_gives_the_same_bits() -> None:
    run = Run(kind="sae", width=WIDTH, k=5, batch=TOKENS, tokens=2 * TOKENS, precision="bfloat16")
    (_, first), (_, second) = train(DEVICE, run), train(DEVICE, run)
    for (name, a), (_, b) in zip(first.named(), second.named(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_cuda_graph_steps_equal_eager_ones(monkeypatch) -> None:
    keys = {"width": 5000, "k": 32, "batch": 256, "tokens": 6 * 256, "learning_rate": 1e-2}
    run = Run(kind="sae", precision="bfloat16", **keys)
    fvu, captured = train("cuda", run)
    monkeypatch.setattr(trainer_module, "uses_kernels", lambda run, x: False)
    expected, eager = train("cuda", run)
    assert fvu == expected
    for (name, a), (_, b) in zip(captured.named(), eager.named(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_diverging_step_on_a_gpu_does_not_change_the_parameters() -> None:
    run = Run(kind="sae", width=500, k=8, batch=64, tokens=64 * 4, precision="bfloat16")
    x = draw(64, 24).relu()
    square = float(x.square().sum(1).mean())
    stored = Moments(x.mean(0).cpu(), (square / 24) ** 0.5, square - float(x.mean(0).square().sum()))
    trainer = Trainer(run, 0, stored, stored, (x, x))
    trainer.step(0, x, x)
    before = {name: value.detach().clone() for name, value in trainer.parameters.named()}
    with pytest.raises(ArithmeticError, match="the loss is nan at step 1"):
        trainer.step(1, x * torch.nan, x)
    for name, value in trainer.parameters.named():
        assert torch.equal(value, before[name]), name
