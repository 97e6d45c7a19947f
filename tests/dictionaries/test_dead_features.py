"""Under relu and jumprelu, features start at a stated rate, and the pre-activation loss revives those that are dead."""

import pytest
import torch
from pydantic import ValidationError
from tests.dictionaries.cross_layer_cases import (
    ACTS,
    BATCH,
    LAYERS,
    WIDTH,
    D,
    clt,
    make_data,
    make_trainer,
    reader,
)
from tests.dictionaries.training_cases import moments
from torch import Tensor

from circuitloom.config import Run
from circuitloom.dictionaries.training.cross_layer_objective import compute_cross_layer_loss
from circuitloom.dictionaries.training.cross_layer_trainer import batch_key
from circuitloom.dictionaries.training.objective import compute_loss
from circuitloom.dictionaries.training.parameters import Parameters
from circuitloom.dictionaries.training.trainer import Trainer

DEAD = torch.tensor([1, 4, 5, 30])
VARIANCE = 9.0
NAMES = ("relu", "jumprelu", "tanh")


def make_parameters(run: Run, outputs: int, seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    p = Parameters(
        W_enc=random(WIDTH, D) / D**0.5,
        b_enc=0.3 * random(WIDTH),
        W_dec=random(WIDTH, outputs * D),
        b_dec=random(D),
        threshold=0.3 * random(WIDTH).abs() if run.act == "jumprelu" else None,
    )
    for _, value in p.named():
        value.requires_grad_(True)
    return p


def formula(p: Parameters, x: Tensor, dead: Tensor) -> Tensor:
    """The sum over dead features of the mean over tokens of ReLU(threshold - pre) |W_dec| / sqrt(V)."""
    pre = x @ p.W_enc.T + p.b_enc
    threshold = torch.zeros(WIDTH) if p.threshold is None else p.threshold
    lacking = (threshold - pre).relu() * p.W_dec.norm(dim=1)
    return lacking.mean(0)[dead].sum() / VARIANCE**0.5


def assert_close_gradients(p: Parameters, q: Parameters) -> None:
    for (key, value), (_, other) in zip(p.named(), q.named(), strict=True):
        error = (value.grad - other.grad).norm() / other.grad.norm()
        assert other.grad.norm() > 0 and error < 1e-5, (key, float(error))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_pre_activation_loss_are_those_of_its_formula(name: str) -> None:
    plain = Run(width=WIDTH, precision="float32", **ACTS[name])
    run = plain.model_copy(update={"pre_activation": 0.7})
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(50, D, generator=generator) for _ in range(2))
    p, q = (make_parameters(run, 1, 0) for _ in range(2))
    terms = compute_loss(p, run, x, y, VARIANCE, 0.02, DEAD)
    terms.loss.backward()
    expected = 0.7 * formula(q, x, DEAD)
    assert float(terms.auxiliary) == pytest.approx(float(expected.detach()), rel=1e-5)
    (compute_loss(q, plain, x, y, VARIANCE, 0.02, DEAD).loss + expected).backward()
    assert_close_gradients(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_cross_layer_transcoder_each_layer_revives_its_own_features(name: str) -> None:
    plain = clt(**ACTS[name])
    run = plain.model_copy(update={"pre_activation": 0.7})
    generator = torch.Generator().manual_seed(1)
    xs, ys = ([torch.randn(50, D, generator=generator) for _ in LAYERS] for _ in range(2))
    layers, others = ([make_parameters(run, 3 - i, i) for i in range(3)] for _ in range(2))
    dead = [DEAD, DEAD[:0], DEAD[:1]]
    variances = [VARIANCE] * 3
    terms = compute_cross_layer_loss(layers, run, xs, ys, variances, 0.02, dead)
    sum(each.loss for each in terms).backward()
    expected = [0.7 * formula(p, x, features) for p, x, features in zip(others, xs, dead, strict=True)]
    for each, value in zip(terms, expected, strict=True):
        assert float(each.auxiliary) == pytest.approx(float(value.detach()), rel=1e-5)
    assert float(expected[0].detach()) > 0 and float(expected[1].detach()) == 0
    without = compute_cross_layer_loss(others, plain, xs, ys, variances, 0.02, dead)
    (sum(each.loss for each in without) + sum(expected)).backward()
    for p, q in zip(layers, others, strict=True):
        assert_close_gradients(p, q)


@pytest.mark.parametrize("kind", ["clt", "transcoder"])
@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_features_start_at_the_stated_rate(name: str, kind: str) -> None:
    rate = 0.03
    run = clt(**ACTS[name], initial_rate=rate).model_copy(update={"kind": kind})
    data = make_data(80)
    seen, new = ({key: part[half] for key, part in data.items()} for half in (slice(2560), slice(2560, None)))
    if kind == "clt":
        trainer = make_trainer(run, seen)
        pairs = [
            (p, batch_key("mlp_in", i), s.x)
            for p, i, s in zip(trainer.parameters, LAYERS, trainer.scales, strict=True)
        ]
    else:
        x, y = seen[batch_key("mlp_in", 0)], seen[batch_key("mlp_out", 0)]
        alone = Trainer(run, 0, moments(x), moments(y), (x, y))
        pairs = [(alone.parameters, batch_key("mlp_in", 0), alone.scales.x)]
    for p, key, scale in pairs:
        threshold = 0.0 if p.threshold is None else p.threshold
        with torch.no_grad():
            active, active_new = (
                (rows[key] / scale @ p.W_enc.T + p.b_enc > threshold).float().mean(0) for rows in (seen, new)
            )
        assert (active - rate).abs().max() <= 1 / 2560
        assert float(active_new.mean()) == pytest.approx(rate, rel=0.1)
        assert not torch.equal(active, active_new)


def test_a_rate_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run r: initial_rate=0.0001 is none or all of the 640 tokens"):
        make_trainer(clt(**ACTS["jumprelu"], initial_rate=1e-4), make_data())


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_the_pre_activation_loss_revives_features_that_never_fire(coefficient: float) -> None:
    keys = {"act": "jumprelu", "sparsity": 1e-3, "penalty": "tanh", "dead_tokens": 4 * BATCH}
    data = make_data()
    trainer = make_trainer(clt(**keys, pre_activation=coefficient, warmup=0, learning_rate=0.1), data)
    for p in trainer.parameters:
        p.b_enc.data[::2] -= 9
    auxiliary = []
    for i, batch in enumerate(reader(data)(0, 30)):
        auxiliary.append(sum(float(each.auxiliary) for each in trainer.train_on(i, batch)))
    dead = [int((silent >= 4 * BATCH).sum()) for silent in trainer.tokens_since_fired]
    assert max(auxiliary[:4]) == 0
    if coefficient:
        assert max(auxiliary) > 0 and max(dead) < WIDTH / 4
    else:
        assert max(auxiliary) == 0 and min(dead) >= WIDTH / 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"act": "topk", "pre_activation": 1e-3},
            "act: topk has its rate from k and revives features by aux",
        ),
        ({"act": "batchtopk", "initial_rate": 0.1}, "are for relu and jumprelu; act: batchtopk"),
        ({"act": "relu", "loss": "paper", "initial_rate": 0.1}, "loss: paper has its own initial weights"),
    ],
)
def test_runs_that_cannot_use_them_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Run(width=64, **keys)
