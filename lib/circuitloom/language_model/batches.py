"""Chooses the number of sequences per forward pass."""

from typing import Literal

from .model import LanguageModel
from .residual import input_width

Batch = int | Literal["auto"]
"""Number of sequences per forward pass. With `auto`, it is that of `automatic_batch`."""
BUDGET = 2**31
"""Bytes of activations per forward pass with `batch: auto`. Larger batches are not faster."""
MOST = 32
"""Largest number of sequences per pass with `batch: auto`, except where activations are cached."""


def pass_bytes(d_model: int, d_mlp: int, number_bytes: int) -> int:
    """Returns the bytes per token of the activations that a forward pass holds at one time."""
    return number_bytes * (8 * d_model + 3 * d_mlp)


def automatic_batch(
    d_model: int, d_mlp: int, number_bytes: int, context: int, kept: int = 0, most: int = MOST
) -> int:
    """Returns the number of sequences whose activations take at most `BUDGET` bytes, at least 1 and at most `most`.

    `kept` is the number of arrays [token, d_model] that are stored during the pass. The number does not depend on the
    machine, because results depend on it by rounding.
    """
    per_token = pass_bytes(d_model, d_mlp, number_bytes) + kept * d_model * number_bytes
    return max(1, min(most, BUDGET // (per_token * context)))


def sequences_per_pass(
    model: LanguageModel, batch: Batch, context: int, kept: int = 0, most: int = MOST
) -> int:
    """Returns `batch`, or the number of `automatic_batch` if `batch` is `auto`."""
    if batch != "auto":
        return batch
    weight = next(model.unembedding.parameters())
    d_mlp = input_width(model.mlp(0).get_submodule(model.anatomy.mlp_projection)) if model.layers else 0
    return automatic_batch(weight.shape[1], d_mlp, weight.itemsize, context, kept, most)
