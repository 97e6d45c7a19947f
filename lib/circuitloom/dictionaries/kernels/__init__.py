"""Triton kernels for sparse training on a GPU.

Of the modules in this package, only `fixed_k` can be imported without Triton.
"""

from collections.abc import Callable
from typing import Any


def kernel(function: Callable) -> Any:
    """Returns `triton.jit(function)`, typed so that pyright accepts `function[grid](...)`.

    Use this decorator above `@no_type_check`.
    """
    import triton  # pyright: ignore[reportMissingImports]

    return triton.jit(function)
