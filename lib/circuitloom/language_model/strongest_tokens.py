"""Finds the tokens with the largest and the smallest products of a token's row and a vector.

Rows are those of an embedding or unembedding, and vectors are those of features. Products are computed in blocks, and
each block is overwritten by the next, so that no table [vector, vocabulary] exists. Steps for a block:

1. compute the products of the vectors with the block's tokens, which are evenly spaced over the vocabulary
2. find the largest and the smallest product of each group of tokens
3. in groups that reach a vector's threshold, collect the products that do

The threshold is the n-th largest product so far. It rises after the first block, and each time that the number of
tokens has doubled. A vector has about n candidates between two rises, because each block is a sample of the vocabulary.
Blocks in the order of token ids would not be: frequent tokens have low ids.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .lm_head import BLOCK_ELEMENTS, CACHE_ELEMENTS

VECTORS = 1024
"""Number of vectors per block on a CPU. With fewer, reading the rows takes longer than multiplying by them."""
GROUP = 32
"""Number of tokens per group."""


class StrongestTokens(NamedTuple):
    """The tokens with the largest products (side 0) and the smallest products (side 1), strongest first.

    Of equal products, those of lower token ids come first.
    """

    token: Int[np.ndarray, "vector side rank"]
    product: Float[np.ndarray, "vector side rank"]


def strongest_tokens(
    vectors: Float[Tensor, "vector d"],
    rows: Float[Tensor, "token d"],
    n: int,
    update: Callable[[int], object] = lambda _: None,
) -> StrongestTokens:
    """Returns the `n` tokens with the largest and the smallest products of rows and vectors, or all if there are fewer.

    After each block of vectors, `update` is called with their number. Raises ValueError if a value is not finite.
    """
    n = min(n, len(rows))
    if not len(vectors) or not n:
        empty = vectors.new_zeros(len(vectors), 2, n).cpu().numpy()
        return StrongestTokens(empty.astype(np.int64), empty)
    # the extremes of values that are not finite are not finite
    if not all(each.isfinite() for values in (vectors, rows) for each in values.aminmax()):
        raise ValueError("weights of the dictionary or of the model are not finite; train or load them again")
    on_cpu = rows.device.type == "cpu"
    found = []
    for part in vectors.split(VECTORS if on_cpu else 4 * VECTORS):
        found.append(_search(part.to(rows), rows, n, CACHE_ELEMENTS if on_cpu else BLOCK_ELEMENTS))
        update(len(part))
    return StrongestTokens(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _search(vectors: Tensor, rows: Tensor, n: int, elements: int) -> StrongestTokens:
    """Returns the result for vectors whose products with a block of tokens fit into the cache."""
    # each block has every `step`-th token, and at least `n` tokens
    step = max(1, min(math.ceil(len(rows) * len(vectors) / elements), len(rows) // n))
    dtype = vectors[:0].cpu().numpy().dtype
    largest, smallest = (_StrongestSide(len(vectors), n, sign, dtype) for sign in (1, -1))
    for first in range(step):
        products = vectors @ rows[first::step].T
        last = first == step - 1
        for side in (largest, smallest):
            side.collect(products, first, step)
            # after 1, 2, 4, ... blocks
            if last or (first + 1).bit_count() == 1:
                side.merge(rows.device)
    token = np.stack([largest.token, smallest.token], 1)
    return StrongestTokens(token, np.stack([largest.product, smallest.product], 1))


class _StrongestSide:
    """The strongest products so far on one side (`sign` 1: the largest), and candidates that may replace them."""

    def __init__(self, vectors: int, n: int, sign: int, dtype: np.dtype) -> None:
        self.n, self.sign = n, sign
        self.token = np.zeros((vectors, 0), np.int64)
        self.product = np.zeros((vectors, 0), dtype)
        self._nth: tuple[Tensor, Tensor] | None = None
        """Product and token of the n-th strongest product of each vector, [vector, 1]."""
        self._new: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def collect(self, products: Float[Tensor, "vector token"], first: int, step: int) -> None:
        """Add products that may be among the `n` strongest. Those in column i belong to token `first` + i `step`."""
        if self._nth is None:
            threshold = products.topk(self.n, dim=1, largest=self.sign > 0).values[:, -1:]
            vector, place = self._reaching(products, threshold).nonzero(as_tuple=True)
            value, token = products[vector, place], first + step * place
        else:
            threshold, lowest = self._nth
            vector, place = self._search(products, threshold)
            value, token = products[vector, place], first + step * place
            # of products that equal the n-th, those of lower token ids are stronger
            kept = (value != threshold[vector, 0]) | (token < lowest[vector, 0])
            vector, value, token = vector[kept], value[kept], token[kept]
        self._new.append((vector.cpu().numpy(), token.cpu().numpy(), value.cpu().numpy()))

    def _search(self, products: Tensor, threshold: Float[Tensor, "vector 1"]) -> tuple[Tensor, Tensor]:
        """Returns the vector and the place of each product that reaches its vector's threshold."""
        groups = products.shape[1] // GROUP
        # a group's tokens are `groups` apart, so that amax reads contiguous memory
        whole = products[:, : groups * GROUP].unflatten(1, (GROUP, groups))
        best = whole.amax(1) if self.sign > 0 else whole.amin(1)
        vector, group = self._reaching(best, threshold).nonzero(as_tuple=True)
        inside, member = self._reaching(whole[vector, :, group], threshold[vector]).nonzero(as_tuple=True)
        rest, place = self._reaching(products[:, groups * GROUP :], threshold).nonzero(as_tuple=True)
        return (
            torch.cat([vector[inside], rest]),
            torch.cat([member * groups + group[inside], place + groups * GROUP]),
        )

    def _reaching(self, products: Tensor, threshold: Tensor) -> Tensor:
        return products >= threshold if self.sign > 0 else products <= threshold

    def merge(self, device: torch.device) -> None:
        """Keep the `n` strongest products of each vector, and raise the threshold."""
        kept = np.repeat(np.arange(len(self.token)), self.token.shape[1])
        columns = [(kept, self.token.ravel(), self.product.ravel()), *self._new]
        vector, token, product = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        order = np.lexsort((token, -self.sign * product, vector))
        counts = np.bincount(vector, minlength=len(self.token))
        rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        order = order[rank < self.n]
        self.token = token[order].reshape(-1, self.n)
        self.product = product[order].reshape(-1, self.n)
        product, token = (torch.from_numpy(each[:, -1:].copy()) for each in (self.product, self.token))
        self._nth = product.to(device), token.to(device)
        self._new = []
