"""The order in which a model that is pretrained sees its sequences."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..corpus.tokens import Tokens

_BLOCK = 4096
"""Sequences read at a time: they pass through 64-bit integers."""


class Batches:
    """Batches by step: a fresh permutation of the sequences an epoch, a pure function of (seed, epoch).

    The token that follows a sequence's last one stands in the next sequence, so every position has a target, the
    last included; only the split's last sequence is left out, since nothing follows it. The tokens are held in memory
    as they are stored (2 bytes each for vocabularies under 65,536).

    Raises ValueError where there are fewer than two sequences.
    """

    def __init__(self, tokens: Tokens, size: int, seed: int) -> None:
        if len(tokens) < 2:
            raise ValueError(
                f"{tokens.path}: too few training tokens to pretrain on; raise corpus.train_tokens"
            )
        self.size = size
        self.context = tokens.context
        self._token = np.empty(tokens.token.shape, tokens.token.dtype)
        for start in range(0, len(tokens), _BLOCK):
            rows = slice(start, start + _BLOCK)
            self._token[rows] = tokens.take(rows).numpy()
        self._first = 0 if tokens.bos_id is None else 1
        self._count = len(tokens) - 1
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(self._count)
        )

    def digest(self) -> str:
        """A digest of the tokens, for the fingerprint of what is trained on them."""
        import hashlib

        return hashlib.blake2b(self._token.tobytes(), digest_size=16).hexdigest()

    def at(self, step: int) -> tuple[Int[Tensor, "sequence position"], Int[Tensor, "sequence position"]]:
        """Tokens of `step` (from 0) and the token after each of them."""
        places = np.arange(step * self.size, (step + 1) * self.size)
        rows = np.array(
            [self._order(epoch)[place] for epoch, place in zip(*divmod(places, self._count), strict=True)]
        )
        batch = np.empty((self.size, self.context + 1), np.int64)
        batch[:, :-1] = self._token[rows]
        batch[:, -1] = self._token[rows + 1, self._first]
        whole = torch.from_numpy(batch)
        return whole[:, :-1], whole[:, 1:]
