"""Number formats of stored activations: how float32 rows are packed and unpacked."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

NumberFormat = Literal["float16", "bfloat16", "int8"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38, "int8": 3.38e38}
"""Largest magnitude that each format holds."""
TORCH_DTYPE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""What the values of each format are in memory."""
ZARR_DTYPE = {"float16": "float16", "bfloat16": "uint16", "int8": "int8"}
"""What they are on disk: Zarr has no bfloat16, so its bits are stored as uint16."""


class Packed(NamedTuple):
    """Rows in a number format."""

    values: Num[Tensor, "row d"]
    scales: Float[Tensor, " row"] | None
    """What a row's integers are multiplied with (int8); None where the values speak for themselves."""


def pack(x: Float[Tensor, "row d"], number_format: NumberFormat) -> Packed:
    """A copy of `x`, rounded to `number_format`; int8 spreads ±127 over ± the largest magnitude of the row."""
    if number_format != "int8":
        return Packed(x.to(TORCH_DTYPE[number_format], copy=True), None)
    largest = x.abs().amax(dim=1).float()
    # an all-zero row divides by one
    scales = torch.where(largest > 0, largest / 127, 1.0)
    return Packed((x / scales[:, None]).round().to(torch.int8), scales)


def unpack(packed: Packed) -> Float[Tensor, "row d"]:
    """The float32 rows that `packed` stands for."""
    values = packed.values.float()
    return values if packed.scales is None else values.mul_(packed.scales[:, None])
