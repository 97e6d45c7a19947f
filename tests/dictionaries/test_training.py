"""Training learns, resumes bit for bit and stops when it diverges; dictionaries work on raw activations."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from tests.dictionaries.training_cases import moments

from circuitloom.activations.outliers import OutlierLimits
from circuitloom.config import Run
from circuitloom.dictionaries.dictionary import load_dictionary, save_dictionary
from circuitloom.dictionaries.training import sweep
from circuitloom.dictionaries.training.sweep import train
from circuitloom.dictionaries.training.trainer import Trainer, learning_rate, sparsity_weight

D, BATCH = 16, 256
ACTS = {
    "relu": {"act": "relu", "sparsity": 0.02},
    "topk": {"act": "topk", "k": 4},
    "batchtopk": {"act": "batchtopk", "k": 4},
    "jumprelu": {"act": "jumprelu", "sparsity": 0.002},
    "skip": {"act": "topk", "k": 4, "skip": True},
}


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    """x and y are two linear mixtures of the same sparse causes, neither of unit scale."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(BATCH * 20, 40, generator=generator)
    causes = causes * (torch.rand(causes.shape, generator=generator) < 0.06)
    mix = [torch.randn(40, D, generator=generator) for _ in range(2)]
    return {"mlp_in": 3 * causes @ mix[0] + 0.5, "mlp_out": 0.1 * causes @ mix[1] - 0.2}


