"""Trains all runs of a sweep at one layer, or cross-layer transcoders at all layers. Each batch is read once for all
runs.

Interrupted training resumes bit-exactly.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...activations.outliers import OutlierLimits, outlier_limits, with_limited_moments
from ...activations.store import ActivationStore, must_compute, open_activations, read_sites
from ...config.activations import Outliers
from ...config.dictionaries import Run
from ...core.atomic_io import (
    fingerprint,
    partial_folder,
    remove_partial_folder,
    replace_folder,
    write_atomically,
)
from ...core.progress import announce, progress
from ...core.tables import HISTORY, write_table
from ...language_model.model import LanguageModel
from ..cross_layer import save_cross_layer_transcoder
from ..dictionary import save_dictionary
from .collectives import SINGLE_PROCESS, Collectives
from .cross_layer_trainer import CrossLayerTrainer, batch_key
from .paper_loss import PaperCoordinates, transcoder_coordinates
from .parameters import sample_rows
from .trainer import RunTrainer, Trainer

HISTORY_EVERY = 10
"""Number of steps between history rows."""
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 30.0
"""Minimum number of seconds between checkpoints."""
CHECKPOINT_SHARE = 1 / 20
"""Maximum fraction of the training time that is spent on writing checkpoints."""
MAX_PARALLEL_WEIGHTS = 2**22
"""Maximum number of encoder and decoder weights of a run that is trained in parallel with other runs.

Larger runs exceed glibc's per-thread arenas. Each allocation then needs new memory pages.
"""
SERIAL_SHARE = 0.5
"""Fraction of a small run's step time that does not decrease with more threads.

With d = 64 and F = 2048, two threads need 0.75 of the time of one thread.
"""

ReadBatches = Callable[[int, int], Iterator[dict[str, Tensor]]]
"""Function (start, stop) that yields the batches of the steps start:stop.

