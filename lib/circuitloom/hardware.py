"""What the hardware at hand is fast at."""

import torch


def fast_dtype() -> torch.dtype:
    """Number format of large products: bfloat16 where the hardware has it, else float32.

    A processor without it emulates bfloat16, at half the speed of float32 (docs/log.md).
    """
    has_bfloat16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32