@pytest.fixture
def with_threads() -> Iterator[None]:
    """Restores torch's number of threads after the test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_trainer(data: dict[str, torch.Tensor], **keys) -> Trainer:
    run = Run(
        **{"width": 64, "batch": BATCH, "tokens": BATCH * 60, "learning_rate": 1e-2, "name": "r", **keys}
    )
    x, y = data[run.site_in], data[run.site_out]
    return Trainer(run, 0, moments(x), moments(y), (x, y))


def reader(data: dict[str, torch.Tensor], seen: list[int] | None = None):
    def read(start: int, stop: int):
        for i in range(start, stop):
            if seen is not None:
                seen.append(i)
            rows = slice(i % 20 * BATCH, (i % 20 + 1) * BATCH)
            yield {site: x[rows] for site, x in data.items()}

    return read


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("kind", ["transcoder", pytest.param("sae", marks=pytest.mark.slow)])
def test_training_explains_variance(name: str, kind: str, data, tmp_path) -> None:
    trainer = make_trainer(data, kind=kind, tokens=BATCH * 150, **ACTS[name])
    history = train([trainer], reader(data), tmp_path)["r"]
    dictionary = trainer.dictionary()
    x, y = data[trainer.run.site_in], data[trainer.run.site_out]
    fvu = float((dictionary(x) - y).square().sum() / (y - y.mean(0)).square().sum())
    assert fvu < 0.25
    assert history[-1]["fvu"] == pytest.approx(fvu, rel=0.35)
    assert history[-1]["step"] == 150


@pytest.mark.parametrize(
    "keys", [{"act": "relu"}, {"act": "jumprelu"}, {"act": "jumprelu", "penalty": "tanh"}]
)
def test_a_larger_penalty_leaves_fewer_features_active(keys: dict, data, tmp_path) -> None:
    active = []
    for sparsity in (1e-4, 3e-2):
        folder = tmp_path / str(sparsity)
        folder.mkdir()
        trainer = make_trainer(data, sparsity=sparsity, tokens=BATCH * 150, **keys)
        active.append(train([trainer], reader(data), folder)["r"][-1]["l0"])
    assert active[1] < 0.7 * active[0]


def test_saved_weights_act_on_raw_activations_as_training_did_on_normalised_ones(data, tmp_path) -> None:
    trainer = make_trainer(data, act="topk", k=4, skip=True)
    train([trainer], reader(data), tmp_path)
    dictionary = trainer.dictionary()
    x, p, scales = data["mlp_in"][:50], trainer.parameters, trainer.scales
    with torch.no_grad():
        pre = (x / scales.x) @ p.W_enc.T + p.b_enc
        keep = (pre * p.decoder_norm).topk(4, dim=1).indices
        z = torch.zeros_like(pre).scatter(1, keep, pre.gather(1, keep).relu())
        y_hat = (z @ p.W_dec + p.b_dec + (x / scales.x) @ p.W_skip.T) * scales.y
    assert torch.allclose(dictionary(x), y_hat, atol=1e-5)
    assert torch.allclose(dictionary.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)


@pytest.mark.parametrize("name", ACTS)
def test_sparse_and_dense_codes_of_a_dictionary_agree(name: str, data, tmp_path) -> None:
    trainer = make_trainer(data, **ACTS[name])
    train([trainer], reader(data), tmp_path)
    dictionary = trainer.dictionary()
    x = data["mlp_in"][:100]
    token, feature, value = dictionary.encode_sparse(x)
    dense = torch.zeros(100, 64)
    dense[token, feature] = value
    assert torch.allclose(dense, dictionary.encode(x), atol=1e-6)
    assert bool((value > 0).all())


def test_a_saved_dictionary_is_the_same_when_loaded(data, tmp_path) -> None:
    dictionary = make_trainer(data, act="batchtopk", k=4).dictionary()
    save_dictionary(dictionary, tmp_path / "d", {"width": 64})
    loaded = load_dictionary(tmp_path / "d")
    x = data["mlp_in"][:20]
    assert torch.equal(loaded(x), dictionary(x))
    (tmp_path / "d" / "weights.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"no readable dictionary .*train again"):
        load_dictionary(tmp_path / "d")


def test_a_dictionary_in_the_folder_of_another_layer_is_refused(data, tmp_path) -> None:
    dictionary = make_trainer(data, act="relu").dictionary()
    save_dictionary(dictionary, tmp_path / f"layer{dictionary.layer}", {})
    assert load_dictionary(tmp_path / f"layer{dictionary.layer}").layer == dictionary.layer
    swapped = (tmp_path / f"layer{dictionary.layer}").rename(tmp_path / "layer7")
    message = rf"layer7: holds the dictionary of layer {dictionary.layer}; move it back"
    with pytest.raises(ValueError, match=message) as error:
        load_dictionary(swapped)
    assert "\n" not in str(error.value)


def test_an_interrupted_training_ends_in_the_same_bits(data, tmp_path) -> None:
    def make_sweep() -> list[Trainer]:
        return [make_trainer(data, name=name, seed=3, **keys) for name, keys in ACTS.items()]

    folders = tmp_path / "uninterrupted", tmp_path / "interrupted"
    for folder in folders:
        folder.mkdir()
    uninterrupted = make_sweep()
    always: dict = {"checkpoint_every": 7, "checkpoint_seconds": 0, "checkpoint_share": 1}
    train(uninterrupted, reader(data), folders[0], **always)

    class Killed(Exception):
        pass

    def until(stop_at: int):
        def read(start: int, stop: int):
            for i, batch in enumerate(reader(data)(start, stop), start):
                if i == stop_at:
                    raise Killed
                yield batch

        return read

    for stop_at in (5, 23, 48):
        with pytest.raises(Killed):
            train(make_sweep(), until(stop_at), folders[1], **always)
    seen: list[int] = []
    resumed = make_sweep()
    train(resumed, reader(data, seen), folders[1], **always)
    assert seen[0] == 42, "training did not resume from the last checkpoint"
    for a, b in zip(uninterrupted, resumed, strict=True):
        for (name, x), (_, y) in zip(a.parameters.named(), b.parameters.named(), strict=True):
            assert torch.equal(x, y), name
        assert a.threshold == b.threshold


@pytest.mark.parametrize(("threads", "runs_of"), [(1, list(ACTS)), (2, list(ACTS)), (3, ["topk", "relu"])])
def test_runs_in_parallel_end_as_each_does_alone(
    threads: int, runs_of: list[str], data, tmp_path, with_threads, monkeypatch
) -> None:
    """Each run has one thread in both cases."""
    trainers = {name: [make_trainer(data, name=name, **ACTS[name]) for _ in range(2)] for name in runs_of}
    for name, (alone, _) in trainers.items():
        (tmp_path / name).mkdir()
        train([alone], reader(data), tmp_path / name)
    torch.set_num_threads(threads)
    threads_used: set[int] = set()
    step = Trainer.step

    def recorded(self, *args):
        threads_used.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", recorded)
    train([parallel for _, parallel in trainers.values()], reader(data), tmp_path)
    assert torch.get_num_threads() == threads
    assert (threads_used == {threading.get_ident()}) == (threads == 1)
    for alone, parallel in trainers.values():
        for (name, x), (_, y) in zip(alone.parameters.named(), parallel.parameters.named(), strict=True):
            assert torch.equal(x, y), name


def test_large_runs_are_trained_in_turn_with_all_threads(data, tmp_path, with_threads, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "MAX_PARALLEL_WEIGHTS", 2 * 64 * D - 1)
    torch.set_num_threads(2)
    trainers = [make_trainer(data, name=name) for name in "ab"]
    with sweep.map_trainers(trainers) as map_active:
        assert map_active(lambda _: torch.get_num_threads(), trainers) == [2, 2]


@pytest.mark.parametrize(
    ("runs", "threads", "parallel"),
    [
        (1, 8, 1),
        (12, 1, 1),
        (12, 2, 2),
        (2, 3, 2),
        (5, 2, 2),
        (12, 8, 8),
        (12, 16, 12),
        (3, 128, 3),
        (5, 4, 4),
    ],
)
def test_the_number_of_parallel_runs_minimises_the_time_per_step(runs, threads, parallel) -> None:
    assert sweep.parallel_runs(runs, threads) == parallel


@pytest.mark.parametrize("saving", [0, 2, 5])
def test_checkpoints_take_at_most_a_twentieth_of_the_time(saving: int, data, tmp_path, monkeypatch) -> None:
    """On a fake clock a step takes one second and saving `saving` seconds."""
    now, saved = [0], []
    trainer = make_trainer(data, tokens=BATCH * 299)

    def second(start: int, stop: int):
        for batch in reader(data)(start, stop):
            now[0] += 1
            yield batch

    def save(trainers, state, *args) -> None:
        now[0] += saving
        saved.append(state.step)

    monkeypatch.setattr(sweep, "_save_checkpoint", save)
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(sweep, "time", clock)
    train([trainer], second, tmp_path, checkpoint_every=1)
    # the first comes before the duration of one is known
    apart = max(30, 19 * saving)
    assert saved == [*range(30, 299, apart), 299]
    assert (len(saved) - 2) * saving <= 299 / 20


def test_a_diverging_run_stops_in_one_line_and_keeps_its_checkpoint(data, tmp_path) -> None:
    def poisoned(start: int, stop: int):
        for i, batch in enumerate(reader(data)(start, stop), start):
            yield {site: x * (1e5 if i == 20 else 1) for site, x in batch.items()}

    with pytest.raises(
        ArithmeticError, match=r"run r, layer 0: the loss is .* at step 20; lower its learning_rate"
    ):
        train(
            [make_trainer(data)],
            poisoned,
            tmp_path,
            checkpoint_every=10,
            checkpoint_seconds=0,
            checkpoint_share=1,
        )
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 20
    assert all(bool(v.isfinite().all()) for v in checkpoint["states"][0]["parameters"].values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
def test_activations_that_are_not_finite_are_named_as_the_cause(site: str, value: float, data) -> None:
    x, y = ({**data, site: data[site].clone()}[each] for each in ("mlp_in", "mlp_out"))
    (x if site == "mlp_in" else y)[3, 0] = value
    trainer = make_trainer(data)
    with pytest.raises(ArithmeticError, match=rf"run r, layer 0: {site} is not finite at step 0; set "):
        trainer.step(0, x[:BATCH], y[:BATCH])


def with_massive_row(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`data` with one row of 300 times the norm, which every epoch of 20 batches contains."""
    return {site: torch.cat([x[:70], 300 * x[70:71], x[71:]]) for site, x in data.items()}


