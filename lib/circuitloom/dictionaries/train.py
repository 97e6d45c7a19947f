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
from .objective import Terms
from .trainee import Trainee, learning_rate

HISTORY_EVERY = 10
"""Steps between rows of the history."""
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 30.0
"""Least time between checkpoints, which large dictionaries make by the gigabyte."""

Read = Callable[[int, int], Iterator[dict[str, Tensor]]]
"""(first step, last step, exclusive) to batches: raw activations [token, d] by site."""


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
) -> dict[str, list[dict[str, Any]]]:
    """Train all runs to their ends; each run's history rows (table HISTORY), by name.

    A checkpoint in the folder `partial` is continued: the caller sees to it that it is this training's own.
    Raises ArithmeticError where a run diverges.
    """
    checkpoint = partial / CHECKPOINT
    done = _resume(trainees, checkpoint)
    steps = max(trainee.steps for trainee in trainees)
    layer, batch = trainees[0].layer, trainees[0].run.batch
    clocks = {trainee.run.name: _Clock() for trainee in trainees}
    saved = time.monotonic()
    with progress(f"dictionaries layer {layer}", steps * batch, "tokens", done.step * batch) as bar:
        for batch_by_site in read(done.step, steps):
            for trainee in trainees:
                if done.step < trainee.steps:
                    _take_step(trainee, done, batch_by_site, clocks[trainee.run.name])
            done.step += 1
            bar.update(batch)
            due = done.step % checkpoint_every == 0 and time.monotonic() - saved >= checkpoint_seconds
            if due or done.step == steps:
                _save(trainees, done, checkpoint)
                saved = time.monotonic()
    return done.history


def _take_step(trainee: Trainee, done: _Progress, batch: dict[str, Tensor], clock: _Clock) -> None:
    run = trainee.run
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


def _save(trainees: list[Trainee], done: _Progress, path: Path) -> None:
    for trainee in trainees:
        trainee.check()
    states = [trainee.state() for trainee in trainees]
    content = io.BytesIO()
    torch.save({"step": done.step, "history": done.history, "states": states}, content)
    # as bytes: a full disk is then an OSError like any other
    replace(path, content.getvalue())


def _resume(trainees: list[Trainee], path: Path) -> _Progress:
    if not path.is_file():
        return _Progress()
    content = torch.load(path, weights_only=True, map_location=trainees[0].silent.device)
    for trainee, state in zip(trainees, content["states"], strict=True):
        trainee.restore(state)
    return _Progress(content["step"], content["history"])
