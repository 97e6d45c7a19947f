"""Training a sweep: all runs of a layer in one process, over one read of its activations, resumable to the bit."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from ..progress import progress
from .objective import Terms
from .trainee import Trainee, learning_rate

HISTORY_EVERY = 10
"""Steps between rows of the history."""
CHECKPOINT = "checkpoint.pt"

Read = Callable[[int, int], Iterator[dict[str, Tensor]]]
"""(first step, steps) to batches: raw activations [token, d] by site."""


@dataclass
class _Progress:
    """How far a sweep has come."""

    step: int = 0
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def train(
    trainees: list[Trainee], read: Read, partial: Path, fingerprint: str, checkpoint_every: int = 250
) -> dict[str, list[dict[str, Any]]]:
    """Train all runs to their ends; each run's history rows (table HISTORY), by name.

    Checkpoints lie in the folder `partial`, with the `fingerprint` of what the result depends on: a killed training goes
    on from there, another's checkpoint is not continued. The caller removes the folder once the results are saved.
    Raises ArithmeticError where a run diverges, ValueError where another process trains into the same folder.
    """
    partial.mkdir(parents=True, exist_ok=True)
    with FileLock(partial.with_suffix(".lock")):
        done = _resume(trainees, partial / CHECKPOINT, fingerprint)
        steps = max(trainee.steps for trainee in trainees)
        layer, batch = trainees[0].layer, trainees[0].run.batch
        label = f"dictionaries layer {layer}"
        seconds = dict.fromkeys((t.run.name for t in trainees), 0.0)
        with progress(label, steps * batch, "tokens", done.step * batch) as bar:
            for batch_by_site in read(done.step, steps - done.step):
                for trainee in trainees:
                    if done.step < trainee.steps:
                        _take_step(trainee, done, batch_by_site, seconds)
                done.step += 1
                bar.update(batch)
                if done.step % checkpoint_every == 0 and done.step < steps:
                    _save(trainees, done, partial / CHECKPOINT, fingerprint)
        return done.history


def _take_step(trainee: Trainee, done: _Progress, batch: dict[str, Tensor], seconds: dict[str, float]) -> None:
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
        **{name: float(getattr(terms, name)) for name in names},
        "dead": trainee.dead_share,
        "learning_rate": learning_rate(trainee.run, step, trainee.steps),
        "tokens_per_second": tokens_per_second,
    }


def _save(trainees: list[Trainee], done: _Progress, path: Path, fingerprint: str) -> None:
    """Replace the checkpoint, once the new one is whole and on the disk."""
    content = {
        "fingerprint": fingerprint,
        "step": done.step,
        "history": done.history,
        "states": [trainee.state() for trainee in trainees],
    }
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _resume(trainees: list[Trainee], path: Path, fingerprint: str) -> _Progress:
    if not path.is_file():
        return _Progress()
    content = torch.load(path, weights_only=True, map_location=trainees[0].silent.device)
    if content["fingerprint"] != fingerprint:
        return _Progress()
    for trainee, state in zip(trainees, content["states"], strict=True):
        trainee.restore(state)
    return _Progress(content["step"], content["history"])