@pytest.mark.parametrize("action", ["drop", "cap"])
def test_outliers_are_counted_and_do_not_change_the_training(action: str, data, tmp_path, capsys) -> None:
    massive, bounds = with_massive_row(data), {}
    for site, x in data.items():
        bounds[site] = 2 * float(x.norm(dim=1).max())
    limits = OutlierLimits(bounds, action)
    usual, limited = (make_trainer(data, name=name) for name in ("usual", "limited"))
    expected = (
        {site: limits.apply({site: x})[site] for site, x in massive.items()}
        if action == "cap"
        else {site: torch.cat([x[:70], x[69:70], x[71:]]) for site, x in data.items()}
    )
    histories = []
    for trainer, rows, limit in ((usual, expected, None), (limited, massive, limits)):
        folder = tmp_path / trainer.run.name
        folder.mkdir()
        histories.append(train([trainer], reader(rows), folder, limits=limit)[trainer.run.name])
    for (name, a), (_, b) in zip(usual.parameters.named(), limited.parameters.named(), strict=True):
        assert torch.equal(a, b), name
    done = {"drop": "left out", "cap": "capped"}[action]
    line = f"circuitloom: dictionaries: layer 0: 3 of {60 * BATCH} tokens were {done} (activations.outliers)"
    assert capsys.readouterr().err.splitlines().count(line) == 1
    # 60 steps are three epochs
    assert [row["outliers"] for row in histories[1]] == [1, 1, 2, 2, 3, 3]
    assert [row["outliers"] for row in histories[0]] == [0] * 6


