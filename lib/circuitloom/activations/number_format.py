"""Converts activations to number formats for storage."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

NumberFormat = Literal["float16", "bfloat16", "int8"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38, "int8": 3.38e38}
"""Largest magnitude that each format can store."""
TORCH_DTYPE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""Data type of each format in memory."""
ZARR_DTYPE = {"float16": "float16", "bfloat16": "uint16", "int8": "int8"}
"""Data type of each format on disk. Zarr has no bfloat16, so bfloat16 bits are stored as uint16."""


class Packed(NamedTuple):
    """Rows of activations in a number format."""

    values: Num[Tensor, "row d"]
    scales: Float[Tensor, " row"] | None
    """For int8, the factor by which the stored values of each row are multiplied. None for other formats."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Packed":
        """Returns the result of `function` on each tensor."""
        return Packed(function(self.values), None if self.scales is None else function(self.scales))


def pack(x: Float[Tensor, "row d"], number_format: NumberFormat) -> Packed:
    """Returns a copy of `x` in `number_format`. For int8, each row is scaled to the maximum magnitude 127."""
    if number_format != "int8":
        return Packed(x.to(TORCH_DTYPE[number_format], copy=True), None)
    largest = x.abs().amax(dim=1).float()
    # a row of zeros is divided by one
    scales = torch.where(largest > 0, largest / 127, 1.0)
    return Packed((x / scales[:, None]).round().to(torch.int8), scales)


def unpack(packed: Packed) -> Float[Tensor, "row d"]:
    """Returns the rows of `packed` in float32."""
    values = packed.values.float()
    return values if packed.scales is None else values.mul_(packed.scales[:, None])
