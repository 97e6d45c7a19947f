"""Training a sweep: all runs of a layer in one process, over one read of its activations, resumable to the bit."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..partial import replacing
from ..progress import progress
from .objective import Terms
from .trainee import Trainee, learning_rate

HISTORY_EVERY = 10
"""Steps between rows of the history."""
CHECKPOINT = "checkpoint.pt"

Read = Callable[[int, int], Iterator[dict[str, Tensor]]]
"""(first step, last step, exclusive) to batches: raw activations [token, d] by site."""


@dataclass
class _Progress:
    """How far a sweep has come."""

    step: int = 0
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def train(
    trainees: list[Trainee], read: Read, partial: Path, checkpoint_every: int = 250
) -> dict[str, list[dict[str, Any]]]:
    """Train all runs to their ends; each run's history rows (table HISTORY), by name.

    A checkpoint in the folder `partial` is continued: the caller sees to it that it is this training's own.
    Raises ArithmeticError where a run diverges.
    """
    checkpoint = partial / CHECKPOINT
    done = _resume(trainees, checkpoint)
    steps = max(trainee.steps for trainee in trainees)
    layer, batch = trainees[0].layer, trainees[0].run.batch
    seconds = dict.fromkeys((t.run.name for t in trainees), 0.0)
    with progress(f"dictionaries layer {layer}", steps * batch, "tokens", done.step * batch) as bar:
        for batch_by_site in read(done.step, steps):
            for trainee in trainees:
                if done.step < trainee.steps:
                    _take_step(trainee, done, batch_by_site, seconds)
            done.step += 1
            bar.update(batch)
            if done.step % checkpoint_every == 0 or done.step == steps:
                _save(trainees, done, checkpoint)
    return done.history


def _take_step(
    trainee: Trainee, done: _Progress, batch: dict[str, Tensor], seconds: dict[str, float]
) -> None:
    run = trainee.run
    began = time.perf_counter()
    terms = trainee.step(done.step, batch[run.site_in], batch[run.site_out])
    seconds[run.name] += time.perf_counter() - began
    if (done.step + 1) % HISTORY_EVERY == 0 or done.step + 1 == trainee.steps:
        rows = done.history.setdefault(run.name, [])
        since = done.step + 1 - (rows[-1]["step"] if rows else 0)
        rate = min(since, HISTORY_EVERY) * run.batch / max(seconds[run.name], 1e-9)
        rows.append(_row(trainee, done.step, terms, rate))
        seconds[run.name] = 0.0


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
    states = [trainee.state() for trainee in trainees]
    with replacing(path) as new:
        torch.save({"step": done.step, "history": done.history, "states": states}, new)


def _resume(trainees: list[Trainee], path: Path) -> _Progress:
    if not path.is_file():
        return _Progress()
    content = torch.load(path, weights_only=True, map_location=trainees[0].silent.device)
    for trainee, state in zip(trainees, content["states"], strict=True):
        trainee.restore(state)
    return _Progress(content["step"], content["history"])
