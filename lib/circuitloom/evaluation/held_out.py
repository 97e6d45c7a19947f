"""The held-out tokens that dictionaries are scored on, and which of their positions count."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..config.evaluation import Evaluation
from ..corpus.tokens import Tokens, scored_positions


@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences, whole."""

    token: Int[Tensor, "sequence position"]
    document: Int[Tensor, "sequence position"]
    """Number of the document each token belongs to."""
    scored: Bool[Tensor, "sequence position"]
    """Positions that metrics count, and predictions from which CE and KL count."""
    kept: Bool[Tensor, "sequence position"]
    """Positions where the original activation stays: those not scored, and every BOS."""

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.token)

    @property
    def n_tokens(self) -> int:
        """Tokens scored."""
        return int(self.scored.sum())

    def batches(self, size: int) -> Iterator["HeldOut"]:
        """Consecutive parts of `size` sequences, the last one shorter."""
        for start in range(0, len(self), size):
            yield HeldOut(*(value[start : start + size] for value in vars(self).values()))

    def to(self, device: torch.device | str) -> "HeldOut":
        """The same sequences on `device`."""
        return HeldOut(*(value.to(device) for value in vars(self).values()))


def hold_out(tokens: Tokens, config: Evaluation) -> HeldOut:
    """The sequences that `config` scores on: the first `config.tokens` of `tokens`, at least one sequence.

    Raises ValueError where the tokens are damaged.
    """
    return hold_out_rows(tokens, slice(count_sequences(tokens, config.tokens)), config.mask)


def count_sequences(tokens: Tokens, wanted: int | None) -> int:
    """Whole sequences that hold `wanted` tokens, at least one; all there are for None."""
    return len(tokens) if wanted is None else min(len(tokens), max(1, wanted // tokens.context))


def hold_out_rows(tokens: Tokens, rows: slice, mask: str = "bos") -> HeldOut:
    """Some sequences of `tokens`, and which of their positions count.

    Scored is what is neither first nor a BOS; under `mask: none` every position is, and a BOS keeps its original
    activation even so. Raises ValueError where the tokens are damaged.
    """
    token = tokens.take(rows)
    scored = (
        scored_positions(token, tokens.bos_id) if mask == "bos" else torch.ones_like(token, dtype=torch.bool)
    )
    kept = ~scored if tokens.bos_id is None else ~scored | (token == tokens.bos_id)
    return HeldOut(token, tokens.take_document(rows), scored, kept)
