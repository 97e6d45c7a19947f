"""Training a sweep: all runs of a layer in one process, over one read of its activations, resumable to the bit."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..partial import replace
from ..progress import progress
from .abreast import in_turn_or_abreast
from .objective import Terms
from .reduction import Reduction
from .trainee import Trainee, learning_rate

HISTORY_EVERY = 10
"""Steps between rows of the history."""
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 30.0
"""Least time between checkpoints, which large dictionaries make by the gigabyte."""
CHECKPOINT_SHARE = 1 / 20
"""Share of the time that checkpoints take at most: those of the largest dictionaries take minutes."""

Read = Callable[[int, int], Iterator[dict[str, Tensor]]]
"""(first step, last step, exclusive) to batches, or this process' share of each: raw activations [token, d] by site."""


@dataclass
class _Progress:
    """How far a sweep has come."""

    step: int = 0
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass
class _Clock:
    """Time that one run has taken since its last row."""

    seconds: float = 0.0
    steps: int = 0


def train(
    trainees: list[Trainee],
    read: Read,
    partial: Path,
    checkpoint_every: int = 50,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    checkpoint_share: float = CHECKPOINT_SHARE,
) -> dict[str, list[dict[str, Any]]]:
    """Train all runs to their ends; each run's history rows (table HISTORY), by name.

    A checkpoint in the folder `partial` is continued: the caller sees to it that it is this training's own. The next
    one is due after so many steps, so many seconds, and so long that saving has taken `checkpoint_share` of the time.
    On a CPU small runs take their steps side by side, with a share of the threads each.
    Raises ArithmeticError where a run diverges.
    """
    reduction = trainees[0].reduction
    done = _resume(trainees, partial, reduction)
    steps = max(trainee.steps for trainee in trainees)
    layer, batch = trainees[0].layer, trainees[0].run.batch
    clocks = {trainee.run.name: _Clock() for trainee in trainees}
    saved, rest = time.monotonic(), checkpoint_seconds
    label, silent = f"dictionaries layer {layer}", reduction.rank > 0
    with (
        progress(label, steps * batch, "tokens", done.step * batch, silent=silent) as bar,
        in_turn_or_abreast(trainees) as for_each,
    ):
        for share_by_site in read(done.step, steps):
            batch_by_site = reduction.whole(share_by_site)
            for_each(
                lambda trainee, rows=batch_by_site: _take_step(trainee, done, rows, clocks[trainee.run.name])
            )
            done.step += 1
            bar.update(batch)
            began = time.monotonic()
            due = done.step % checkpoint_every == 0 and reduction.first(began - saved >= rest)
            if due or done.step == steps:
                _save(trainees, done, partial, reduction)
                saved = time.monotonic()
                rest = max(checkpoint_seconds, (1 / checkpoint_share - 1) * (saved - began))
    return done.history


def _take_step(trainee: Trainee, done: _Progress, batch: dict[str, Tensor], clock: _Clock) -> None:
    """One step of a run, unless it is at its end; a row of its history where one is due."""
    run = trainee.run
    if done.step >= trainee.steps:
        return
    began = time.perf_counter()
    terms = trainee.step(done.step, batch[run.site_in], batch[run.site_out])
    clock.seconds += time.perf_counter() - began
    clock.steps += 1
    if (done.step + 1) % HISTORY_EVERY == 0 or done.step + 1 == trainee.steps:
        row = _row(trainee, done.step, terms, clock.steps * run.batch / clock.seconds)
        done.history.setdefault(run.name, []).append(row)
        clock.seconds, clock.steps = 0.0, 0


def _row(trainee: Trainee, step: int, terms: Terms, tokens_per_second: float) -> dict[str, Any]:
    names = ("loss", "reconstruction", "sparsity", "auxiliary", "l0", "fvu")
    return {
        "run": trainee.run.name,
        "layer": trainee.layer,
        "step": step + 1,
        **{name: getattr(terms, name).item() for name in names},
        "dead": trainee.dead_share,
        "learning_rate": learning_rate(trainee.run, step, trainee.steps),
        "tokens_per_second": tokens_per_second,
    }


def _save(trainees: list[Trainee], done: _Progress, partial: Path, reduction: Reduction) -> None:
    """Write a checkpoint; where features are split, each process its own part, and the first one's makes it valid."""
    for trainee in trainees:
        trainee.check()
    file = _file(partial, done.step, reduction)
    if reduction.rank > 0 and reduction.splits_features:
        _write(trainees, done, file)
    reduction.wait()
    if reduction.rank == 0:
        _write(trainees, done, file)
    reduction.wait()
    for old in partial.glob(_shard("*", reduction.rank)):
        if old != file:
            old.unlink()


def _write(trainees: list[Trainee], done: _Progress, file: Path) -> None:
    states = [trainee.state() for trainee in trainees]
    content = io.BytesIO()
    torch.save({"step": done.step, "history": done.history, "states": states}, content)
    # as bytes: a full disk is then an OSError like any other
    replace(file, content.getbuffer())


def _file(partial: Path, step: int, reduction: Reduction) -> Path:
    """Where a process finds its state: all in one file, unless each has features of its own."""
    apart = reduction.splits_features and reduction.rank > 0
    return partial / (_shard(step, reduction.rank) if apart else CHECKPOINT)


def _shard(step: int | str, rank: int) -> str:
    return f"checkpoint-process{rank}-step{step}.pt"


def _resume(trainees: list[Trainee], partial: Path, reduction: Reduction) -> _Progress:
    first, device = partial / CHECKPOINT, trainees[0].silent.device
    content = _read(first, device) if reduction.rank == 0 and first.is_file() else None
    step = reduction.first(0 if content is None else content["step"])
    if step == 0:
        return _Progress()
    content = content or _read(_file(partial, step, reduction), device)
    for trainee, state in zip(trainees, content["states"], strict=True):
        trainee.restore(state)
    return _Progress(content["step"], content["history"])


def _read(file: Path, device: torch.device) -> dict[str, Any]:
    return torch.load(file, weights_only=True, map_location=device)
