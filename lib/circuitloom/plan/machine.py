"""Rates of a machine: measured on this one, or taken from a config that describes another."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config.machine import Machine

PRODUCT_SHARE, COPY_SHARE = 0.75, 0.88
"""Shares of a data sheet's FLOP/s and bandwidth that products and copies reach.

Measured: 0.743 to 0.801 and 0.90 on an H100, 0.755 and 0.87 on an H200 (docs/benchmarks/training.md).
"""
DOWNLOAD = 30e6
"""Download rate of a measured machine, in bytes per second: assumed."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a machine or cluster."""

    nodes: int
    per_node: int
    """GPUs per node."""
    memory: float
    """Bytes of memory per GPU."""
    float32: float
    """FLOP/s of a float32 product on one GPU."""
    bandwidth: float
    """Bytes per second of a copy on one GPU, reads plus writes."""
    link: float = math.inf
    """Bytes per second from one GPU to the others of its node."""
    network: float = math.inf
    """Bytes per second from a node to the others."""

    @property
    def count(self) -> int:
        """Number of GPUs of all nodes."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class MachineRates:
    """Rates that a machine reaches, and its memory and disk."""

    operations_per_second: float
    """FLOP/s of a bfloat16 matrix product (float32 without hardware support) on all cores, or on one GPU."""
    free_bytes: float
    """Free disk space, plus the space that the study's results already take."""
    device: str
    jobs: int = 1
    """Largest number of jobs in parallel on a machine without GPU."""
    gpus: Gpus | None = None
    cores: int = 1
    """CPU cores per node."""
    memory: float = math.inf
    """Bytes of memory per node."""
    write: float = math.inf
    """Bytes per second written to the disk."""
    read: float = math.inf
    """Bytes per second read from the disk."""
    download: float = DOWNLOAD
    """Bytes per second downloaded."""
    measured: bool = True
    """False for a machine that a config describes."""


def described(config: Machine) -> MachineRates:
    """The rates of the machine in a config's section `machine`."""
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
    """Measure matrix products and copies on this machine, and the disk space available to the folder `results`."""
    import torch

    from ..core.hardware import fast_dtype

    existing = next(folder for folder in (results, *results.absolute().parents) if folder.exists())
    used = sum(file.stat().st_size for file in results.rglob("*") if file.is_file())
    space = shutil.disk_usage(existing).free + used
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        rate = 2 * 1024**3 / _product_seconds(1024, fast_dtype(), "cpu")
        return MachineRates(rate, space, f"{threads} processor threads", threads)
    low, full = (_product_seconds(8192, dtype, "cuda") for dtype in (fast_dtype(), torch.float32))
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source))
    # jobs share the first GPU, one after another
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
    """Shortest of six timings of `work`."""
    import torch

    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best
