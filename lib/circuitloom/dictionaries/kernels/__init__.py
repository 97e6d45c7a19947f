"""Triton kernels for sparse training on a GPU. Without Triton, only the module `fixed_k` can be imported."""

from collections.abc import Callable
from typing import Any


def kernel(function: Callable) -> Any:
    """Returns `triton.jit(function)`, typed so that pyright accepts `function[grid](...)`.

    Write this decorator above `@no_type_check`.
    """
    import triton  # pyright: ignore[reportMissingImports]

    return triton.jit(function)
