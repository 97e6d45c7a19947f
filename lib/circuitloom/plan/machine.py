"""Rates of a machine: measured on this machine, or taken from a config that describes another machine."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config.machine import Machine

PRODUCT_SHARE, COPY_SHARE = 0.75, 0.88
"""Fractions of a data sheet's numbers: FLOP/s that matrix products reach, and bandwidth that copies reach.

Measured: products 0.743 to 0.801 and copies 0.90 on an H100, products 0.755 and copies 0.87 on an H200
(docs/benchmarks/training.md).
"""
DOWNLOAD = 30e6
"""Download rate of a measured machine in bytes per second. This rate is assumed, not measured."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a machine or cluster."""

    nodes: int
    per_node: int
    """Number of GPUs per node."""
    memory: float
    """Bytes of memory per GPU."""
    float32: float
    """FLOP/s of float32 matrix products on one GPU."""
    bandwidth: float
    """Bytes per second that a copy on one GPU moves. Bytes read and bytes written both count."""
    link: float = math.inf
    """Bytes per second that one GPU sends to the other GPUs of its node."""
    network: float = math.inf
    """Bytes per second that a node sends to the other nodes."""

    @property
    def count(self) -> int:
        """Number of GPUs on all nodes together."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class MachineRates:
    """Rates that a machine reaches, and its memory and disk."""

    operations_per_second: float
    """FLOP/s of matrix products in `fast_dtype()`, on all cores together or on one GPU."""
    free_bytes: float
    """Bytes of free disk space, plus the bytes that the study's results already take."""
    device: str
    float32_per_second: float = 0.0
    """FLOP/s of float32 matrix products on all cores together. 0 means the same as `operations_per_second`."""
    jobs: int = 1
    """Maximum number of parallel jobs on a machine without GPU."""
    gpus: Gpus | None = None
    cores: int = 1
    """CPU cores per node."""
    memory: float = math.inf
    """Bytes of memory per node."""
    write: float = math.inf
    """Bytes per second that can be written to the disk."""
    read: float = math.inf
    """Bytes per second that can be read from the disk."""
    download: float = DOWNLOAD
    """Bytes per second that can be downloaded."""
    measured: bool = True
    """Whether the rates were measured. False for a machine that a config describes."""


def described(config: Machine) -> MachineRates:
    """Returns the rates of the machine that section `machine` of a config describes."""
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
    """Measure the rate of matrix products on this machine, and the disk space for the folder `results`.

    On a GPU, the rates of float32 products and of copies are measured too.
    """
    import torch

    from ..core.hardware import fast_dtype, memory_bytes

    existing = next(folder for folder in (results, *results.absolute().parents) if folder.exists())
    used = sum(file.stat().st_size for file in results.rglob("*") if file.is_file())
    space = shutil.disk_usage(existing).free + used
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        rate, float32 = (
            2 * 1024**3 / _product_seconds(1024, dtype, "cpu") for dtype in (fast_dtype(), torch.float32)
        )
        device = f"{threads} processor threads"
        return MachineRates(rate, space, device, float32, threads, memory=memory_bytes())
    low, full = (_product_seconds(8192, dtype, "cuda") for dtype in (fast_dtype(), torch.float32))
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source))
    # jobs run one after another on the first GPU
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
    """Returns the shortest of six timings of `work`, in seconds."""
    import torch

    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best
