"""Batches, optimizer and schedule; pretraining learns, resumes after a kill and saves a Hugging Face folder."""

import math
import multiprocessing
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.language_model.inputs import CONTEXT, make_config, make_tokenizer, make_tokens
from tests.models import VOCABULARY

from circuitloom.core.tables import read_table
from circuitloom.corpus.tokens import open_tokens
from circuitloom.language_model.model import load_model
from circuitloom.language_model.pretraining import Batches, MuonAdamW, build, pretrain, schedule


def test_an_epoch_has_every_sequence_except_the_last_once(tmp_path):
    tokens = make_tokens(tmp_path / "train.zarr", sequences=41)
    batches = Batches(tokens, 8, seed=0)
    for epoch in range(2):
        seen = Counter(tuple(row.tolist()) for step in range(5) for row in batches.at(5 * epoch + step)[0])
        assert seen == Counter(tuple(row.tolist()) for row in tokens.take(slice(0, 40)))


@pytest.mark.parametrize("bos_id", [0, None])
def test_the_target_of_the_last_position_is_the_next_token_of_the_stream(tmp_path, bos_id):
    inputs, targets = Batches(make_tokens(tmp_path / "train.zarr", bos_id=bos_id), 8, seed=0).at(3)
    torch.testing.assert_close(inputs[:, 1:], targets[:, :-1])
    torch.testing.assert_close(targets[:, -1], (inputs[:, -1] + 3) % 62 + 2)


def test_batches_depend_on_seed_and_step_only(tmp_path):
    tokens = make_tokens(tmp_path / "train.zarr")
    one, other = Batches(tokens, 8, seed=1), Batches(tokens, 8, seed=1)
    one.at(0)
    assert torch.equal(one.at(20)[0], other.at(20)[0])
    assert not torch.equal(one.at(20)[0], Batches(tokens, 8, seed=2).at(20)[0])


def test_a_batch_can_span_two_epochs(tmp_path):
    batches = Batches(make_tokens(tmp_path / "train.zarr", sequences=4), 8, seed=0)
    assert batches.at(0)[0].unique(dim=0).shape[0] == 3


def test_a_single_sequence_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train.zarr: too few training tokens .* raise corpus.train_tokens"):
        Batches(make_tokens(tmp_path / "train.zarr", sequences=1), 8, seed=0)


def test_the_learning_rate_warms_up_stays_and_decays_to_zero():
    rates = [schedule(step, 100, warmup=0.1, decay=0.5) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:51] == [1.0] * 41
    assert rates[51:] == pytest.approx([(100 - i) / 50 for i in range(51, 100)])


def test_query_key_and_value_matrices_are_orthogonalised_separately(tmp_path):
    config = make_config(weight_decay=0)
    model = build(config, make_tokens(tmp_path / "train.zarr"), seed=0)
    optimizer = MuonAdamW(model, config)
    weight = model.transformer.h[0].attn.c_attn.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    # orthogonalised together, a value matrix with a gradient 1,000 times as large would dominate
    assert weight.grad is not None
    weight.grad[:, 64:] *= 1000
    optimizer.step(0.5)
    for part in (weight.detach() - before).split(32, dim=1):
        singular = torch.linalg.svdvals(part) / (0.5 * config.learning_rate)
        # Newton-Schulz stops at about one
        assert 0.5 < singular.median() < 1.3
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_tokens(folder / "train.zarr")
    make_tokenizer(folder / "tokenizer")
    return folder


def work(corpus: Path, output: Path, kill_at: int | None = None, seed: int = 0, **keys) -> None:
    """Pretrain; killed at the `kill_at`-th time that a file in `output`.partial is opened, moved or removed."""
    torch.set_num_threads(1)
    count = 0

    def watch(event, args):
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and f"{output}.partial" in str(args[0]):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(watch)
    config = make_config(checkpoint_every=20, **keys)
    pretrain(open_tokens(corpus / "train.zarr"), corpus / "tokenizer", config, seed, output)


def killed(corpus: Path, output: Path, kill_at: int, **keys) -> bool:
    """Run `work` in a process of its own; whether it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.language_model.test_pretraining"])
    process = context.Process(target=work, args=(corpus, output, kill_at), kwargs=keys)
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    work(corpus, output)
    return output


def test_the_loss_falls_from_a_uniform_guess_to_nearly_zero(undisturbed, corpus):
    table = read_table(undisturbed / "pretraining.parquet").to_pydict()
    assert table["loss"][0] == pytest.approx(math.log(VOCABULARY), abs=0.3)
    # 0.26 of it is from the first token after the BOS, which can only be guessed
    assert table["loss"][-1] < 0.6
    assert table["step"][-1] == math.ceil(15_000 / (8 * CONTEXT))
    tokens = open_tokens(corpus / "train.zarr").take(slice(0, 8))
    prediction = load_model(undisturbed).logits(tokens)[:, 1:-1].argmax(-1)
    assert (prediction == tokens[:, 2:]).float().mean() > 0.99


def test_the_folder_loads_with_transformers_and_has_tokenizer_and_anatomy(undisturbed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(undisturbed)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.config.bos_token_id == AutoTokenizer.from_pretrained(undisturbed).bos_token_id == 0
    assert load_model(undisturbed).anatomy.mlp_projection == "c_proj"
    assert not undisturbed.with_name("model.partial").exists()


# opened before a checkpoint: the fingerprint; a checkpoint is written, flushed, renamed, its folder flushed
@pytest.mark.parametrize("kill_at", [3, 7, 9, 14, 25])
@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights_and_losses(kill_at, corpus, undisturbed, tmp_path):
    output = tmp_path / "model"
    assert killed(corpus, output, kill_at)
    assert not output.exists()
    work(corpus, output)
    assert (output / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    losses = [read_table(f / "pretraining.parquet")["loss"].to_pylist() for f in (output, undisturbed)]
    assert losses[0] == losses[1]


def test_resumed_steps_are_not_repeated(corpus, tmp_path, monkeypatch):
    from circuitloom.language_model import pretraining as module

    output, taken, backward = tmp_path / "model", [], module._backward
    assert killed(corpus, output, 16)
    monkeypatch.setattr(module, "_backward", lambda *a: (taken.append(1), backward(*a))[1])
    work(corpus, output)
    assert 0 < len(taken) < 118 - 20


def test_a_checkpoint_of_another_config_is_not_resumed(corpus, undisturbed, tmp_path):
    assert killed(corpus, tmp_path / "model", 16, seed=1)
    work(corpus, tmp_path / "model")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "model", undisturbed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "change", [{"largest": VOCABULARY}, {"bos_id": 1}, {"context": 2 * CONTEXT, "sequences": 32}]
)
def test_checkpoints_of_different_corpora_have_different_fingerprints(change, tmp_path, monkeypatch):
    """The same bytes can be different token arrays."""
    from circuitloom.language_model import pretraining as module

    digests = []

    def note(_output, digest):
        digests.append(digest)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "partial_folder", note)
    monkeypatch.setattr(module.Batches, "digest", lambda _: "the same bytes")
    for name, keys in (("one", {}), ("other", change)):
        tokens = make_tokens(tmp_path / name, **keys)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tokens, tmp_path, make_config(), 0, tmp_path / "model")
    assert digests[0] != digests[1]


def test_a_diverging_loss_stops_training(corpus, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step \d+ .*; lower learning_rate"):
        work(corpus, tmp_path / "model", learning_rate=3e3, learning_rate_embedding=3e3, warmup=0.9)
    assert not (tmp_path / "model").exists()
