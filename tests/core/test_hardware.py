"""The number format of large products follows from the hardware's name."""

import pytest
import torch

from circuitloom.core import hardware


@pytest.mark.parametrize(
    ("gpu", "tiles", "instructions", "amd", "fast"),
    [
        (True, False, False, False, torch.bfloat16),
        (False, True, True, False, torch.bfloat16),
        (False, False, True, True, torch.bfloat16),
        (False, False, True, False, torch.float32),
        (False, False, False, True, torch.float32),
    ],
)
def test_bfloat16_is_used_on_hardware_that_is_fast_at_it(
    gpu, tiles, instructions, amd, fast, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(hardware, "_is_amd", lambda: amd)
    assert hardware.fast_dtype.__wrapped__() == fast
