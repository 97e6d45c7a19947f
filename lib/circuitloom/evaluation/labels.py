"""Which concepts each scored token takes part in, and which half of the documents it lies in."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .held_out import HeldOut


@dataclass(frozen=True)
class Labels:
    """Concepts of the scored tokens, token by token (CSR)."""

    names: tuple[str, ...]
    """Names of the concepts, in the order of their numbers."""
    start: Int[Tensor, " token_plus_1"]
    """Concepts of token t are entries start[t] to start[t + 1]."""
    concept: Int[Tensor, " entry"]
    """Number of the concept of each entry; the last of every token is C = len(names), "any token"."""
    choosing: Bool[Tensor, " token"]
    """Tokens on which thresholds and features are chosen; the others are scored."""

    def positives(self, choosing: bool) -> Int[Tensor, " concept"]:
        """Tokens of one half that have each concept."""
        token = torch.repeat_interleave(torch.arange(len(self.choosing)), self.start.diff())
        mine = self.concept[self.choosing[token] == choosing]
        return torch.bincount(mine, minlength=len(self.names) + 1)[:-1]


def label(concepts: pa.Table, held_out: HeldOut) -> Labels:
    """The labels of the scored tokens of `held_out`, from a concept table; even documents are for choosing.

    A document is never split, so that no token of the scoring half shares its text with the choosing half.
    """
    place = torch.full(held_out.token.shape, -1)
    place[held_out.scored] = torch.arange(held_out.n_tokens)
    concepts = concepts.filter(pc.field("sequence") < len(held_out))
    names, number = np.unique(concepts["concept"].cast(pa.string()).to_numpy(), return_inverse=True)
    sequence, position = (
        torch.from_numpy(concepts[c].to_numpy().astype(np.int64)) for c in ("sequence", "position")
    )
    token, number = place[sequence, position], torch.from_numpy(number)
    token, number = token[token >= 0], number[token >= 0]
    everyone = torch.arange(held_out.n_tokens)
    token = torch.cat([token, everyone])
    concept = torch.cat([number, torch.full_like(everyone, len(names))])
    # by token, and within one by concept, so that "any token" comes last
    order = (token * (len(names) + 1) + concept).argsort()
    start = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(token, minlength=held_out.n_tokens).cumsum(0)]
    )
    choosing = held_out.document[held_out.scored] % 2 == 0
    return Labels(tuple(names.tolist()), start, concept[order], choosing)
