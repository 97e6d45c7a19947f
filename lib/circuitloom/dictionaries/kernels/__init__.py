"""Triton kernels of sparse training on a GPU. Only `fixed_k` can be imported without Triton."""

from collections.abc import Callable
from typing import Any


def kernel(function: Callable) -> Any:
    """`triton.jit`, typed so that `function[grid](...)` passes pyright. Use it above `@no_type_check`."""
    import triton  # pyright: ignore[reportMissingImports]

    return triton.jit(function)
