"""The cost of a stage's work on GPUs: how many share a job, what bounds it, how long it takes."""

import math

from .machine import Gpus, MachineRates
from .work import Cost, Load, Work

PRODUCT_RATE = 0.93
"""Share of the product's rate that is reached by those of a step (docs/benchmarks/training.md)."""
WRITERS = 8
"""Threads of a job that write activations at most, as `activations.cache` has it."""
USABLE = 0.9
"""Share of a GPU's memory that arrays can take."""
WRITTEN, READ = 2e9, 2.5e9
"""Bytes of activations that one thread writes a second, or reads (docs/benchmarks/caching.md)."""
SAVED = 1e9
"""Bytes of a checkpoint that one process copies and writes a second: assumed."""
SAVE_SECONDS, SAVE_SHARE = 30, 1 / 20
"""Least time between checkpoints, and the share of the time that they take at most."""
ACTIVATIONS_PER_SECOND = 2_000_000
"""Activations sorted and written by one job."""
JOB_SECONDS = 8.0
"""Start of a job: Snakemake, imports, loading the model."""
TOKENS_PER_SECOND = 300_000
"""Text generated or tokenised, and packed, by one core."""


def cost_on_gpus(work: Work, machine: MachineRates) -> Cost:
    """What the work costs on a machine with GPUs."""
    gpus = machine.gpus
    assert gpus is not None
    if work.load == Load():
        return _cost_on_cores(work, machine, gpus)
    share = gpus_for(work, gpus)
    abreast = max(1, min(work.jobs, gpus.count // share))
    times = {**_job_times(work, machine, share, abreast), **_disk_times(work, machine)}
    rounds = math.ceil(work.jobs / abreast)
    # what a job does and what the disk takes of all of them go on at once
    seconds = max(times.values()) + work.starts / work.jobs * rounds * JOB_SECONDS
    seconds += rounds * work.sorted / work.jobs / ACTIVATIONS_PER_SECOND
    seconds *= 1 + _saving(work, machine, share, abreast)
    fits = share <= gpus.count
    processes = min(gpus.node, abreast * share) / (1 if work.splits else min(gpus.node, share))
    return Cost(
        work.stage,
        work.tokens,
        work.disk,
        memory=processes * (work.host + work.checkpoint / share),
        operations=work.operations,
        seconds=seconds if fits else math.inf,
        network=_network(work, gpus, share),
        gpu=work.held / share + work.beside,
        share=share,
        busy=min(abreast * share, gpus.count) if fits else 0,
        bound=max(times, key=lambda name: times[name]),
    )


def gpus_for(work: Work, gpus: Gpus) -> int:
    """GPUs that have to share a job."""
    room = USABLE * gpus.memory - work.beside
    if room <= 0:
        return gpus.count + 1
    least = max(1, math.ceil(work.held / room))
    if not work.even:
        return least
    return next(n for n in range(least, work.even + 1) if work.even % n == 0)


def _cost_on_cores(work: Work, machine: MachineRates, gpus: Gpus) -> Cost:
    times = {
        "one core": 0.0,
        "download": work.download / machine.download,
        "writing": work.disk / machine.write,
    }
    if work.stage == "corpus":
        times["one core"] = work.tokens / TOKENS_PER_SECOND
    seconds = max(times.values()) + work.starts * JOB_SECONDS
    bound = max(times, key=lambda name: times[name])
    # no work, no bound
    return Cost(
        work.stage, work.tokens, work.disk, work.host, work.operations, seconds if work.jobs else 0.0,
        network=_network(work, gpus, 1), bound=bound if times[bound] else "",
    )  # fmt: skip


def _job_times(work: Work, machine: MachineRates, share: int, abreast: int) -> dict[str, float]:
    """Seconds of all rounds by what GPUs do, and by what threads do beside them."""
    gpus, load = machine.gpus, work.load
    assert gpus is not None
    rounds = math.ceil(work.jobs / abreast)
    operations = load.low / machine.operations_per_second + load.full / gpus.float32
    parts = {
        "products": operations / PRODUCT_RATE / share,
        "GPU memory": load.moved / gpus.bandwidth / share + load.repeated / gpus.bandwidth,
    }
    if share > 1 and work.splits:
        parts["network"] = load.exchanged / (gpus.link if share <= gpus.node else gpus.network / gpus.node)
    whole, largest = sum(parts.values()), max(parts, key=lambda name: parts[name])
    threads = max(1, machine.cores * share // gpus.node)
    # half of a job's threads write, as many as there are
    times = {largest: whole, "writers": work.written / (WRITTEN * min(WRITERS, max(1, threads // 2)))}
    if work.splits:
        times["readers"] = work.read / (READ * threads)
    return {name: seconds * rounds / work.jobs for name, seconds in times.items()}


def _disk_times(work: Work, machine: MachineRates) -> dict[str, float]:
    return {"disk, writing": work.written / machine.write, "disk, reading": work.read / machine.read}


def _saving(work: Work, machine: MachineRates, share: int, abreast: int) -> float:
    """Seconds of saving for each of training."""
    seconds = work.checkpoint / min(SAVED * share, machine.write / abreast)
    return min(SAVE_SHARE / (1 - SAVE_SHARE), seconds / SAVE_SECONDS)


def _network(work: Work, gpus: Gpus, share: int) -> float:
    """Bytes from outside, between nodes, and, where there are several, to and from the disk."""
    crossed = work.download
    if gpus.nodes > 1:
        crossed += work.disk + work.read
    if work.splits and share > gpus.node:
        crossed += work.load.exchanged * share
    return crossed
