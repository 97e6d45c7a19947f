"""What a plan is made of: the work of a stage, whatever the machine, and what it costs on one. What a study will
cost: tokens, disk, memory, operations and hours, before anything runs."""

from ..config import Study
from .gpus import ACTIVATIONS_PER_SECOND, JOB_SECONDS, TOKENS_PER_SECOND, cost_on_gpus
from .machine import MachineRates
from .sizes import corpus_tokens
from .stages import (
    ACTIVATION_BYTES,
    activations,
    cases,
    circuits,
    corpus,
    evaluation,
    features,
    language_model,
)
from .training import dictionaries
from .work import Cost, Work

SHARE_OF_PEAK = {
    "language_model": 0.38, "activations": 0.15, "dictionaries": 0.07, "evaluation": 0.08, "features": 0.2,
    "circuits": 0.05, "cases": 0.05,
}  # fmt: skip
"""Share of the measured matrix-product rate that each stage reaches on processors: between those of two machines, of
which the one with half the rate reaches a fifth to twice as much more of it (docs/benchmarks/quickstart.md)."""


def plan(study: Study, machine: MachineRates) -> list[Cost]:
    """The cost of each stage, in order."""
    works = works_of(study)
    if machine.gpus is not None:
        return [cost_on_gpus(work, machine) for work in works]
    return [_cost_on_cores(work, machine) for work in works]


def works_of(study: Study) -> list[Work]:
    """The work of each stage, in order."""
    train, held_out = corpus_tokens(study)
    return [
        corpus(study, train + held_out),
        language_model(study),
        activations(study, train),
        dictionaries(study),
        evaluation(study, held_out),
        features(study, held_out),
        circuits(study),
        cases(study, held_out),
    ]


def check_disk(costs: list[Cost], machine: MachineRates) -> None:
    """Raise ValueError, with the remedy, where the disk cannot hold what the stages write."""
    needed = sum(cost.disk for cost in costs)
    if needed > machine.free_bytes:
        largest = max(costs, key=lambda cost: cost.disk)
        raise ValueError(
            f"plan: the study needs {needed / 1e9:.3g} GB and {machine.free_bytes / 1e9:.3g} GB are free; make room, "
            f"or lower what stage {largest.stage} writes ({largest.disk / 1e9:.3g} GB: fewer tokens, layers or sites)"
        )


def _cost_on_cores(work: Work, machine: MachineRates) -> Cost:
    """Jobs that run side by side share the cores, and save each other the wait for starts."""
    abreast = 1 if work.alone else max(1, min(machine.jobs, work.jobs))
    if work.stage == "corpus":
        seconds = work.tokens / TOKENS_PER_SECOND + work.download / machine.download
    else:
        seconds = work.operations / (SHARE_OF_PEAK[work.stage] * machine.operations_per_second)
    if work.stage == "features":
        seconds += work.disk / ACTIVATION_BYTES / ACTIVATIONS_PER_SECOND
    seconds += work.starts / (1 if work.alone else machine.jobs) * JOB_SECONDS
    return Cost(
        work.stage,
        work.tokens,
        work.disk,
        work.memory * abreast,
        work.operations,
        seconds,
        network=work.download,
    )
