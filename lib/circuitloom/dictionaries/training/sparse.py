"""Products with a sparse activation matrix Z, and the gradients of these products.

If k of F features are active per token, a sparse product takes a fraction k/F of the operations of a dense product.

`SparsityPattern` uses kernels of PyTorch on a CPU. `kernels.fixed_k.FixedKEntries` uses Triton kernels on a GPU.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

# torch warns once per process that the CSR layout is in beta; tests compare these products with dense products
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
torch.sparse.check_sparse_tensor_invariants.disable()


class Entries(ABC):
    """Entries of a sparse [token, feature] matrix Z, and products with Z.

    Entries are the positions where Z may be non-zero.
    """

    width: int
    """Number of features, F."""
    feature: Int[Tensor, " entry"]
    """Feature of each entry (column of Z), int32. Entries are ordered by token, and within a token by feature."""

    @abstractmethod
    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns `dense` in the dtype that the product methods need."""

    @abstractmethod
    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Returns (left @ right.T)[token, feature] for each entry."""

    @abstractmethod
    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Returns Z @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""

    @abstractmethod
    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Returns Z.T @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""

    @abstractmethod
    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Returns Z.T @ dense and Z.T @ 1. Z is the sparse [token, feature] matrix with `values` at the entries."""


@dataclass(frozen=True)
class SparsityPattern(Entries):
    """Entries in CSR layout on a CPU."""

    row_start: Int[Tensor, " token_plus_1"]
    """int32. Token t has the entries row_start[t]:row_start[t + 1]."""
    feature: Int[Tensor, " entry"]
    """Feature of each entry (column of Z), int32. Features are in ascending order within a token."""
    width: int
    """Number of features, F."""

    @classmethod
    def from_flat_indices(cls, indices: Int[Tensor, " entry"], tokens: int, width: int) -> "SparsityPattern":
        """Returns the pattern with entries at the ascending `indices` of the flattened [token, feature] matrix."""
        first = np.arange(tokens + 1) * width
        row_start = np.searchsorted(indices.numpy(), first)
        # subtracted, because a division per index takes longer
        feature = indices.numpy() - np.repeat(first[:-1], np.diff(row_start))
        row_start, feature = (torch.from_numpy(array.astype(np.int32)) for array in (row_start, feature))
        return cls(row_start, feature, width)

    def __len__(self) -> int:
        return len(self.feature)

    @property
    def tokens(self) -> int:
        """Number of tokens (rows of Z)."""
        return len(self.row_start) - 1

    @cached_property
    def token(self) -> Int[Tensor, " entry"]:
        """Token of each entry (row of Z), int32."""
        return torch.from_numpy(self.per_entry(np.arange(self.tokens, dtype=np.int32)))

    def per_entry(self, values: Shaped[np.ndarray, " token"]) -> Shaped[np.ndarray, " entry"]:
        """For each entry, returns the element of `values` for the entry's token."""
        # numpy takes a third of the time of torch.repeat_interleave
        return np.repeat(values, np.diff(self.row_start.numpy()))

    def keep(self, entries: Int[Tensor, " kept"]) -> "SparsityPattern":
        """Returns the pattern of some of the entries. `entries` holds their indices in ascending order."""
        row_start = np.searchsorted(entries.numpy(), self.row_start.numpy()).astype(np.int32)
        return SparsityPattern(torch.from_numpy(row_start), self.feature.index_select(0, entries), self.width)

    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns `dense` unchanged."""
        return dense

    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Returns (left @ right.T)[token, feature] for each entry."""
        empty = torch.zeros(len(self), dtype=left.dtype)
        matrix = torch.sparse_csr_tensor(self.row_start, self.feature, empty, (self.tokens, self.width))
        return torch.sparse.sampled_addmm(matrix, left, right.T, beta=0.0).values()

    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Returns Z @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""
        return _weighted_sums(dense, self.feature, self.row_start, values)

    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Returns Z.T @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""
        order, start, token = self._transposed
        return _weighted_sums(dense, token, start, values.index_select(0, order))

    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Returns Z.T @ dense and Z.T @ 1. Z is the sparse [token, feature] matrix with `values` at the entries."""
        sums = values.new_zeros(self.width).index_add_(0, self.feature, values)
        return self.transposed_times(values, dense), sums

    def transposed_times_by_rows(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"], rows: int
    ) -> Iterator[tuple[slice, Float[Tensor, "row d"]]]:
        """Yields (features, those rows of `transposed_times`) for every `rows` features."""
        order, start, token = self._transposed
        values, bounds = values.index_select(0, order), start.tolist()
        for first in range(0, self.width, rows):
            features = slice(first, min(first + rows, self.width))
            entries = slice(bounds[features.start], bounds[features.stop])
            offsets = start[features.start : features.stop + 1] - entries.start
            yield features, _weighted_sums(dense, token[entries], offsets, values[entries])

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (order, start, token), the CSR layout of Z.T.

        `order` sorts the entries by feature. Feature i has the sorted entries start[i]:start[i + 1]. `token` contains
        the token of each sorted entry.
        """
        # numpy sorts 16-bit keys by radix sort, ten times as fast as torch's comparison sort
        key = self.feature.numpy()
        order = torch.from_numpy(
            np.argsort(key.astype(np.uint16) if self.width <= 2**16 else key, kind="stable")
        )
        counts = torch.bincount(self.feature, minlength=self.width)
        start = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
        return order, start, self.token.index_select(0, order)


def _weighted_sums(
    dense: Float[Tensor, "row d"],
    index: Int[Tensor, " entry"],
    start: Int[Tensor, " sum_plus_1"],
    weight: Float[Tensor, " entry"],
) -> Float[Tensor, "sum d"]:
    """Returns for each i the sum of weight[j] * dense[index[j]] over j from start[i] to start[i + 1] - 1."""
    # in the same order as a product with a CSR matrix, in about three quarters of its time
    return torch.nn.functional.embedding_bag(
        index, dense, start, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


@dataclass(frozen=True)
class SelectedEntries:
    """Entries that may be active, and their pre-activations."""

    pattern: Entries
    pre: Float[Tensor, " entry"]
    """Pre-activations W_enc x + b_enc, float32, without gradient."""
    x: Float[Tensor, "token d_in"]
    """The encoder's input, in the dtype that was used to compute `pre`."""


class Encode(torch.autograd.Function):
    """Returns the pre-activations of the selected entries. Only `W_enc` and `bias` get gradients."""

    @staticmethod
    def forward(ctx, W_enc: Tensor, bias: Tensor, selected: SelectedEntries) -> Tensor:  # noqa: D102
        ctx.selected = selected
        # copied, because an autograd function must not return its input
        return selected.pre.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):  # noqa: D102
        selected = ctx.selected
        return *selected.pattern.transposed_times_and_sums(gradient, selected.x), None


class Decode(torch.autograd.Function):
    """Returns Z @ W_dec. Z is the sparse [token, feature] matrix with the activations `z` at the entries.

    W_dec gets no gradient if it is detached.
    """

    @staticmethod
    def forward(ctx, z: Tensor, W_dec: Tensor, pattern: Entries) -> Tensor:  # noqa: D102
        W_dec = pattern.operand(W_dec)
        ctx.save_for_backward(z, W_dec)
        ctx.pattern = pattern
        return pattern.times(z, W_dec)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # noqa: D102
        z, W_dec = ctx.saved_tensors
        gradient = ctx.pattern.operand(gradient.contiguous())
        on_W_dec = ctx.pattern.transposed_times(z, gradient) if ctx.needs_input_grad[1] else None
        return ctx.pattern.sample(gradient, W_dec), on_W_dec, None
