"""Finds the tokens with the largest and the smallest products of a token's row and a vector.

Rows are those of an embedding or unembedding, and vectors are those of features. Products are computed in blocks, and
each block is overwritten by the next, so that no table [vector, vocabulary] exists. Steps for a block:

1. compute the products of the vectors with the next rows of tokens
2. find the largest and the smallest product of each group of tokens
3. in groups that exceed a vector's threshold, collect the products that exceed it

The threshold is the n-th largest product so far. It rises after the first block, and each time that the number of
tokens has doubled. A vector therefore has about n candidates between two rises, if tokens are in no order.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHE_ELEMENTS = 2**21
"""Number of products per block on a CPU. Blocks of this size fit into the cache."""
BLOCK_ELEMENTS = 2**26
"""Largest number of products per block, 256 MB in float32. A GPU needs blocks of this size to be busy."""
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
    size = max(GROUP, n, elements // len(vectors) // GROUP * GROUP)
    dtype = vectors[:0].cpu().numpy().dtype
    largest, smallest = (_Candidates(len(vectors), n, sign, dtype) for sign in (1, -1))
    merge_at = 0
    for low in range(0, len(rows), size):
        part = rows[low : low + size]
        products = vectors @ part.T
        for side in (largest, smallest):
            side.collect(products, low)
        if low >= merge_at:
            merge_at = 2 * low + size
            for side in (largest, smallest):
                side.merge(rows.device)
    for side in (largest, smallest):
        side.merge(rows.device)
    token = np.stack([largest.token, smallest.token], 1)
    return StrongestTokens(token, np.stack([largest.product, smallest.product], 1))


class _Candidates:
    """The strongest products so far on one side (`sign` 1: the largest), and candidates that may replace them."""

    def __init__(self, vectors: int, n: int, sign: int, dtype: np.dtype) -> None:
        self.n, self.sign = n, sign
        self.token = np.zeros((vectors, 0), np.int64)
        self.product = np.zeros((vectors, 0), dtype)
        self._threshold: Tensor | None = None
        self._new: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def collect(self, products: Float[Tensor, "vector token"], low: int) -> None:
        """Add the products that exceed the threshold. `low` is the id of the first token."""
        if self._threshold is None:
            # ties with the n-th product are included, so that `merge` can choose the lowest token ids
            nth = products.topk(self.n, dim=1, largest=self.sign > 0).values[:, -1:]
            vector, place = (products >= nth if self.sign > 0 else products <= nth).nonzero(as_tuple=True)
        else:
            vector, place = self._exceeding(products, self._threshold[:, None])
        value = products[vector, place]
        self._new.append((vector.cpu().numpy(), place.cpu().numpy() + low, value.cpu().numpy()))

    def _exceeding(self, products: Tensor, threshold: Float[Tensor, "vector 1"]) -> tuple[Tensor, Tensor]:
        """Returns the vector and the place of each product that is stronger than its vector's threshold."""
        groups = products.shape[1] // GROUP
        # a group's tokens are `groups` apart, so that amax reads contiguous memory
        whole = products[:, : groups * GROUP].unflatten(1, (GROUP, groups))
        best = whole.amax(1) if self.sign > 0 else whole.amin(1)
        vector, group = self._stronger(best, threshold).nonzero(as_tuple=True)
        inside, member = self._stronger(whole[vector, :, group], threshold[vector]).nonzero(as_tuple=True)
        rest, place = self._stronger(products[:, groups * GROUP :], threshold).nonzero(as_tuple=True)
        return (
            torch.cat([vector[inside], rest]),
            torch.cat([member * groups + group[inside], place + groups * GROUP]),
        )

    def _stronger(self, products: Tensor, threshold: Tensor) -> Tensor:
        return products > threshold if self.sign > 0 else products < threshold

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
        self._threshold = torch.from_numpy(self.product[:, -1].copy()).to(device)
        self._new = []
