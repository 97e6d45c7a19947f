"""What of a plan does not fit, or leaves a machine idle, in words."""

from collections.abc import Iterator

from ..config import Study
from .costs import works_of
from .dictionaries import model_beside
from .gpus import USABLE
from .machine import Gpus, Machine
from .work import Cost, Work

FILES = 1_000_000
"""More files than this are said."""
IDLE_SECONDS = 3600
"""A stage that leaves GPUs idle for longer is said."""


def limits(study: Study, costs: list[Cost], machine: Machine) -> Iterator[str]:
    """What does not fit, or leaves GPUs idle, stage by stage; nothing where the machine has no GPUs."""
    gpus = machine.gpus
    if gpus is None:
        return
    for work, cost in zip(works_of(study), costs, strict=True):
        yield from (f"{work.stage}: {line}" for line in _of_memory(study, work, cost, machine, gpus))
        if cost.disk > machine.free_bytes:
            yield f"{work.stage}: {cost.disk / 1e12:.3g} TB of disk, and {machine.free_bytes / 1e12:.3g} TB are there"
        if work.files > FILES:
            yield f"{work.stage}: {work.files / 1e6:.3g} million files; raise activations.shard_rows"
        # a machine at hand gives its GPU one job after another
        if 0 < cost.busy < gpus.count and cost.seconds > IDLE_SECONDS and not machine.measured:
            yield (
                f"{work.stage}: {work.jobs} {'job' if work.jobs == 1 else 'jobs'} of {cost.share} "
                f"{'GPU' if cost.share == 1 else 'GPUs'}: {gpus.count - cost.busy} of {gpus.count} are idle"
            )


def _of_memory(study: Study, work: Work, cost: Cost, machine: Machine, gpus: Gpus) -> Iterator[str]:
    one = f"one GPU holds {USABLE * gpus.memory / 1e9:.3g} GB"
    needed = f"a job holds {(work.held + work.beside) / 1e9:.4g} GB, {one}"
    if cost.share > gpus.count:
        yield f"{needed}: not even all {gpus.count} GPUs would do ({cost.share} would)"
    elif cost.share > 1 and work.splits:
        yield f"{needed}: its features have to be split over {cost.share} GPUs"
    elif cost.share > 1:
        yield f"{needed}: {cost.share} would have to share it, and no code does that; costs are as if it did"
    if work.stage == "dictionaries" and work.tokens and cost.gpu + model_beside(study) > USABLE * gpus.memory:
        yield (
            f"each process loads the whole model ({model_beside(study) / 1e9:.3g} GB) for one layer's MLP, which "
            "does not fit beside; costs are as if it loaded the MLP alone"
        )
    if cost.memory > machine.memory:
        yield f"{cost.memory / 1e12:.3g} TB of a node's memory, and {machine.memory / 1e12:.3g} TB are there"
