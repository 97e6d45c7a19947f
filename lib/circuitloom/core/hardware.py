"""What the hardware at hand is fast at."""

from functools import cache
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


@cache
def fast_dtype() -> torch.dtype:
    """Number format of large products: bfloat16 where the hardware is fast at it, else float32.

    GPUs are, processors with tiles for it (AMX), and AMD's with AVX-512 BF16: twice as fast as at float32. Intel's with
    those instructions alone are half as fast, as are processors that emulate it (docs/log.md). The rule looks at names,
    not at a clock, since results in other formats are other results.
    """
    if torch.cuda.is_available() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() and _is_amd() else torch.float32


def _is_amd() -> bool:
    return _CPUINFO.is_file() and "AuthenticAMD" in _CPUINFO.read_text()