def test_an_interrupted_training_counts_outliers_once(data, tmp_path) -> None:
    massive = with_massive_row(data)
    limits = OutlierLimits({site: 2 * float(x.norm(dim=1).max()) for site, x in data.items()}, "drop")

    def until_25(start: int, stop: int):
        yield from reader(massive)(start, min(stop, 25))
        raise KeyboardInterrupt

    always: dict = {"checkpoint_every": 7, "checkpoint_seconds": 0, "checkpoint_share": 1, "limits": limits}
    with pytest.raises(KeyboardInterrupt):
        train([make_trainer(data)], until_25, tmp_path, **always)
    history = train([make_trainer(data)], reader(massive), tmp_path, **always)["r"]
    assert [row["outliers"] for row in history] == [1, 1, 2, 2, 3, 3]


def test_auxk_lowers_the_number_of_dead_features(data, tmp_path) -> None:
    def dead(aux: float) -> float:
        folder = tmp_path / str(aux)
        folder.mkdir()
        trainer = make_trainer(data, width=64, k=4, aux=aux, dead_tokens=BATCH * 5, tokens=BATCH * 100)
        # most features start with encoder rows too small to be among the k largest
        trainer.parameters.W_enc.data[16:] *= 0.01
        train([trainer], reader(data), folder)
        return trainer.dead_share

    assert dead(1 / 32) < 0.7 * dead(0.0)


def test_schedules_rise_hold_and_fall() -> None:
    run = Run(width=64, learning_rate=1.0, warmup=0.1, decay=0.2, sparsity=2.0, sparsity_warmup=0.5)
    rates = [learning_rate(run, i, 100) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[99] == pytest.approx(0.05)
    assert rates == sorted(rates[:10]) + rates[10:80] + sorted(rates[80:], reverse=True)
    weights = [sparsity_weight(run, i, 100) for i in range(100)]
    assert weights[24] == pytest.approx(1.0)
    assert weights[49:] == [2.0] * 51


def test_a_training_whose_last_step_breaks_its_weights_is_not_saved(data, tmp_path) -> None:
    trainer = make_trainer(data, learning_rate=1e38, tokens=BATCH, warmup=0, decay=0)
    with pytest.raises(ArithmeticError, match="a weight is not finite; lower its learning_rate"):
        train([trainer], reader(data), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_an_output_of_zero_gives_a_finite_loss(data) -> None:
    trainer = make_trainer(data, act="topk", k=4)
    zeros = torch.zeros(8, D)
    terms = trainer.step(0, data["mlp_in"][:8], zeros)
    assert bool(terms.loss.isfinite())


def test_each_feature_starts_as_a_token_of_the_sample(data) -> None:
    trainer = make_trainer(data)
    p, x, y = trainer.parameters, data["mlp_in"], data["mlp_out"]
    with torch.no_grad():
        at_mean = p.W_enc @ x.mean(0) / trainer.scales.x + p.b_enc
        assert torch.allclose(at_mean, torch.zeros(64), atol=1e-5)
        reads = torch.nn.functional.normalize(x - x.mean(0), dim=1)
        writes = torch.nn.functional.normalize(y - y.mean(0), dim=1)
        features = torch.cat([p.W_enc, p.W_dec / p.decoder_norm[:, None]], dim=1)
        distance = torch.cdist(features, torch.cat([reads, writes], dim=1))
    assert float(distance.min(1).values.max()) < 1e-2
    assert float(distance.median()) > 0.5
    assert not torch.equal(p.W_enc, make_trainer(data, seed=1).parameters.W_enc)
