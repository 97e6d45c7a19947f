"""Triton kernels for sparse training on a GPU. Of these modules only `fixed_k` can be imported without Triton."""

from collections.abc import Callable
from typing import Any


def kernel(function: Callable) -> Any:
    """Like `triton.jit`, but typed so that pyright accepts `function[grid](...)`. Put it above `@no_type_check`."""
    import triton  # pyright: ignore[reportMissingImports]

    return triton.jit(function)
