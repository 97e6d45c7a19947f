"""After a kill at any point, the next run resumes and writes the same bytes."""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from tests.activations.inputs import content, make_cache, make_order

pytestmark = pytest.mark.slow

KEYS = {"dtype": "int8", "batch": 8}


def work(model_folder: Path, folder: Path, kill_at: int | None, events=None) -> None:
    """Cache; killed at the `kill_at`-th time that a file under `folder` is opened, created, moved or removed."""
    import torch

    from circuitloom.language_model.model import load_model

    torch.set_num_threads(1)
    model, order = load_model(model_folder, device="cpu"), make_order()
    count = 0

    def watch(event, args):
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(folder) in str(
            args[0]
        ):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    make_cache(folder, model, order, **KEYS)
    if events is not None:
        events.value = count


@pytest.fixture(scope="module")
def context():
    # a fork server, so that torch is imported once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.activations.inputs", "transformers.models.gpt2.modeling_gpt2"])
    return context


@pytest.fixture(scope="module")
def undisturbed(context, model_folder, tmp_path_factory):
    """The bytes of an undisturbed run, and its number of events."""
    folder, events = tmp_path_factory.mktemp("undisturbed"), context.Value("i", 0)
    run(context, model_folder, folder, None, events)
    return content(folder), events.value


def run(context, model_folder, folder, kill_at, events=None) -> int:
    process = context.Process(target=work, args=(model_folder, folder, kill_at, events))
    process.start()
    process.join(60)
    return process.exitcode


def test_two_undisturbed_runs_are_equal(context, undisturbed, model_folder, tmp_path):
    assert run(context, model_folder, tmp_path, None) == 0
    assert content(tmp_path) == undisturbed[0]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_killed_anywhere_and_resumed_gives_the_same_bytes(part, context, undisturbed, model_folder, tmp_path):
    expected, events = undisturbed
    first = random.Random(part).randrange(events * part // 8, events * (part + 1) // 8) + 1
    assert run(context, model_folder, tmp_path, first) == -signal.SIGKILL
    assert content(tmp_path) != expected
    run(context, model_folder, tmp_path, 30)
    assert run(context, model_folder, tmp_path, None) == 0
    assert content(tmp_path) == expected


def test_complete_shards_are_not_computed_again(model, tmp_path, monkeypatch):
    from circuitloom.activations import cache

    order, written, write = make_order(), [], cache.write_shard

    def stop_at_the_third(array, shard, values):
        if shard == 2:
            raise OSError(28, "No space left on device")
        write(array, shard, values)
        written.append(shard)

    monkeypatch.setattr(cache, "write_shard", stop_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        make_cache(tmp_path, model, order, layers=[0])
    monkeypatch.setattr(cache, "write_shard", lambda *a: (write(*a), written.append(a[1])))
    make_cache(tmp_path, model, order, layers=[0])
    assert written == list(range(order.shards))


def test_an_incomplete_shard_after_a_kill_while_moving_is_rewritten(model, tmp_path, monkeypatch):
    from circuitloom.activations import arrays, cache, shards

    move, write = shards.replace_folder, cache.write_shard

    def move_the_first(folder, target):
        if folder.name != "layer0.zarr":
            raise KeyboardInterrupt
        move(folder, target)

    def write_half_of_the_second(array, shard, values):
        write(array, shard, values)
        if shard == 1:
            file = arrays.shard_file(array, shard)
            file.write_bytes(file.read_bytes()[:1000])
            raise KeyboardInterrupt

    for module, name, killed in (
        (shards, "replace_folder", move_the_first),
        (cache, "write_shard", write_half_of_the_second),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, killed)
            make_cache(tmp_path / "killed", model, make_order())
    for folder in ("killed", "alone"):
        make_cache(tmp_path / folder, model, make_order())
    assert content(tmp_path / "killed") == content(tmp_path / "alone")


def test_a_cache_begun_with_another_row_order_is_not_resumed(context, model_folder, model, tmp_path):
    run(context, model_folder, tmp_path / "both", 60)
    assert (tmp_path / "both" / "mlp_in.partial").is_dir()
    for folder in ("both", "alone"):
        make_cache(tmp_path / folder, model, make_order(seed=5))
    assert content(tmp_path / "both") == content(tmp_path / "alone")


def test_a_cache_begun_by_other_code_is_not_resumed(model, tmp_path, monkeypatch):
    from circuitloom.activations import cache
    from circuitloom.config import Activations

    order, config, written, write = make_order(), Activations(layers=[0]), [], cache.write_shard

    def stop_at_the_second(array, shard, values):
        if shard == 1:
            raise KeyboardInterrupt
        write(array, shard, values)

    monkeypatch.setattr(cache, "write_shard", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        cache.cache_site("mlp_in", order, model, config, tmp_path, "one")
    monkeypatch.setattr(cache, "write_shard", lambda *a: (write(*a), written.append(a[1])))
    cache.cache_site("mlp_in", order, model, config, tmp_path, "another")
    assert written == list(range(order.shards))


def test_a_second_process_is_refused(model, tmp_path):
    from filelock import FileLock

    with (
        FileLock(tmp_path / "mlp_in.lock"),
        pytest.raises(
            ValueError, match=r"mlp_in.partial: another process is writing it; wait until it ends, or stop it"
        ),
    ):
        make_cache(tmp_path, model, make_order(40))
