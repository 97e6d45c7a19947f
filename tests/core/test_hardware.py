"""The number format of large products follows from the hardware's name."""

import pytest
import torch

from circuitloom.core import hardware
from circuitloom.core.hardware import memory_bytes


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


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 4096 * 1000), ("1000000", 1_000_000), ("9" * 18, 4096 * 1000), (None, 4096 * 1000)],
)
def test_the_memory_is_that_of_the_machine_or_of_a_smaller_cgroup(
    limit, expected, tmp_path, monkeypatch
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(hardware.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(hardware, "CGROUP_MEMORY", tmp_path / "memory.max")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert memory_bytes() == expected
