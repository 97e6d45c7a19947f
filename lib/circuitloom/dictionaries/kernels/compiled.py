"""How kernels are declared: `@kernel` above `@no_type_check`, by which the checks of shapes in tests pass them over."""

from collections.abc import Callable
from typing import Any

import triton  # pyright: ignore[reportMissingImports]


def kernel(function: Callable) -> Any:
    """What Triton compiles, or interprets where there is no GPU: of a type that can be launched, `f[grid](...)`."""
    return triton.jit(function)
