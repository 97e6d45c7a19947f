"""Products with sparse activations Z, and the gradients of these products.

If k of F features are active per token, a sparse product takes a fraction k/F of the operations of a dense product.

`SparsityPattern` uses the CSR kernels of PyTorch on a CPU. `kernels.fixed_k.FixedKEntries` uses Triton kernels on a
GPU.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# torch warns once per process that the CSR layout is in beta; tests compare these products with dense products
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
torch.sparse.check_sparse_tensor_invariants.disable()


class Entries(ABC):
    """Holds positions of an activation matrix Z, [token, feature], and computes products with Z.

    These positions are called entries. Z may be non-zero only at the entries.
    """

    width: int
    """Number of features, F."""
    feature: Int[Tensor, " entry"]
    """Feature of each entry (column of Z), int32. Entries are ordered by token, and within a token by feature."""

    @abstractmethod
    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns `dense` in the dtype that the other methods need for dense matrices."""

    @abstractmethod
    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Returns the values of left @ right.T at the (token, feature) entries of `self`."""

    @abstractmethod
    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Returns Z @ dense.

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """

    @abstractmethod
    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Returns Z.T @ dense.

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """

    @abstractmethod
    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Returns Z.T @ dense, and the sum of each feature's values (Z.T @ 1).

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """


@dataclass(frozen=True)
class SparsityPattern(Entries):
    """Holds the entries in CSR layout on a CPU."""

    row_start: Int[Tensor, " token_plus_1"]
    """Index of each token's first entry, int32. Token t has the entries from row_start[t] to row_start[t + 1] - 1."""
    feature: Int[Tensor, " entry"]
    """Feature of each entry (column of Z), int32. Features are in ascending order within a token."""
    width: int
    """Number of features, F."""

    @classmethod
    def from_flat_indices(cls, indices: Int[Tensor, " entry"], tokens: int, width: int) -> "SparsityPattern":
        """Returns the pattern with entries at `indices`.

        `indices` are ascending indices into the flattened [token, feature] matrix.
        """
        counts = torch.bincount(indices // width, minlength=tokens)
        return cls(_row_starts(counts), (indices % width).to(torch.int32), width)

    def __len__(self) -> int:
        return len(self.feature)

    @property
    def tokens(self) -> int:
        """Number of tokens, which is the number of rows of Z."""
        return len(self.row_start) - 1

    @cached_property
    def token(self) -> Int[Tensor, " entry"]:
        """Token of each entry (row of Z), int64."""
        return torch.repeat_interleave(torch.arange(self.tokens), self.row_start.diff().long())

    def keep(self, mask: Bool[Tensor, " entry"]) -> "SparsityPattern":
        """Returns the pattern of those entries for which `mask` is true."""
        counts = torch.bincount(self.token[mask], minlength=self.tokens)
        return SparsityPattern(_row_starts(counts), self.feature[mask], self.width)

    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns `dense` unchanged."""
        return dense

    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Returns the values of left @ right.T at the (token, feature) entries of `self`."""
        empty = torch.zeros(len(self), dtype=left.dtype)
        return torch.sparse.sampled_addmm(self._matrix(empty), left, right.T, beta=0.0).values()

    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Returns Z @ dense.

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """
        return self._matrix(values) @ dense

    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Returns Z.T @ dense.

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """
        order, start, token = self._transposed
        return torch.sparse_csr_tensor(start, token, values[order], (self.width, self.tokens)) @ dense

    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Returns Z.T @ dense, and the sum of each feature's values (Z.T @ 1).

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """
        sums = values.new_zeros(self.width).index_add_(0, self.feature, values)
        return self.transposed_times(values, dense), sums

    def _matrix(self, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(self.row_start, self.feature, values, (self.tokens, self.width))

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns three tensors that describe Z.T in CSR layout.

        The first tensor holds the indices of the entries, sorted by feature. The second tensor holds the place of each
        feature's first entry in this order. The third tensor holds the tokens of the sorted entries.
        """
        # numpy sorts 16-bit keys by radix sort, ten times as fast as torch's comparison sort
        key = self.feature.numpy()
        order = torch.from_numpy(
            np.argsort(key.astype(np.uint16) if self.width <= 2**16 else key, kind="stable")
        )
        start = _row_starts(torch.bincount(self.feature, minlength=self.width))
        return order, start, self.token[order].to(torch.int32)


def _row_starts(counts: Int[Tensor, " row"]) -> Int[Tensor, " row_plus_1"]:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)


@dataclass(frozen=True)
class SelectedEntries:
    """Entries that may be active, and their pre-activations."""

    pattern: Entries
    pre: Float[Tensor, " entry"]
    """Pre-activations W_enc x + b_enc, float32, without gradient."""
    x: Float[Tensor, "token d_in"]
    """The encoder's input x, in the dtype from which `pre` was computed."""


class Encode(torch.autograd.Function):
    """Returns the pre-activations of the selected entries.

    W_enc and `bias` get gradients. The input x gets none, because x is data.
    """

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
    """Returns Z @ W_dec.

    Z is the sparse [token, feature] matrix with the activations `z` at the entries of `pattern`, and 0 elsewhere.
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
        return ctx.pattern.sample(gradient, W_dec), ctx.pattern.transposed_times(z, gradient), None
