"""The plan of a study as text."""

from collections.abc import Iterator

from .config import Study
from .config.corpus import Chronicle
from .machine import Machine
from .plan import Cost


def describe(study: Study, costs: list[Cost], machine: Machine) -> Iterator[str]:
    """The plan as lines of a table."""
    chronicle = " (generated)" if isinstance(study.corpus, Chronicle) else ""
    yield f"profile {study.profile}: {len(study.layers)} layers, {len(study.runs)} runs{chronicle}"
    yield f"{'stage':<16}{'tokens':>10}{'disk':>12}{'memory':>12}{'operations':>14}{'time':>12}"
    for cost in costs:
        yield (
            f"{cost.stage:<16}{_short(cost.tokens):>10}{_short(cost.disk) + 'B':>12}{_short(cost.memory) + 'B':>12}"
            f"{_short(cost.operations):>14}{_time(cost.seconds):>12}"
        )
    disk, operations = sum(c.disk for c in costs), sum(c.operations for c in costs)
    memory, seconds = max(c.memory for c in costs), sum(c.seconds for c in costs)
    yield (
        f"{'all':<16}{'':>10}{_short(disk) + 'B':>12}{_short(memory) + 'B':>12}"
        f"{_short(operations):>14}{_time(seconds):>12}"
    )
    rate, free = _short(machine.operations_per_second), _short(machine.free_bytes)
    yield f"on {machine.device}: {rate} operations a second measured; {free}B of disk free"


def _short(value: float) -> str:
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} "


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
