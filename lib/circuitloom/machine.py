"""What the machine at hand does a second, and how much its disk still takes."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What this machine does, from a quick calibration."""

    operations_per_second: float
    """Of a bfloat16 matrix product (float32 where the processor has no bfloat16), all cores or the GPU."""
    free_bytes: float
    """Disk space under the results folder, what it holds already included."""
    device: str
    jobs: int = 1
    """How many jobs run side by side at most: a GPU takes one at a time."""


def calibrate(results: Path) -> Machine:
    """Time a matrix product of the size that training uses; read the disk space that a profile's `results` may take."""
    import torch

    from .hardware import fast_dtype

    cuda = torch.cuda.is_available()
    low = fast_dtype()
    size = 8192 if cuda else 1024
    device = "cuda" if cuda else "cpu"
    a, b, out = (torch.ones(size, size, dtype=low, device=device) for _ in range(3))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    existing = next(folder for folder in (results, *results.absolute().parents) if folder.exists())
    name = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} processor threads"
    held = sum(file.stat().st_size for file in results.rglob("*") if file.is_file())
    space = shutil.disk_usage(existing).free + held
    return Machine(2 * size**3 / best, space, name, 1 if cuda else torch.get_num_threads())
