"""Estimates the cost of a study before anything runs: tokens, disk, memory, operations and hours of each stage."""

import math

from ..activations.cache import MAX_WRITER_THREADS
from ..config import ModelShape, Study
from ..dictionaries.training.sweep import CHECKPOINT_SECONDS, CHECKPOINT_SHARE
from .machine import Gpus, MachineRates
from .sizes import corpus_tokens
from .stages import (
    activations,
    cases,
    circuits,
    corpus,
    evaluation,
    exchange,
    features,
    labelled_runs,
    labels,
    language_model,
)
from .training import dictionaries
from .work import Cost, GpuLoad, Work

NARROW, WIDE = 128, 640
"""Widths of the residual stream (d_model) to which a CPU's rates are fitted. In between, rates are interpolated
linearly in log(d_model)."""
SHARE_OF_PEAK = {
    "language_model": (0.55, 1.0), "activations": (0.75, 1.0), "dictionaries": (0.22, 0.36), "evaluation": (0.7, 0.9),
    "features": (0.5, 0.9), "circuits": (0.05, 0.11), "cases": (0.35, 0.4), "exchange": (1.0, 1.0),
    "labels": (1.0, 1.0),
}  # fmt: skip
"""Fraction of the measured rate of matrix products that each stage reaches on CPUs, in models up to `NARROW` and from
`WIDE` on: products of wide models take more of the time, and reach more of the rate. Pretraining and training use the
fast number format, all other stages float32.

Fitted to quickstart, stories260k and gemma-3-270m-small on a processor without bfloat16 (docs/benchmarks/quickstart.md,
gemma-3-270m.md). The narrow values of pretraining and training lie between two processors, whose values differ by
factors of 1.4 and 1.9. Exports and labels compute no matrix products.
"""
UNFUSED_RATE = (9e9, 3e10)
"""Bytes per second of a forward pass on CPUs, outside matrix products, in models with gated MLPs: their norms, rotary
embeddings and gates are several operations each. For `NARROW` and `WIDE` models. In other models, this time is part of
SHARE_OF_PEAK."""
PRODUCT_SHARE_OF_STEP = 0.93
"""Fraction of the measured rate of matrix products that the products of a GPU training step reach
(docs/benchmarks/training.md)."""
USABLE_GPU_MEMORY = 0.9
"""Fraction of a GPU's memory that arrays can use."""
WRITE_RATE, READ_RATE = 2e9, 2.5e9
"""Bytes of activations that one thread writes or reads per second (docs/benchmarks/caching.md)."""
CHECKPOINT_RATE = 1e9
"""Bytes of a checkpoint that one process copies and writes per second. This rate is assumed, not measured."""
ACTIVATIONS_PER_SECOND = 2_000_000
"""Number of activations that one job sorts and writes per second."""
MATCHES_PER_SECOND = 1_500_000
"""Number of activations that one core matches with concepts per second."""
JOB_SECONDS = 6.0
"""Seconds until a job starts its work: Snakemake starts, modules are imported, and the model is loaded."""


def plan(study: Study, machine: MachineRates) -> list[Cost]:
    """Returns the cost of each stage, in the order in which stages run."""
    if machine.gpus is None:
        return [_cost_without_gpu(work, machine, study.shape) for work in works_of(study)]
    return [cost_on_gpus(work, machine, machine.gpus) for work in works_of(study)]


def works_of(study: Study) -> list[Work]:
    """Returns the work of each stage, in the order in which stages run."""
    train, held_out = corpus_tokens(study)
    return [
        corpus(study, train + held_out),
        language_model(study, held_out),
        activations(study, train),
        dictionaries(study),
        evaluation(study, held_out),
        features(study, held_out),
        circuits(study),
        *([labels(study, held_out)] if labelled_runs(study) or study.circuits.prompts else []),
        cases(study, held_out),
        # a stage that makes nothing has no line
        *([exchange(study)] if study.exported_runs else []),
    ]


def check_disk(costs: list[Cost], machine: MachineRates) -> None:
    """Raise ValueError if the disk cannot hold the outputs of all stages. The message names a remedy."""
    needed = sum(cost.disk for cost in costs)
    if needed > machine.free_bytes:
        largest = max(costs, key=lambda cost: cost.disk)
        raise ValueError(
            f"plan: the study needs {needed / 1e9:.3g} GB and {machine.free_bytes / 1e9:.3g} GB are free; make room, "
            f"or lower what stage {largest.stage} writes ({largest.disk / 1e9:.3g} GB: fewer tokens, layers or sites)"
        )


