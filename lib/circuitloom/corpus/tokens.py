"""Reads the tokens of a split as tensors. `token_arrays` writes the files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .token_arrays import TokenArrays, open_token_arrays


@dataclass(frozen=True)
class Tokens(TokenArrays):
    """Token sequences of equal length, read as tensors."""

    def take(self, indices: slice | Int[np.ndarray, " sequence"]) -> Int[Tensor, "sequence position"]:
        """Returns the token ids (int64) of the sequences at `indices`, in this order.

        Raises ValueError if the stored token ids are damaged.
        """
        return torch.from_numpy(self.read(self.token, indices))

    def take_document(
        self, indices: slice | Int[np.ndarray, " sequence"]
    ) -> Int[Tensor, "sequence position"]:
        """Returns the document numbers (int64) of the sequences at `indices`, in this order.

        Raises ValueError if the stored document numbers are damaged.
        """
        return torch.from_numpy(self.read(self.document, indices))


def open_tokens(path: Path | str) -> Tokens:
    """Open the token arrays in `path`, to be read as tensors. The errors are those of `open_token_arrays`."""
    return Tokens(**vars(open_token_arrays(path)))
