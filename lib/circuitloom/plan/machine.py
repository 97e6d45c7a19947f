"""What a machine does a second: the one at hand, measured, or one that a config describes."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config.machine import Machine

PRODUCT_SHARE, COPY_SHARE = 0.75, 0.88
"""Of data sheets' operations and bytes a second, what products and copies reach: 0.743 to 0.801 and 0.90 on an H100,
0.755 and 0.87 on an H200 (docs/benchmarks/training.md)."""
DOWNLOAD = 30e6
"""Bytes a second from outside, where nothing says."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a machine or cluster."""

    nodes: int
    node: int
    """GPUs a node."""
    memory: float
    """Bytes of one."""
    float32: float
    """Operations a second of a float32 product, of one."""
    bandwidth: float
    """Bytes a second of a copy, read and written, of one."""
    link: float = math.inf
    """Bytes a second from one to the others of its node."""
    network: float = math.inf
    """Bytes a second from a node to the others."""

    @property
    def count(self) -> int:
        """All of them."""
        return self.nodes * self.node


@dataclass(frozen=True)
class MachineRates:
    """What a machine does; rates are those that are reached."""

    operations_per_second: float
    """Of a bfloat16 matrix product (float32 where the processor has no bfloat16): of all cores, or one GPU."""
    free_bytes: float
    """Disk space under the results folder, what it holds already included."""
    device: str
    jobs: int = 1
    """How many jobs run side by side at most on a machine without GPU."""
    gpus: Gpus | None = None
    cores: int = 1
    """Processor cores a node."""
    memory: float = math.inf
    """Bytes of memory a node."""
    write: float = math.inf
    """Bytes a second that the disk takes."""
    read: float = math.inf
    """Bytes a second that the disk gives."""
    download: float = DOWNLOAD
    """Bytes a second from outside."""
    measured: bool = True


def described(config: Machine) -> MachineRates:
    """The machine of a config's section."""
    gpus = Gpus(
        config.nodes,
        config.gpus,
        config.gpu_memory,
        PRODUCT_SHARE * config.gpu_operations_float32,
        COPY_SHARE * config.gpu_bandwidth,
        config.gpu_link,
        config.network,
    )
    return MachineRates(
        operations_per_second=PRODUCT_SHARE * config.gpu_operations,
        free_bytes=config.disk,
        device=config.name,
        gpus=gpus,
        cores=config.cores,
        memory=config.memory,
        write=config.disk_write,
        read=config.disk_read,
        download=config.download,
        measured=False,
    )


def calibrate(results: Path) -> MachineRates:
    """Time a matrix product of the size that training uses; read the disk space that a study's `results` may take."""
    import torch

    from ..core.hardware import fast_dtype

    existing = next(folder for folder in (results, *results.absolute().parents) if folder.exists())
    held = sum(file.stat().st_size for file in results.rglob("*") if file.is_file())
    space = shutil.disk_usage(existing).free + held
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        rate = 2 * 1024**3 / _product_seconds(1024, fast_dtype(), "cpu")
        return MachineRates(rate, space, f"{threads} processor threads", threads)
    low, full = (_product_seconds(8192, dtype, "cuda") for dtype in (fast_dtype(), torch.float32))
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source))
    # jobs take turns on the first
    gpus = Gpus(
        1,
        1,
        torch.cuda.get_device_properties(0).total_memory,
        2 * 8192**3 / full,
        2 * source.nbytes / copy,
    )
    return MachineRates(2 * 8192**3 / low, space, torch.cuda.get_device_name(), gpus=gpus, cores=threads)


def _product_seconds(size: int, dtype, device: str) -> float:
    import torch

    a, b, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
    return _seconds(lambda: torch.mm(a, b, out=out))


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of some times that `work` takes."""
    import torch

    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best
