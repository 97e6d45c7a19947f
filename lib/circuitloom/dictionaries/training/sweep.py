"""Training a sweep at one layer: from cached activations to a folder per run.

All runs of the sweep train on each batch that is read; training resumes bit-exactly after a kill.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...activations.store import ActivationStore, open_activations, read_sites
from ...config.dictionaries import Run
from ...core.atomic_io import discard, fingerprint, move, partial_folder, replace
from ...core.progress import progress
from ...core.tables import HISTORY, write_table
from ...language_model.model import LanguageModel
from ..dictionary import save_dictionary
from .collectives import ALONE, Collectives
from .objective import Terms
from .paper_loss import PaperCoordinates, transcoder_coordinates
from .trainer import Trainer, learning_rate

SMALL = 2**22
"""Weights of a run's two matrices up to which runs are taken side by side.

What larger ones allocate does not fit the arenas that glibc has for threads, and gets fresh pages each time.
"""
SERIAL = 0.5
"""Share of a small run's step that one thread does: at d = 64, F = 2048 two take 0.75 of the time of one."""

T = TypeVar("T")
ForEach = Callable[[Callable[[Trainer], None]], None]
"""Calls a function for each run, and returns when all are done; raises what one raised."""


@contextmanager
def run_in_parallel(trainees: list[Trainer]) -> Iterator[ForEach]:
    """How to take each run's step; for as long as the body runs, torch has the threads of one run.

    Which, depends on the runs and on torch's threads alone, as do then the last bits of what is trained.
    """
    threads = torch.get_num_threads()
    abreast = parallel_runs(len(trainees), threads) if all(map(_is_small, trainees)) else 1
    if abreast == 1:
        yield lambda function: _in_turn(function, trainees)
        return
    share = threads // abreast
    torch.set_num_threads(share)
    try:
        # each of a pool's threads has a number of its own
        with ThreadPoolExecutor(abreast, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield lambda function: _in_turn(Future.result, [pool.submit(function, each) for each in trainees])
    finally:
        torch.set_num_threads(threads)


def parallel_runs(runs: int, threads: int) -> int:
    """How many runs to take side by side, for a step of all to take the least time; where several do, the most."""

    def time(abreast: int) -> float:
        rounds, share = -(-runs // abreast), threads // abreast
        return rounds * (SERIAL + (1 - SERIAL) / share)

    return min(range(1, min(runs, threads) + 1), key=lambda abreast: (time(abreast), -abreast))


def _is_small(trainee: Trainer) -> bool:
    weights = trainee.parameters.W_enc, trainee.parameters.W_dec
    alone = trainee.reduction.processes == 1
    return alone and not weights[0].is_cuda and sum(each.numel() for each in weights) <= SMALL


def _in_turn(function: Callable[[T], None], items: Iterable[T]) -> None:
    for item in items:
        function(item)


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
    trainees: list[Trainer],
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
        run_in_parallel(trainees) as for_each,
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


def _take_step(trainee: Trainer, done: _Progress, batch: dict[str, Tensor], clock: _Clock) -> None:
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


def _row(trainee: Trainer, step: int, terms: Terms, tokens_per_second: float) -> dict[str, Any]:
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


def _save(trainees: list[Trainer], done: _Progress, partial: Path, reduction: Collectives) -> None:
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


def _write(trainees: list[Trainer], done: _Progress, file: Path) -> None:
    states = [trainee.state() for trainee in trainees]
    content = io.BytesIO()
    torch.save({"step": done.step, "history": done.history, "states": states}, content)
    # as bytes: a full disk is then an OSError like any other
    replace(file, content.getbuffer())


def _file(partial: Path, step: int, reduction: Collectives) -> Path:
    """Where a process finds its state: all in one file, unless each has features of its own."""
    apart = reduction.splits_features and reduction.rank > 0
    return partial / (_shard(step, reduction.rank) if apart else CHECKPOINT)


def _shard(step: int | str, rank: int) -> str:
    return f"checkpoint-process{rank}-step{step}.pt"


def _resume(trainees: list[Trainer], partial: Path, reduction: Collectives) -> _Progress:
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


def train_sweep(
    runs: list[Run],
    layer: int,
    activations: Path,
    model: LanguageModel,
    outputs: list[Path],
    version: str = "",
    reduction: Collectives = ALONE,
) -> None:
    """Train `runs` on `layer` and write each one's dictionary and history into its folder of `outputs`.

    `version` is whatever else the result depends on, such as a hash of the code: another's work is not continued.
    Where several processes train together, each calls this with its `reduction`, and the first one writes.

    Raises ValueError where activations are missing or damaged, ArithmeticError where a run diverges.
    """
    sites = sorted({site for run in runs for site in (run.site_in, run.site_out)})
    sources = {site: open_activations(activations, site, layer, model) for site in sites}
    trainees = _trainees(runs, layer, sources, model, reduction)
    mark = fingerprint(
        runs=[run.model_dump(mode="json") for run in runs],
        activations={
            site: {
                "stored": [str(source.stored.folder), source.stored.order, source.stored.number_format],
                "moments": source.moments.to_json(),
            }
            for site, source in sources.items()
        },
        device=model.device.type,
        version=version,
    )
    # named after the first run, whose name is no other sweep's
    with _partial(outputs[0].parent / f".{outputs[0].name}", mark, reduction) as partial:
        read = _reader(sources, runs[0].batch, model.device, reduction)
        history = train(trainees, read, partial)
        for trainee, output in zip(trainees, outputs, strict=True):
            dictionary = trainee.dictionary()
            if reduction.rank > 0:
                continue
            ready = partial / trainee.run.name
            save_dictionary(dictionary, ready, trainee.run.model_dump(mode="json"))
            write_table(HISTORY, history[trainee.run.name], ready / "history.parquet")
            move(ready, output)
        if reduction.rank == 0:
            discard(partial)


@contextmanager
def _partial(output: Path, mark: str, reduction: Collectives) -> Iterator[Path]:
    """The partial folder of all processes, held by the first."""
    if reduction.rank > 0:
        yield Path(reduction.first(""))
        return
    with partial_folder(output, mark) as folder:
        yield Path(reduction.first(str(folder)))


def _trainees(
    runs: list[Run],
    layer: int,
    sources: Mapping[str, ActivationStore],
    model: LanguageModel,
    reduction: Collectives,
) -> list[Trainer]:
    sample = _sample(sources, max(run.width for run in runs), runs[0].batch, model.device)
    trainees = []
    for run in runs:
        moments = sources[run.site_in].moments, sources[run.site_out].moments
        pair = sample[run.site_in], sample[run.site_out]
        paper = _paper(run, layer, model)
        trainees.append(Trainer(run, layer, *moments, pair, paper, reduction, model.device))
    return trainees


def _sample(
    sources: Mapping[str, ActivationStore], rows: int, batch: int, device: torch.device
) -> dict[str, Tensor]:
    """The first rows of each site, which are tokens of all documents: as many as there are features, or all.

    On the CPU: a GPU may have no room for those of all features.
    """
    few = min(rows, *(source.rows for source in sources.values()))
    batches = read_sites(sources, batch, -(-few // batch), device=device)
    pieces = [{site: x.cpu() for site, x in each.items()} for each in batches]
    return {site: torch.cat([piece[site] for piece in pieces])[:few] for site in sources}


def _reader(
    sources: Mapping[str, ActivationStore], batch: int, device: torch.device, reduction: Collectives
) -> Read:
    share = reduction.share(batch)
    return lambda start, stop: read_sites(sources, batch, stop, start, share=share, device=device)


def _paper(run: Run, layer: int, model: LanguageModel) -> PaperCoordinates | None:
    if run.loss != "paper":
        return None
    if run.kind == "sae":
        return PaperCoordinates(None, centred=False)
    return transcoder_coordinates(model, layer)