A batch maps each site (or `batch_key`) to raw activations, [token, d]. Each process gets its own part of a batch.
"""
Step = Callable[[RunTrainer], Any]
MapTrainers = Callable[[Step, list[RunTrainer]], list[Any]]


def needs_model(runs: list[Run], layer: int, activations: Path) -> bool:
    """Whether the training of `runs` needs the language model.

    The model computes the MLP's output if only the MLP's input is cached. Its norm defines the paper's coordinates of
    transcoders.
    """
    sites = {site for run in runs for site in (run.site_in, run.site_out)}
    uses_norm = any(run.loss == "paper" and run.kind == "transcoder" for run in runs)
    return uses_norm or any(must_compute(activations, site, layer) for site in sites)


def train_sweep(
    runs: list[Run],
    layer: int,
    activations: Path,
    model: LanguageModel | None,
    outputs: list[Path],
    version: str = "",
    collectives: Collectives = SINGLE_PROCESS,
    device: torch.device | None = None,
    outliers: Outliers | None = None,
) -> None:
    """Train `runs` at `layer`. Write the dictionary and history of runs[i] into the folder outputs[i].

    `model` may be None unless `needs_model`. The default `device` is that of `model`, or else the CPU.
    `version` stands for anything else that the result depends on, such as a hash of the code. A checkpoint of another
    version is not resumed. With several processes, each process calls this function with its own `collectives`. Only
    rank 0 writes into `outputs`. Rows that `outliers` leaves out or caps count as such in the moments too. By default
    all rows are kept as they are.

    Raises ValueError if activations are missing or damaged, and ArithmeticError if a run diverges.
    """
    sites = sorted({site for run in runs for site in (run.site_in, run.site_out)})
    stores = {site: open_activations(activations, site, layer, model) for site in sites}
    device = device or (torch.device("cpu") if model is None else model.device)
    outliers = outliers or Outliers()
    limits = outlier_limits(stores, outliers)
    if limits is not None:
        stores = with_limited_moments(stores, limits, runs[0].batch, device)
    trainers = _make_trainers(runs, layer, stores, model, collectives, device, limits)
    mark = _fingerprint(runs, stores, device, outliers, version)
    batch, part = runs[0].batch, collectives.batch_slice(runs[0].batch)

    def read_batches(start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        return read_sites(stores, batch, stop, start, rows=part, device=device)

    # the folder is named after the first run, because no other sweep has a run of this name
    with _shared_partial_folder(outputs[0].parent / f".{outputs[0].name}", mark, collectives) as partial:
        history = train(trainers, read_batches, partial, limits=limits)
        for trainer, output in zip(trainers, outputs, strict=True):
            dictionary = trainer.dictionary()
            if collectives.rank > 0:
                continue
            finished = partial / trainer.run.name
            save_dictionary(dictionary, finished, trainer.run.model_dump(mode="json"))
            write_table(HISTORY, history[trainer.run.name], finished / "history.parquet")
            replace_folder(finished, output)
        if collectives.rank == 0:
            remove_partial_folder(partial)


def train_cross_layer_sweep(
    runs: list[Run],
    layers: Sequence[int],
    activations: Path,
    model: LanguageModel | None,
    outputs: Sequence[Mapping[int, Path]],
    version: str = "",
    collectives: Collectives = SINGLE_PROCESS,
    device: torch.device | None = None,
    outliers: Outliers | None = None,
) -> None:
    """Train cross-layer transcoders at `layers`. Write the dictionary and history of runs[i] at layer l into the folder
    outputs[i][l].

    The other arguments and the errors are those of `train_sweep`.
    """
    layers = sorted(layers)
    sites = sorted({site for run in runs for site in (run.site_in, run.site_out)})
    stores = {
        batch_key(site, layer): open_activations(activations, site, layer, model)
        for layer in layers
        for site in sites
    }
    device = device or (torch.device("cpu") if model is None else model.device)
    outliers = outliers or Outliers()
    limits = outlier_limits(stores, outliers)
    batch = runs[0].batch
    if limits is not None:
        stores = with_limited_moments(stores, limits, batch, device)
    sample = _read_sample(stores, max(map(sample_rows, runs)), batch, device)
    if limits is not None:
        sample = limits.apply(sample)
    moments = {key: store.moments for key, store in stores.items()}
    trainers = [CrossLayerTrainer(run, layers, moments, sample, collectives, device) for run in runs]
    del sample
    mark, part = _fingerprint(runs, stores, device, outliers, version), collectives.batch_slice(batch)

    def read_batches(start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        return read_sites(stores, batch, stop, start, rows=part, device=device)

    with _shared_partial_folder(outputs[0][layers[0]].parent / ".layers", mark, collectives) as partial:
        history = train(trainers, read_batches, partial, limits=limits)
        for trainer, folders in zip(trainers, outputs, strict=True):
            transcoder = trainer.transcoder()
            if collectives.rank > 0:
                continue
            rows = history[trainer.run.name]
            finished = {layer: partial / trainer.run.name / f"layer{layer}" for layer in layers}
            save_cross_layer_transcoder(transcoder, finished, trainer.run.model_dump(mode="json"))
            for layer, folder in finished.items():
                own = [row for row in rows if row["layer"] == layer]
                write_table(HISTORY, own, folder / "history.parquet")
            for layer, folder in finished.items():
                replace_folder(folder, folders[layer])
        if collectives.rank == 0:
            remove_partial_folder(partial)


def _fingerprint(
    runs: list[Run],
    stores: Mapping[str, ActivationStore],
    device: torch.device,
    outliers: Outliers,
    version: str,
) -> str:
    """Returns a hash of everything that a training depends on."""
    return fingerprint(
        runs=[run.model_dump(mode="json") for run in runs],
        activations={
            site: {
                "stored": [str(store.stored.folder), store.stored.order, store.stored.number_format],
                "moments": store.moments.to_json(),
            }
            for site, store in stores.items()
        },
        device=device.type,
        outliers=outliers.model_dump(mode="json"),
        version=version,
    )


@dataclass
class _SweepState:
    """`step` is the number of steps taken. `outliers` is the number of rows so far that were left out or capped.
    `history` maps run names to history rows."""

    step: int = 0
    outliers: int = 0
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def train(
    trainers: Sequence[RunTrainer],
    read_batches: ReadBatches,
    partial: Path,
    checkpoint_every: int = 50,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    checkpoint_share: float = CHECKPOINT_SHARE,
    limits: OutlierLimits | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train all runs to their last step. Returns a dict from run name to HISTORY rows.

    Training resumes from a checkpoint in the folder `partial`. The caller ensures that the checkpoint belongs to this
    training. Checkpoints are written at multiples of `checkpoint_every` steps and after the last step. The minimum time
    between checkpoints is `checkpoint_seconds`. Writing checkpoints takes at most the fraction `checkpoint_share` of
    the time. Batches pass through `limits`. Raises ArithmeticError if a run diverges.
    """
    collectives = trainers[0].collectives
    state = _resume(trainers, partial, collectives)
    steps = max(trainer.steps for trainer in trainers)
    title, batch = trainers[0].title, trainers[0].run.batch
    saved, pause = time.monotonic(), checkpoint_seconds
    label, silent = f"dictionaries {title}", collectives.rank > 0
    with (
        progress(label, steps * batch, "tokens", state.step * batch, silent=silent) as bar,
        map_trainers(trainers) as map_active,
    ):
        for local_batch in read_batches(state.step, steps):
            x = collectives.gather_batch(local_batch)
            if limits is not None:
                state.outliers += int(collectives.sum_over_tokens(limits.outliers(x).sum()))
                x = limits.apply(x)
            active = [trainer for trainer in trainers if state.step < trainer.steps]
            all_terms = map_active(
                lambda trainer, i=state.step, x=x: trainer.train_on(i, x),
                active,
            )
            for trainer, terms in zip(active, all_terms, strict=True):
                if (state.step + 1) % HISTORY_EVERY == 0 or state.step + 1 == trainer.steps:
                    rows = trainer.history_rows(state.step, terms)
                    history = state.history.setdefault(trainer.run.name, [])
                    history += [row | {"outliers": state.outliers} for row in rows]
            state.step += 1
            bar.update(batch)
            began = time.monotonic()
            due = state.step % checkpoint_every == 0 and collectives.broadcast(began - saved >= pause)
            if due or state.step == steps:
                _save_checkpoint(trainers, state, partial, collectives)
                saved = time.monotonic()
                pause = max(checkpoint_seconds, (1 / checkpoint_share - 1) * (saved - began))
    if limits is not None and not silent:
        what = "left out" if limits.action == "drop" else "capped"
        text = f"{title}: {state.outliers} of {steps * batch} tokens were {what} (activations.outliers)"
        announce("dictionaries", text)
    return state.history


