"""Cross-layer transcoders are trained by the gradients of their dense formula; without reach they are transcoders."""

import copy
from collections.abc import Sequence

import pytest
import torch
from tests.dictionaries.cross_layer_cases import (
    ACTS,
    BATCH,
    LAYERS,
    TOKENS,
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
from circuitloom.dictionaries.training import cross_layer_trainer
from circuitloom.dictionaries.training.cross_layer_objective import compute_cross_layer_loss
from circuitloom.dictionaries.training.cross_layer_parameters import output_counts
from circuitloom.dictionaries.training.cross_layer_trainer import CrossLayerTrainer, batch_key
from circuitloom.dictionaries.training.objective import TANH_SCALE, JumpReLU, StepFunction
from circuitloom.dictionaries.training.parameters import Parameters
from circuitloom.dictionaries.training.selection import select_batch_top_k
from circuitloom.dictionaries.training.sweep import train
from circuitloom.dictionaries.training.trainer import Trainer, dead_features, sparsity_weight

VARIANCES = (7.0, 8.0, 9.0)


def make_parameters(run: Run, shift: float = -2.2) -> list[Parameters]:
    """Random weights. The biases leave few features active, so that sparse products are used."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    layers = []
    for count in output_counts(run, LAYERS):
        threshold = 0.3 * random(WIDTH).abs() if run.act == "jumprelu" else None
        p = Parameters(
            W_enc=random(WIDTH, D) / D**0.5,
            b_enc=0.1 * random(WIDTH) + (0.0 if run.act in ("topk", "batchtopk") else shift),
            W_dec=random(WIDTH, count * D) / D**0.5,
            b_dec=random(D),
            threshold=threshold,
            W_skip=random(D, D) / D if run.skip else None,
        )
        for name, value in p.named():
            setattr(p, name, value.requires_grad_(True))
        layers.append(p)
    return layers


def make_batch(tokens: int = TOKENS) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs, ys = ([torch.randn(tokens, D, generator=generator) for _ in LAYERS] for _ in range(2))
    return xs, ys


def kept_scores(run: Run, scores: Tensor) -> Tensor:
    """Whether each score, [layer, token, feature], is among the largest."""
    if run.act == "topk":
        return scores >= scores.topk(run.k, dim=2).values[:, :, -1:]
    if run.budget == "all":
        return scores >= scores.flatten().topk(run.k * TOKENS * len(LAYERS)).values[-1]
    if run.act == "batchtopk":
        return scores >= scores.flatten(1).topk(run.k * TOKENS, dim=1).values[:, -1][:, None, None]
    return torch.ones_like(scores, dtype=torch.bool)


def formula(
    layers: Sequence[Parameters], run: Run, xs: list[Tensor], ys: list[Tensor], weight: float
) -> Tensor:
    """The loss, written with dense products over [layer, token, feature]."""
    pre = torch.stack([x @ p.W_enc.T + p.b_enc for p, x in zip(layers, xs, strict=True)])
    norm = torch.stack([p.W_dec.norm(dim=1) for p in layers])
    scores = pre.detach() * norm.detach()[:, None]
    kept = kept_scores(run, scores)
    if run.act == "jumprelu":
        threshold = torch.stack([p.threshold for p in layers])[:, None].expand_as(pre)
        z = JumpReLU.apply(pre, threshold, run.bandwidth)
    else:
        z = torch.where(kept, pre, 0.0).relu()
    total = torch.zeros(())
    for m in range(len(LAYERS)):
        y_hat = layers[m].b_dec
        for i in range(m + 1):
            if (m - i) * D < layers[i].W_dec.shape[1]:
                y_hat = y_hat + z[i] @ layers[i].W_dec[:, (m - i) * D : (m - i + 1) * D]
        if run.skip:
            y_hat = y_hat + xs[m] @ layers[m].W_skip.T
        total = total + (ys[m] - y_hat).square().sum() / TOKENS / VARIANCES[m]
    if run.act in ("topk", "batchtopk"):
        return total
    if run.penalty == "tanh":
        penalty = torch.tanh(TANH_SCALE * z * norm[:, None]).sum()
    elif run.act == "relu":
        penalty = ((z * norm[:, None]).sum((1, 2)) / torch.tensor(VARIANCES) ** 0.5).sum()
    else:
        penalty = StepFunction.apply(pre, threshold, run.bandwidth).sum()
    return total + weight * penalty / TOKENS


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("reach", ["all", 1])
@pytest.mark.parametrize("name", ACTS)
def test_gradients_are_those_of_the_dense_formula(name: str, reach: str | int, dense: bool) -> None:
    run = clt(**ACTS[name], reach=reach)
    (xs, ys), none = make_batch(), torch.zeros(0, dtype=torch.int64)
    layers, reference = make_parameters(run), make_parameters(run)
    terms = compute_cross_layer_loss(layers, run, xs, ys, VARIANCES, 0.02, [none] * len(LAYERS), dense)
    loss = sum(each.loss for each in terms)
    expected = formula(reference, run, xs, ys, 0.02)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    expected.backward()
    for p, q in zip(layers, reference, strict=True):
        for (key, value), (_, other) in zip(p.named(), q.named(), strict=True):
            error = (value.grad - other.grad).norm() / other.grad.norm()
            assert other.grad.norm() > 0 and error < 1e-5, (key, float(error))


def test_a_shared_budget_keeps_the_largest_scores_of_all_layers() -> None:
    run = clt(act="batchtopk", k=2, budget="all")
    layers, (xs, _) = make_parameters(run), make_batch()
    # most of the budget goes to one token of one layer
    xs[1] = xs[1] * 0.05
    xs[1][3] *= 400
    with torch.no_grad():
        scores = torch.stack(
            [(x @ p.W_enc.T + p.b_enc) * p.W_dec.norm(dim=1) for p, x in zip(layers, xs, strict=True)]
        )
    expected = scores >= scores.flatten().topk(2 * TOKENS * len(LAYERS)).values[-1]
    selected = select_batch_top_k(run, list(zip(layers, xs, strict=True)))
    for i, each in enumerate(selected):
        kept = torch.zeros(TOKENS, WIDTH, dtype=torch.bool)
        kept[each.pattern.token, each.pattern.feature.long()] = True
        assert torch.equal(kept, expected[i])
    assert expected[1, 3].sum() > 8 * run.k
    assert len({int(each.sum()) for each in expected}) == len(LAYERS)


@pytest.mark.parametrize("name", [*(name for name in ACTS if name not in ("relu-tanh", "budget")), "dead"])
def test_without_reach_training_is_that_of_separate_transcoders(name: str) -> None:
    keys = ACTS.get(name, {"act": "topk", "k": 3, "dead_tokens": 2 * BATCH})
    data = make_data()
    together = make_trainer(clt(**keys, reach=0), data)
    alone = []
    for layer in LAYERS:
        run = clt(**keys).model_copy(update={"kind": "transcoder"})
        x, y = data[batch_key("mlp_in", layer)], data[batch_key("mlp_out", layer)]
        alone.append(Trainer(run, layer, moments(x), moments(y), (x, y)))
    if name == "dead":
        for p in (*together.parameters, *(each.parameters for each in alone)):
            p.W_enc.data[::2] *= 0.01
    auxiliary = 0.0
    for i, batch in enumerate(reader(data)(0, 8)):
        terms = together.train_on(i, batch)
        for each, trainer, layer in zip(terms, alone, LAYERS, strict=True):
            own = trainer.step(i, batch[batch_key("mlp_in", layer)], batch[batch_key("mlp_out", layer)])
            for field in ("loss", "reconstruction", "sparsity", "auxiliary", "l0", "fvu"):
                assert torch.equal(getattr(each, field), getattr(own, field)), (i, layer, field)
            auxiliary += float(own.auxiliary)
    assert (auxiliary > 0) == (name == "dead")
    for layer, trainer in zip(LAYERS, alone, strict=True):
        one, other = together.transcoder().layers[layer], trainer.dictionary()
        assert torch.equal(one.decoder(layer), other.W_dec)
        assert torch.equal(one.W_enc, other.W_enc)
        assert torch.equal(one.b_dec, other.b_dec)
        assert (one.act, one.k) == (other.act, other.k)


@pytest.mark.parametrize("name", [*ACTS, "dead"])
def test_decoders_take_adams_step_by_rows(name: str, monkeypatch) -> None:
    # blocks of 5 features of the first layer; their number does not divide the width
    monkeypatch.setattr(cross_layer_trainer, "CACHED_ENTRIES", 5 * len(LAYERS) * D)
    keys = ACTS.get(name, {"act": "topk", "k": 3, "dead_tokens": 2 * BATCH})
    data = make_data()
    by_rows, complete = (make_trainer(clt(**keys, warmup=0, decay=0), data) for _ in range(2))
    for p in (*by_rows.parameters, *complete.parameters):
        if keys["act"] in ("relu", "jumprelu"):
            # few features are active, so that sparse products are used
            p.b_enc.data -= 2.5
    sparse_steps = 0
    for i, batch in enumerate(reader(data)(0, 8)):
        if i == 4:
            # the optimizer's state moves between the two
            state = copy.deepcopy(by_rows.state())
            complete.restore(by_rows.state())
            by_rows.restore(state)
        by_rows.train_on(i, batch)
        sparse_steps += all(p.W_dec.grad is None for p in by_rows.parameters)
        step_with_complete_gradients(complete, i, batch)
        for one, other in zip(by_rows.weights(), complete.weights(), strict=True):
            assert torch.equal(one, other), i
    assert sparse_steps > 0
    assert by_rows.optimizer.state_dict()["state"].keys() == complete.optimizer.state_dict()["state"].keys()


def step_with_complete_gradients(trainer: CrossLayerTrainer, index: int, batch: dict[str, Tensor]) -> None:
    """The step of `train_on`, with gradients of complete decoders in torch's Adam."""
    trainer.optimizer.zero_grad()
    terms = compute_cross_layer_loss(
        trainer.parameters,
        trainer.run,
        [batch[batch_key("mlp_in", i)] / s.x for i, s in zip(LAYERS, trainer.scales, strict=True)],
        [batch[batch_key("mlp_out", i)] / s.y for i, s in zip(LAYERS, trainer.scales, strict=True)],
        [scale.normalised_variance for scale in trainer.scales],
        sparsity_weight(trainer.run, index, trainer.steps),
        [dead_features(trainer.run, index, silent) for silent in trainer.tokens_since_fired],
    )
    torch.stack([each.loss for each in terms]).sum().backward()
    assert all(p.W_dec.grad is not None for p in trainer.parameters)
    trainer.optimizer.step()
    for p in trainer.parameters:
        if p.threshold is not None:
            p.threshold.data.clamp_min_(0)
    trainer._update_statistics(terms, BATCH)


@pytest.mark.parametrize("name", ["topk", "budget", "jumprelu"])
def test_two_threads_that_select_in_different_layers_train_what_one_trains(name: str) -> None:
    data = make_data()
    one, two = (make_trainer(clt(**ACTS[name]), data) for _ in range(2))
    threads = torch.get_num_threads()
    try:
        for i, batch in enumerate(reader(data)(0, 6)):
            for number, trainer in ((1, one), (2, two)):
                torch.set_num_threads(number)
                trainer.train_on(i, batch)
    finally:
        torch.set_num_threads(threads)
    assert one._pool is None and two._pool is not None
    for a, b in zip(one.weights(), two.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_saved_transcoder_computes_on_raw_activations_what_training_computed() -> None:
    data = make_data()
    for name in ("topk", "budget", "skip"):
        trainer = make_trainer(clt(**ACTS[name]), data)
        for i, batch in enumerate(reader(data)(0, 10)):
            trainer.train_on(i, batch)
        transcoder = trainer.transcoder()
        for each in transcoder.layers.values():
            assert torch.equal(each.row_norm, torch.ones(WIDTH))
        if name == "budget":
            # one threshold for all layers, in units of each layer's output
            ratios = [
                each.threshold / scale.y
                for each, scale in zip(transcoder.layers.values(), trainer.scales, strict=True)
            ]
            for ratio in ratios:
                torch.testing.assert_close(ratio, ratios[0])
            continue
        y_hat = transcoder({layer: data[batch_key("mlp_in", layer)] for layer in LAYERS})
        terms = compute_cross_layer_loss(
            trainer.parameters,
            trainer.run,
            [data[batch_key("mlp_in", i)] / s.x for i, s in zip(LAYERS, trainer.scales, strict=True)],
            [data[batch_key("mlp_out", i)] / s.y for i, s in zip(LAYERS, trainer.scales, strict=True)],
            [scale.normalised_variance for scale in trainer.scales],
            0.0,
            [torch.zeros(0, dtype=torch.int64)] * len(LAYERS),
        )
        for layer, each, scale in zip(LAYERS, terms, trainer.scales, strict=True):
            y = data[batch_key("mlp_out", layer)]
            fvu = float((y - y_hat[layer]).square().sum() / len(y) / scale.variance)
            assert fvu == pytest.approx(float(each.fvu), rel=1e-3)


@pytest.mark.parametrize("name", ["budget", "jumprelu"])
def test_an_interrupted_training_ends_in_the_same_bits(name: str, tmp_path) -> None:
    data, run = make_data(), clt(**ACTS[name], dead_tokens=2 * BATCH)
    always = {"checkpoint_every": 4, "checkpoint_seconds": 0.0, "checkpoint_share": 1.0}
    for folder in ("complete", "interrupted"):
        (tmp_path / folder).mkdir()
    complete = make_trainer(run, data)
    history = train([complete], reader(data), tmp_path / "complete", **always)
    with pytest.raises(InterruptedError):
        train([make_trainer(run, data)], reader(data, kill_at=17), tmp_path / "interrupted", **always)
    resumed = make_trainer(run, data)
    again = train([resumed], reader(data), tmp_path / "interrupted", **always)
    for one, other in zip(complete.weights(), resumed.weights(), strict=True):
        assert torch.equal(one, other)
    assert complete.thresholds == resumed.thresholds
    rows, others = history["r"], again["r"]
    assert [(row["layer"], row["step"]) for row in rows] == [(i, s) for s in (10, 20, 30) for i in LAYERS]
    for row, other in zip(rows, others, strict=True):
        assert {**row, "tokens_per_second": 0} == {**other, "tokens_per_second": 0}


def test_a_diverging_training_names_the_layer() -> None:
    data = make_data()
    trainer = make_trainer(clt(act="topk", k=3), data)
    batch = {key: rows[:BATCH].clone() for key, rows in data.items()}
    batch[batch_key("mlp_out", 1)][0, 0] = torch.nan
    with pytest.raises(ArithmeticError, match="run r, layer 1: mlp_out is not finite at step 0"):
        trainer.train_on(0, batch)


@pytest.mark.slow
def test_a_feature_that_writes_to_two_layers_is_recovered() -> None:
    """Four causes are read at layer 0 and written to the outputs of layers 0 and 1; layer 1 reads nothing of use."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(BATCH * 10, 4, generator=generator) + 0.5
    causes = causes * (torch.rand(causes.shape, generator=generator) < 0.25)
    read = torch.linalg.qr(torch.randn(D, D, generator=generator))[0][:4]
    writes = [torch.nn.functional.normalize(torch.randn(4, D, generator=generator), dim=1) for _ in range(2)]
    noise = torch.randn(len(causes), D, generator=generator)
    data = {
        batch_key("mlp_in", 0): causes @ read,
        batch_key("mlp_in", 1): noise,
        batch_key("mlp_out", 0): causes @ writes[0],
        batch_key("mlp_out", 1): causes @ writes[1],
    }
    run = clt(act="batchtopk", k=1, width=8, tokens=BATCH * 400, learning_rate=2e-2, dead_tokens=5 * BATCH)
    trainer = make_trainer(run, data, (0, 1))
    for i, batch in enumerate(reader(data)(0, 10)):
        trainer.train_on(i, batch)
    for i in range(10, 400):
        rows = slice(i % 10 * BATCH, (i % 10 + 1) * BATCH)
        terms = trainer.train_on(i, {key: each[rows] for key, each in data.items()})
    assert max(float(each.fvu) for each in terms) < 0.05
    first = trainer.transcoder().layers[0]
    for i in range(4):
        for layer in (0, 1):
            cosine = torch.nn.functional.cosine_similarity(first.decoder(layer), writes[layer][i : i + 1])
            if layer == 0:
                feature = int(cosine.argmax())
            # the same feature writes both
            assert float(cosine[feature]) > 0.95
