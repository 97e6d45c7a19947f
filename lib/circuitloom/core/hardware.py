"""Chooses the number format of matrix products for this machine's hardware, and reads the size of its memory."""

import os
from functools import cache
from pathlib import Path

import torch

CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
"""File with the memory limit of a container (cgroup v2), in bytes."""


@cache
def fast_dtype() -> torch.dtype:
    """Returns the number format of large matrix products: bfloat16 on hardware that is fast at bfloat16, else float32.

    bfloat16 is about twice as fast as float32 on GPUs, on CPUs with AMX and on AMD CPUs with AVX-512 BF16. On other
    CPUs, it is half as fast (docs/log.md). The kind of hardware determines the format, because measurements vary and
    results depend on the format.
    """
    if torch.cuda.is_available() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() and _is_amd() else torch.float32


def memory_bytes() -> int:
    """Returns the bytes of memory that this process may use: those of the machine, or of its cgroup if that has
    fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = CGROUP_MEMORY.read_text().strip() if CGROUP_MEMORY.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text()
