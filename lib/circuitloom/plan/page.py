"""Writes a plan as text: a table of costs, and then lines about exceeded limits and idle GPUs."""

import math
from collections.abc import Iterator

from ..config import Study
from .costs import USABLE_GPU_MEMORY, works_of
from .machine import Gpus, MachineRates
from .sizes import model_bytes
from .work import Cost, Work

FILES = 1_000_000
"""Number of files above which a stage is reported."""
IDLE_SECONDS = 3600
"""Number of seconds above which a stage with idle GPUs is reported."""


def limits(study: Study, costs: list[Cost], machine: MachineRates) -> Iterator[str]:
    """Yields a line per limit that a stage exceeds, and per stage that leaves GPUs idle. Without GPUs, yields
    nothing."""
    gpus = machine.gpus
    if gpus is None:
        return
    for work, cost in zip(works_of(study), costs, strict=True):
        yield from (f"{work.stage}: {line}" for line in _memory_limits(study, work, cost, machine, gpus))
        if cost.disk > machine.free_bytes:
            yield f"{work.stage}: {cost.disk / 1e12:.3g} TB of disk, and {machine.free_bytes / 1e12:.3g} TB are there"
        if work.files > FILES:
            yield f"{work.stage}: {work.files / 1e6:.3g} million files; raise activations.shard_rows"
        # a measured machine runs its jobs one after another on one GPU
        if 0 < cost.busy_gpus < gpus.count and cost.seconds > IDLE_SECONDS and not machine.measured:
            yield (
                f"{work.stage}: {work.jobs} {'job' if work.jobs == 1 else 'jobs'} of {cost.gpus_per_job} "
                f"{'GPU' if cost.gpus_per_job == 1 else 'GPUs'}: {gpus.count - cost.busy_gpus} of {gpus.count} are idle"
            )


def _memory_limits(study: Study, work: Work, cost: Cost, machine: MachineRates, gpus: Gpus) -> Iterator[str]:
    one = f"one GPU holds {USABLE_GPU_MEMORY * gpus.memory / 1e9:.3g} GB"
    needed = f"a job holds {(work.gpu_memory + work.gpu_memory_replicated) / 1e9:.4g} GB, {one}"
    if cost.gpus_per_job > gpus.count:
        yield f"{needed}: not even all {gpus.count} GPUs would do ({cost.gpus_per_job} would)"
    elif cost.gpus_per_job > 1 and work.can_split:
        yield f"{needed}: its features have to be split over {cost.gpus_per_job} GPUs"
    elif cost.gpus_per_job > 1:
        yield f"{needed}: {cost.gpus_per_job} would have to share it, and no code does that; costs are as if it did"
    model, room = model_bytes(study), USABLE_GPU_MEMORY * gpus.memory
    if work.stage == "dictionaries" and work.tokens and cost.gpu_memory + model > room:
        yield (
            f"each process loads the whole model ({model / 1e9:.3g} GB) for one layer's MLP, which "
            "does not fit beside; costs are as if it loaded the MLP alone"
        )
    if cost.memory > machine.memory:
        yield f"{cost.memory / 1e12:.3g} TB of a node's memory, and {machine.memory / 1e12:.3g} TB are there"


def describe(study: Study, costs: list[Cost], machine: MachineRates) -> Iterator[str]:
    """Yields the lines of the table of costs, and then the lines of `limits`."""
    generated = " (generated)" if study.corpus.generated else ""
    yield f"study {study.name}: {len(study.layers)} layers, {len(study.runs)} runs{generated}"
    on_gpus = machine.gpus is not None
    head = f"{'stage':<16}{'tokens':>10}{'disk':>12}{'network':>12}{'memory':>12}"
    yield (
        head
        + (f"{'GPU':>10}{'GPUs':>10}" if on_gpus else "")
        + f"{'operations':>14}{'time':>14}"
        + ("  bound by" if on_gpus else "")
    )
    for cost in costs:
        yield _row(cost.stage, _short(cost.tokens), cost, on_gpus)
    known = [cost.seconds for cost in costs if math.isfinite(cost.seconds)]
    total = Cost(
        "all",
        tokens=0,
        disk=sum(cost.disk for cost in costs),
        memory=max(cost.memory for cost in costs),
        operations=sum(cost.operations for cost in costs),
        seconds=sum(known),
        network=sum(cost.network for cost in costs),
    )
    yield _row("all that fits" if len(known) < len(costs) else "all", "", total, on_gpus)
    rate, free = _short(machine.operations_per_second), _short(machine.free_bytes)
    if machine.gpus is None or machine.measured:
        yield f"on {machine.device}: {rate} operations a second measured; {free}B of disk free"
    else:
        copied = _short(machine.gpus.bandwidth)
        yield (
            f"on {machine.device}: {rate} operations and {copied}B a second a GPU, as data sheets and shares of them "
            f"have it; {free}B of disk"
        )
    yield from limits(study, costs, machine)


def _row(stage: str, tokens: str, cost: Cost, on_gpus: bool) -> str:
    row = (
        f"{stage:<16}{tokens:>10}{_short(cost.disk) + 'B':>12}{_short(cost.network) + 'B':>12}"
        f"{_short(cost.memory) + 'B':>12}"
    )
    if on_gpus:
        gpus = f"{cost.busy_gpus // cost.gpus_per_job} x {cost.gpus_per_job}" if cost.busy_gpus else ""
        row += f"{_short(cost.gpu_memory) + 'B' if cost.gpu_memory else '':>10}{gpus:>10}"
    time = _time(cost.seconds)
    bottleneck = cost.bottleneck if math.isfinite(cost.seconds) else ""
    return f"{row}{_short(cost.operations):>14}{time:>14}  {bottleneck}".rstrip()


def _short(value: float) -> str:
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} "


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if math.isinf(seconds):
        return "does not fit"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