_SMALLER = {
    "corpus": "use shorter documents",
    "language_model": "lower language_model.batch, or use a smaller model",
    "activations": "lower activations.batch or activations.shard_rows",
    "dictionaries": "use narrower dictionaries, or fewer runs per sweep",
    "evaluation": "lower evaluation.batch, or use fewer runs per sweep",
    "features": "lower features.batch, or use fewer runs per sweep",
    "circuits": "use narrower dictionaries, or a smaller model",
    "labels": "lower features.tokens, or label fewer runs",
    "cases": "use narrower dictionaries, or fewer runs per case study",
    "exchange": "use narrower dictionaries",
}
"""What lowers the memory of a stage's jobs."""


def check_memory(costs: list[Cost], machine: MachineRates) -> None:
    """Raise ValueError if the memory cannot hold the jobs of a stage. The message names a remedy.

    On a machine with GPUs, `page.limits` compares both kinds of memory instead.
    """
    largest = max(costs, key=lambda cost: cost.memory)
    if machine.gpus is None and largest.memory > machine.memory:
        parallel = ", or give Snakemake fewer --cores" if largest.parallel > 1 else ""
        raise ValueError(
            f"plan: stage {largest.stage} needs {largest.memory / 1e9:.3g} GB of memory and the machine has "
            f"{machine.memory / 1e9:.3g} GB; {_SMALLER[largest.stage]}{parallel}"
        )


def _at_width(narrow_and_wide: tuple[float, float], d_model: int) -> float:
    """Returns a rate of models with this width, interpolated between those of `NARROW` and `WIDE` models."""
    narrow, wide = narrow_and_wide
    place = math.log(d_model / NARROW) / math.log(WIDE / NARROW)
    return narrow + (wide - narrow) * min(1.0, max(0.0, place))


def _cost_without_gpu(work: Work, machine: MachineRates, shape: ModelShape) -> Cost:
    """Returns the cost of a stage on CPUs. Parallel jobs share the cores, but they start at the same time."""
    parallel = 1 if work.exclusive else max(1, min(machine.jobs, work.jobs))
    if work.stage == "corpus":
        seconds = work.download / machine.download
    else:
        training = work.stage in ("language_model", "dictionaries")
        rate = machine.operations_per_second if training else machine.float32_per_second
        share = _at_width(SHARE_OF_PEAK[work.stage], shape.d_model)
        seconds = work.operations / (share * (rate or machine.operations_per_second))
        if shape.gated and not training:
            seconds += work.gpu_load.moved / _at_width(UNFUSED_RATE, shape.d_model)
    cores = 1 if work.exclusive else machine.jobs
    seconds += work.sorted_activations / ACTIVATIONS_PER_SECOND / cores
    seconds += work.matched_activations / MATCHES_PER_SECOND / cores
    seconds += (work.fixed_seconds + work.starts * JOB_SECONDS) / cores
    return Cost(
        work.stage,
        work.tokens,
        work.disk,
        work.memory * parallel,
        work.operations,
        seconds,
        network=work.download,
        parallel=parallel,
    )


