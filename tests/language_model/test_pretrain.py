"""Pretraining learns, survives kills, and leaves an ordinary folder."""

import math
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from tests.language_model.inputs import CONTEXT, make_config, make_tokenizer, make_tokens
from tests.models import VOCABULARY

from circuitloom.core.tables import read_table
from circuitloom.corpus.tokens import open_tokens
from circuitloom.language_model.model import load_model
from circuitloom.language_model.pretraining import pretrain


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_tokens(folder / "train.zarr")
    make_tokenizer(folder / "tokenizer")
    return folder


def work(corpus: Path, output: Path, kill_at: int | None = None, seed: int = 0, **keys) -> None:
    """Pretrain; be killed at the `kill_at`th time that a file beside `output` is opened, moved or removed."""
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
    context.set_forkserver_preload(["tests.language_model.test_pretrain"])
    process = context.Process(target=work, args=(corpus, output, kill_at), kwargs=keys)
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    work(corpus, output)
    return output


def test_the_loss_falls_from_a_guess_to_nearly_nothing(undisturbed, corpus):
    table = read_table(undisturbed / "pretraining.parquet").to_pydict()
    assert table["loss"][0] == pytest.approx(math.log(VOCABULARY), abs=0.3)
    # of which 0.26 are the first token after the BOS, which can only be guessed
    assert table["loss"][-1] < 0.6
    assert table["step"][-1] == math.ceil(15_000 / (8 * CONTEXT))
    tokens = open_tokens(corpus / "train.zarr").take(slice(0, 8))
    prediction = load_model(undisturbed).logits(tokens)[:, 1:-1].argmax(-1)
    assert (prediction == tokens[:, 2:]).float().mean() > 0.99


def test_the_folder_is_an_ordinary_one_with_tokenizer_and_anatomy(undisturbed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(undisturbed)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.config.bos_token_id == AutoTokenizer.from_pretrained(undisturbed).bos_token_id == 0
    assert load_model(undisturbed).anatomy.mlp_projection == "c_proj"
    assert not undisturbed.with_name("model.partial").exists()


# opened before a checkpoint: the fingerprint; a checkpoint is written, flushed, renamed, its folder flushed
@pytest.mark.parametrize("kill_at", [3, 7, 9, 14, 25])
def test_killed_and_resumed_gives_the_same_weights_and_losses(kill_at, corpus, undisturbed, tmp_path):
    output = tmp_path / "model"
    assert killed(corpus, output, kill_at)
    assert not output.exists()
    work(corpus, output)
    assert (output / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    losses = [read_table(f / "pretraining.parquet")["loss"].to_pylist() for f in (output, undisturbed)]
    assert losses[0] == losses[1]


def test_what_is_resumed_is_not_trained_again(corpus, tmp_path, monkeypatch):
    from circuitloom.language_model import pretraining as module

    output, taken, backward = tmp_path / "model", [], module._backward
    assert killed(corpus, output, 16)
    monkeypatch.setattr(module, "_backward", lambda *a: (taken.append(1), backward(*a))[1])
    work(corpus, output)
    assert 0 < len(taken) < 118 - 20


def test_a_training_begun_under_another_config_is_not_continued(corpus, undisturbed, tmp_path):
    assert killed(corpus, tmp_path / "model", 16, seed=1)
    work(corpus, tmp_path / "model")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "model", undisturbed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "change", [{"largest": VOCABULARY}, {"bos_id": 1}, {"context": 2 * CONTEXT, "sequences": 32}]
)
def test_what_tells_two_corpora_apart_tells_their_checkpoints_apart(change, tmp_path, monkeypatch):
    """One byte stream can be several token arrays."""
    from circuitloom.language_model import pretraining as module

    marks = []

    def note(_output, mark):
        marks.append(mark)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "partial_folder", note)
    monkeypatch.setattr(module.Batches, "digest", lambda _: "the same bytes")
    for name, keys in (("one", {}), ("other", change)):
        tokens = make_tokens(tmp_path / name, **keys)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tokens, tmp_path, make_config(), 0, tmp_path / "model")
    assert marks[0] != marks[1]


def test_a_diverging_loss_stops_the_training_and_keeps_the_checkpoint(corpus, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step \d+ .*; lower learning_rate"):
        work(corpus, tmp_path / "model", learning_rate=3e3, learning_rate_embedding=3e3, warmup=0.9)
    assert not (tmp_path / "model").exists()
