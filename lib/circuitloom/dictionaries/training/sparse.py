"""Products with a sparse activation matrix Z, and the gradients of these products.

If k of F features are active per token, a sparse product needs k/F of the operations of a dense product.
`SparsityPattern` uses PyTorch's CSR kernels on a CPU. `kernels.fixed_k.FixedKEntries` uses Triton kernels on a GPU.
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
        counts = torch.bincount(indices // width, minlength=tokens)
        return cls(_row_starts(counts), (indices % width).to(torch.int32), width)

    def __len__(self) -> int:
        return len(self.feature)

    @property
    def tokens(self) -> int:
        """Number of tokens (rows of Z)."""
        return len(self.row_start) - 1

    @cached_property
    def token(self) -> Int[Tensor, " entry"]:
        """Token of each entry (row of Z), int64."""
        return torch.repeat_interleave(torch.arange(self.tokens), self.row_start.diff().long())

    def keep(self, mask: Bool[Tensor, " entry"]) -> "SparsityPattern":
        """Returns the pattern of the entries where `mask` is true."""
        counts = torch.bincount(self.token[mask], minlength=self.tokens)
        return SparsityPattern(_row_starts(counts), self.feature[mask], self.width)

    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns `dense` unchanged."""
        return dense

    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Returns (left @ right.T)[token, feature] for each entry."""
        empty = torch.zeros(len(self), dtype=left.dtype)
        return torch.sparse.sampled_addmm(self._matrix(empty), left, right.T, beta=0.0).values()

    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Returns Z @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""
        return self._matrix(values) @ dense

    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Returns Z.T @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""
        order, start, token = self._transposed
        return torch.sparse_csr_tensor(start, token, values[order], (self.width, self.tokens)) @ dense

    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Returns Z.T @ dense and Z.T @ 1. Z is the sparse [token, feature] matrix with `values` at the entries."""
        sums = values.new_zeros(self.width).index_add_(0, self.feature, values)
        return self.transposed_times(values, dense), sums

    def _matrix(self, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(self.row_start, self.feature, values, (self.tokens, self.width))

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
    """Returns Z @ W_dec. Z is the sparse [token, feature] matrix with the activations `z` at the entries."""

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
