"""What a step makes of the weights before it reads the batch: norms and rounded copies, in one pass over both."""

from typing import no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float
from torch import Tensor

from .compiled import kernel


@kernel
@no_type_check
def _prepare(W_enc, W_dec, norm, weight, decoder, d_in, d_out, D_BLOCK: tl.constexpr, ROUND: tl.constexpr):
    feature = tl.program_id(0).to(tl.int64)
    square = tl.zeros([D_BLOCK], tl.float32)
    for start in range(0, d_out, D_BLOCK):
        column = start + tl.arange(0, D_BLOCK)
        row = tl.load(W_dec + feature * d_out + column, mask=column < d_out, other=0)
        square += row * row
        if ROUND:
            rounded = row.to(decoder.dtype.element_ty)
            tl.store(decoder + feature * d_out + column, rounded, mask=column < d_out)
    length = tl.sqrt(tl.sum(square))
    tl.store(norm + feature, length)
    for start in range(0, d_in, D_BLOCK):
        column = start + tl.arange(0, D_BLOCK)
        row = tl.load(W_enc + feature * d_in + column, mask=column < d_in, other=0) * length
        tl.store(weight + feature * d_in + column, row.to(weight.dtype.element_ty), mask=column < d_in)


def prepare(
    W_enc: Float[Tensor, "feature d_in"], W_dec: Float[Tensor, "feature d_out"], low: torch.dtype
) -> tuple[Float[Tensor, " feature"], Float[Tensor, "feature d_in"], Float[Tensor, "feature d_out"]]:
    """|W_dec[i]|, W_enc[i] |W_dec[i]| and W_dec, the matrices in the number format `low`."""
    (width, d_in), d_out = W_enc.shape, W_dec.shape[1]
    norm, weight = W_enc.new_empty(width), torch.empty_like(W_enc, dtype=low)
    rounds = low != W_dec.dtype
    decoder = torch.empty_like(W_dec, dtype=low) if rounds else W_dec
    block = min(1024, triton.next_power_of_2(max(d_in, d_out)))
    _prepare[(width,)](
        W_enc, W_dec, norm, weight, decoder, d_in, d_out, D_BLOCK=block, ROUND=rounds, num_warps=4
    )
    return norm, weight, decoder