@contextmanager
def map_trainers(trainers: Sequence[RunTrainer]) -> Iterator[MapTrainers]:
    """Yields a function (step, trainers) that returns [step(trainer) for trainer in trainers].

    On a CPU, small runs are trained in parallel threads if this is faster. Each parallel run gets an equal part of
    torch's threads. Results are bit-exact only for the same runs and the same number of threads.
    """
    threads = torch.get_num_threads()
    parallel = parallel_runs(len(trainers), threads) if all(map(_is_small, trainers)) else 1
    if parallel == 1:
        yield lambda step, active: [step(trainer) for trainer in active]
        return
    share = threads // parallel
    torch.set_num_threads(share)
    try:
        # each thread has its own setting of torch's number of threads
        with ThreadPoolExecutor(parallel, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield lambda step, active: list(pool.map(step, active))
    finally:
        torch.set_num_threads(threads)


def parallel_runs(runs: int, threads: int) -> int:
    """Returns the number of parallel runs that minimises the time for a step of all runs.

    If several numbers are equally fast, returns the largest number.
    """

    def relative_time(parallel: int) -> float:
        rounds, share = -(-runs // parallel), threads // parallel
        return rounds * (SERIAL_SHARE + (1 - SERIAL_SHARE) / share)

    return min(range(1, min(runs, threads) + 1), key=lambda parallel: (relative_time(parallel), -parallel))


def _is_small(trainer: RunTrainer) -> bool:
    # matrices of features, without skip connections
    matrices = [
        weight for weight in trainer.weights() if weight.ndim == 2 and len(weight) == trainer.run.width
    ]
    single_process = trainer.collectives.world_size == 1
    return (
        single_process
        and trainer.device.type == "cpu"
        and sum(weight.numel() for weight in matrices) <= MAX_PARALLEL_WEIGHTS
    )


def _save_checkpoint(
    trainers: Sequence[RunTrainer], state: _SweepState, partial: Path, collectives: Collectives
) -> None:
    """Write a checkpoint. With tensor parallelism, each rank writes its own file.

    Rank 0 writes last. Without rank 0's file, the files of the other ranks are not valid.
    """
    for trainer in trainers:
        trainer.check()
    file = _checkpoint_file(partial, state.step, collectives)
    if collectives.rank > 0 and collectives.is_tensor_parallel:
        _write_checkpoint(trainers, state, file)
    collectives.barrier()
    if collectives.rank == 0:
        _write_checkpoint(trainers, state, file)
    collectives.barrier()
    for old in partial.glob(_rank_checkpoint("*", collectives.rank)):
        if old != file:
            old.unlink()


def _write_checkpoint(trainers: Sequence[RunTrainer], state: _SweepState, file: Path) -> None:
    states = [trainer.state() for trainer in trainers]
    content = io.BytesIO()
    torch.save({**vars(state), "states": states}, content)
    # converted to bytes first, so that a full disk raises OSError
    write_atomically(file, content.getbuffer())


def _checkpoint_file(partial: Path, step: int, collectives: Collectives) -> Path:
    """Returns this rank's checkpoint file after `step` steps.

    With tensor parallelism, each rank has its own file. Otherwise all ranks share one file.
    """
    separate = collectives.is_tensor_parallel and collectives.rank > 0
    return partial / (_rank_checkpoint(step, collectives.rank) if separate else CHECKPOINT)


def _rank_checkpoint(step: int | str, rank: int) -> str:
    return f"checkpoint-rank{rank}-step{step}.pt"


def _resume(trainers: Sequence[RunTrainer], partial: Path, collectives: Collectives) -> _SweepState:
    main, device = partial / CHECKPOINT, trainers[0].device
    content = _read_checkpoint(main, device) if collectives.rank == 0 and main.is_file() else None
    step = collectives.broadcast(0 if content is None else content["step"])
    if step == 0:
        return _SweepState()
    content = content or _read_checkpoint(_checkpoint_file(partial, step, collectives), device)
    for trainer, state in zip(trainers, content["states"], strict=True):
        trainer.restore(state)
    return _SweepState(content["step"], content["outliers"], content["history"])


def _read_checkpoint(file: Path, device: torch.device) -> dict[str, Any]:
    return torch.load(file, weights_only=True, map_location=device)


@contextmanager
def _shared_partial_folder(output: Path, mark: str, collectives: Collectives) -> Iterator[Path]:
    """Yields the partial folder, which all processes share. Rank 0 holds the folder's lock."""
    if collectives.rank > 0:
        yield Path(collectives.broadcast(""))
        return
    with partial_folder(output, mark) as folder:
        yield Path(collectives.broadcast(str(folder)))


def _make_trainers(
    runs: list[Run],
    layer: int,
    stores: Mapping[str, ActivationStore],
    model: LanguageModel | None,
    collectives: Collectives,
    device: torch.device,
    limits: OutlierLimits | None,
) -> list[Trainer]:
    sample = _read_sample(stores, max(map(sample_rows, runs)), runs[0].batch, device)
    if limits is not None:
        sample = limits.apply(sample)
    trainers = []
    for run in runs:
        moments = stores[run.site_in].moments, stores[run.site_out].moments
        pair = sample[run.site_in], sample[run.site_out]
        if run.loss != "paper":
            paper = None
        elif run.kind == "sae":
            paper = PaperCoordinates(None, centred=False)
        else:
            assert model is not None
            paper = transcoder_coordinates(model, layer)
        trainers.append(Trainer(run, layer, *moments, pair, paper, collectives, device))
    return trainers


def _read_sample(
    stores: Mapping[str, ActivationStore], rows: int, batch: int, device: torch.device
) -> dict[str, Tensor]:
    """Returns the first `rows` rows of each site, on the CPU. Stored rows are in random order.

    If a site has fewer rows, fewer rows are returned for all sites. A GPU may lack the memory for one row per feature.
    """
    rows = min(rows, *(store.rows for store in stores.values()))
    batches = read_sites(stores, batch, -(-rows // batch), device=device)
    on_cpu = [{site: x.cpu() for site, x in each.items()} for each in batches]
    return {site: torch.cat([each[site] for each in on_cpu])[:rows] for site in stores}
