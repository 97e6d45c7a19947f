"""Number format for this machine's hardware."""

from functools import cache
from pathlib import Path

import torch


@cache
def fast_dtype() -> torch.dtype:
    """Number format of large matrix products: bfloat16 if the hardware is fast at it, else float32.

    bfloat16 is about twice as fast as float32 on GPUs, CPUs with AMX and AMD CPUs with AVX-512 BF16, and half as fast
    on Intel CPUs with AVX-512 BF16 only and on CPUs that emulate it (docs/log.md). The choice depends on the hardware's
    name and not on a measurement, because the results depend on the format.
    """
    if torch.cuda.is_available() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() and _is_amd() else torch.float32


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text()