def cost_on_gpus(work: Work, machine: MachineRates, gpus: Gpus) -> Cost:
    """Returns the cost of a stage on a machine with GPUs."""
    if work.gpu_load == GpuLoad():
        return _cost_on_one_core(work, machine, gpus)
    per_job = gpus_per_job(work, gpus)
    parallel = max(1, min(work.jobs, gpus.count // per_job))
    times = {**_job_times(work, machine, gpus, per_job, parallel), **_disk_times(work, machine)}
    rounds = math.ceil(work.jobs / parallel)
    # the work of a job and the disk transfers of all jobs happen at the same time
    seconds = max(times.values()) + work.starts / work.jobs * rounds * JOB_SECONDS
    seconds += rounds * work.sorted_activations / work.jobs / ACTIVATIONS_PER_SECOND
    seconds += work.matched_activations / MATCHES_PER_SECOND
    seconds *= 1 + _checkpoint_overhead(work, machine, per_job, parallel)
    fits = per_job <= gpus.count
    processes = min(gpus.per_node, parallel * per_job) / (
        1 if work.can_split else min(gpus.per_node, per_job)
    )
    return Cost(
        work.stage,
        work.tokens,
        work.disk,
        memory=processes * (work.host_memory + work.checkpoint / per_job),
        operations=work.operations,
        seconds=seconds if fits else math.inf,
        network=_network(work, gpus, per_job),
        gpu_memory=work.gpu_memory / per_job + work.gpu_memory_replicated,
        gpus_per_job=per_job,
        busy_gpus=min(parallel * per_job, gpus.count) if fits else 0,
        bottleneck=max(times, key=lambda name: times[name]),
    )


def gpus_per_job(work: Work, gpus: Gpus) -> int:
    """Returns the minimum number of GPUs with enough memory for a job. More than `gpus.count` means that the job does
    not fit.

    The number divides `work.divisible_by`, unless `work.divisible_by` is 0.
    """
    room = USABLE_GPU_MEMORY * gpus.memory - work.gpu_memory_replicated
    if room <= 0:
        return gpus.count + 1
    least = max(1, math.ceil(work.gpu_memory / room))
    if not work.divisible_by:
        return least
    return next(n for n in range(least, work.divisible_by + 1) if work.divisible_by % n == 0)


def _cost_on_one_core(work: Work, machine: MachineRates, gpus: Gpus) -> Cost:
    times = {
        "one core": work.fixed_seconds,
        "download": work.download / machine.download,
        "writing": work.disk / machine.write,
    }
    seconds = max(times.values()) + work.starts * JOB_SECONDS
    bottleneck = max(times, key=lambda name: times[name])
    return Cost(
        work.stage, work.tokens, work.disk, work.host_memory, work.operations, seconds if work.jobs else 0.0,
        network=_network(work, gpus, 1), bottleneck=bottleneck if times[bottleneck] else "",
    )  # fmt: skip


def _job_times(
    work: Work, machine: MachineRates, gpus: Gpus, per_job: int, parallel: int
) -> dict[str, float]:
    """Returns the seconds of all rounds of jobs, for each part of the machine. The parts work at the same time.

    The parts are the GPUs, the threads that write activations, and the threads that read activations. The GPUs' part is
    named after the slowest kind of GPU work.
    """
    load, rounds = work.gpu_load, math.ceil(work.jobs / parallel)
    operations = load.bf16_flops / machine.operations_per_second + load.fp32_flops / gpus.float32
    parts = {
        "products": operations / PRODUCT_SHARE_OF_STEP / per_job,
        "GPU memory": load.moved / gpus.bandwidth / per_job + load.replicated / gpus.bandwidth,
    }
    if per_job > 1 and work.can_split:
        one_node = per_job <= gpus.per_node
        parts["network"] = load.exchanged / (gpus.link if one_node else gpus.network / gpus.per_node)
    total, largest = sum(parts.values()), max(parts, key=lambda name: parts[name])
    threads = max(1, machine.cores * per_job // gpus.per_node)
    # half of a job's threads write
    writers = min(MAX_WRITER_THREADS, max(1, threads // 2))
    times = {largest: total, "writers": work.written / (WRITE_RATE * writers)}
    if work.can_split:
        times["readers"] = work.read / (READ_RATE * threads)
    return {name: seconds * rounds / work.jobs for name, seconds in times.items()}


def _disk_times(work: Work, machine: MachineRates) -> dict[str, float]:
    return {"disk, writing": work.written / machine.write, "disk, reading": work.read / machine.read}


def _checkpoint_overhead(work: Work, machine: MachineRates, per_job: int, parallel: int) -> float:
    """Returns the seconds spent on checkpoints per second of training."""
    seconds = work.checkpoint / min(CHECKPOINT_RATE * per_job, machine.write / parallel)
    return min(CHECKPOINT_SHARE / (1 - CHECKPOINT_SHARE), seconds / CHECKPOINT_SECONDS)


def _network(work: Work, gpus: Gpus, per_job: int) -> float:
    """Returns the number of bytes that are downloaded or exchanged between nodes. With several nodes, disk traffic
    counts too."""
    transferred = work.download
    if gpus.nodes > 1:
        transferred += work.disk + work.read
    if work.can_split and per_job > gpus.per_node:
        transferred += work.gpu_load.exchanged * per_job
    return transferred
