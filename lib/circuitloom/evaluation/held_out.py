"""Loads held-out sequences for evaluation, and determines the scored positions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..config.evaluation import Evaluation
from ..corpus.token_arrays import count_sequences, scored_positions
from ..corpus.tokens import Tokens
from ..language_model.batches import Batch, sequences_per_pass
from ..language_model.model import LanguageModel


@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences and their scored positions."""

    token: Int[Tensor, "sequence position"]
    document: Int[Tensor, "sequence position"]
    """Document number of each token."""
    scored: Bool[Tensor, "sequence position"]
    """Whether metrics use the activation and the next-token prediction at each position."""
    keeps_original: Bool[Tensor, "sequence position"]
    """True at positions that are never replaced. These positions are the unscored positions and every separator."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.token)

    @property
    def n_tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.scored.sum())

    def batches(self, size: int) -> Iterator["HeldOut"]:
        """Yield consecutive batches of `size` sequences. The last batch may be smaller."""
        for start in range(0, len(self), size):
            yield HeldOut(*(value[start : start + size] for value in vars(self).values()))

    def to(self, device: torch.device | str) -> "HeldOut":
        """Returns the same sequences on `device`."""
        return HeldOut(*(value.to(device) for value in vars(self).values()))


def passes(held_out: HeldOut, model: LanguageModel, batch: Batch) -> Iterator[HeldOut]:
    """Yield batches of `batch` sequences on the model's device. With `auto`, the output of each block may be stored."""
    size = sequences_per_pass(model, batch, held_out.token.shape[1], kept=model.layers)
    return held_out.to(model.device).batches(size)


def load_held_out(tokens: Tokens, config: Evaluation) -> HeldOut:
    """Load the complete sequences in the first `config.tokens` tokens. At least one sequence is loaded.

    If `config.tokens` is None, all sequences are loaded. Raises ValueError if the stored tokens are damaged.

    >>> from circuitloom.config import Evaluation
    >>> from circuitloom.corpus.tokens import open_tokens
    >>> held_out = load_held_out(open_tokens("results/quickstart/corpus/validation.zarr"), Evaluation(tokens=10_000))
    """
    return load_sequences(tokens, slice(count_sequences(tokens, config.tokens)), config.mask)


def load_sequences(tokens: Tokens, rows: slice | Int[np.ndarray, " sequence"], mask: str = "bos") -> HeldOut:
    """Load the sequences `rows` of `tokens`.

    If `mask` is `bos`, position 0 and every separator (BOS, or EOS if the tokenizer has no BOS) are not scored. If
    `mask` is `none`, every position is scored. Raises ValueError if the stored tokens are damaged.
    """
    token = tokens.take(rows)
    inside = scored_positions(token, tokens.separator_id)
    scored = inside if mask == "bos" else torch.ones_like(inside)
    keeps_original = ~scored if tokens.separator_id is None else ~scored | (token == tokens.separator_id)
    return HeldOut(token, tokens.take_document(rows), scored, keeps_original)
