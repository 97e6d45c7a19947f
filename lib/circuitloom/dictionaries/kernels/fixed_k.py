"""Sparse topk training on a GPU with Triton kernels.

The CPU code in training/selection.py and training/sparse.py differs from this module in three ways:

- Here, large matrices are in the run's precision, and sums are float32. With bfloat16, values and gradients have the
  accuracy of bfloat16.
- Here, each token has exactly k entries. If scores tie, the features with the lowest indices are kept.
- Here, no tensor shape depends on the data. A step can therefore be captured as a CUDA graph.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...config.dictionaries import Run
from ..training.parameters import Parameters
from ..training.selection import candidates_per_token, score_dtype
from ..training.sparse import Entries, SelectedEntries

MAX_K = 128
"""Maximum k for which the kernels are used. The number of comparisons per token grows with k squared."""


def uses_kernels(run: Run, x: Float[Tensor, "token d_in"]) -> bool:
    """Whether training uses the kernels for `run` and the batch `x`."""
    return (
        x.is_cuda and run.act == "topk" and run.k <= MAX_K and importlib.util.find_spec("triton") is not None
    )


@dataclass(frozen=True)
class FixedKEntries(Entries):
    """Exactly k entries per token. The methods import Triton, because machines without a GPU lack Triton."""

    feature: Int[Tensor, " entry"]
    """Feature of each entry, int32. Entries are ordered by token, then by feature."""
    k: int
    """Number of entries per token."""
    width: int
    """Number of features, F."""
    precision: torch.dtype
    """Dtype of the dense matrices in the products."""
    rounded: tuple[Tensor, Tensor] | None = None
    """A pair: a matrix, and a copy of the matrix in `precision`. `operand` reuses the copy."""

    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns `dense` in the dtype `precision`."""
        if self.rounded is not None and self.rounded[0] is dense:
            return self.rounded[1]
        return dense.to(self.precision).contiguous()

    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Returns (left @ right.T)[token, feature] for each entry."""
        from .products import sample

        return sample(left, right, self._by_token(self.feature)).flatten()

    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Returns Z @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""
        from .products import times

        return times(self._by_token(values), self._by_token(self.feature), dense)

    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Returns Z.T @ dense. Z is the sparse [token, feature] matrix with `values` at the entries."""
        return self.transposed_times_and_sums(values, dense)[0]

    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Returns Z.T @ dense and Z.T @ 1. Z is the sparse [token, feature] matrix with `values` at the entries."""
        from .products import transposed_times

        return transposed_times(self._by_token(values), self._by_feature, dense)

    def _by_token(self, values: Tensor) -> Tensor:
        return values.contiguous().view(-1, self.k)

    @cached_property
    def _by_feature(self):
        from .products import EntriesByFeature

        return EntriesByFeature.sort(self.feature, self.width)


@torch.no_grad()
def select_fixed_k(p: Parameters, run: Run, x: Float[Tensor, "token d_in"]) -> SelectedEntries:
    """Returns the k entries of each token with the largest pre-activation times |W_dec[i]|.

    Scores in the run's precision determine the candidates. Scores with float32 sums determine the k entries.
    """
    from .search import choose_top_k, find_candidates, prepare_weights

    dtype, x = score_dtype(run), x.contiguous()
    norm, weight, W_dec = prepare_weights(p.W_enc, p.W_dec, dtype)
    bias, x = p.encoder_bias * norm, x.to(dtype)
    scores = torch.addmm(bias.to(dtype), x, weight.T)
    wanted = candidates_per_token(run.k, len(p.W_enc), dtype != torch.float32)
    candidates, counts = find_candidates(scores, wanted)
    feature, pre = choose_top_k(x, weight, bias, norm, candidates, counts, run.k)
    entries = FixedKEntries(feature.flatten(), run.k, len(p.W_enc), dtype, (p.W_dec, W_dec))
    return SelectedEntries(entries, pre.flatten(), x)
