"""Trains topk on a GPU: selects exactly k features per token, and computes sparse products with Triton kernels.

This module differs from the CPU code (training/selection.py and training/sparse.py) in three ways:

- Large matrices are rounded to the run's precision and sums are float32. With bfloat16, values and gradients have the
  accuracy of bfloat16.
- If scores tie, the features with the lowest indices are kept.
- No tensor's size depends on the data. The CPU therefore never waits for the GPU in a step, and
  the step can be captured as a CUDA graph.
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
"""Largest k for which the kernels are used.

The kernels compare every pair of a token's candidates. There are about 2 k candidates.
"""


def uses_kernels(run: Run, x: Float[Tensor, "token d_in"]) -> bool:
    """Whether this run trains on batch x with the kernels. If not, the run uses the CPU code or dense products."""
    return (
        x.is_cuda and run.act == "topk" and run.k <= MAX_K and importlib.util.find_spec("triton") is not None
    )


@dataclass(frozen=True)
class FixedKEntries(Entries):
    """Holds exactly k entries per token.

    The methods import Triton, because machines without a GPU lack Triton.
    """

    feature: Int[Tensor, " entry"]
    """Feature of each entry, int32. Entries are ordered by token, then by feature."""
    k: int
    """Number of entries per token."""
    width: int
    """Number of features, F."""
    precision: torch.dtype
    """Dtype of the dense matrices in the products."""
    rounded: tuple[Tensor, Tensor] | None = None
    """A matrix and the rounded copy of this matrix. None if there is no such copy."""

    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Returns `dense` rounded to `precision`."""
        if self.rounded is not None and self.rounded[0] is dense:
            return self.rounded[1]
        return dense.to(self.precision).contiguous()

    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Returns the values of left @ right.T at the (token, feature) entries of `self`."""
        from .products import sample

        return sample(left, right, self._by_token(self.feature)).flatten()

    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Returns Z @ dense.

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """
        from .products import times

        return times(self._by_token(values), self._by_token(self.feature), dense)

    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Returns Z.T @ dense.

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """
        return self.transposed_times_and_sums(values, dense)[0]

    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Returns Z.T @ dense, and the sum of each feature's values (Z.T @ 1).

        Z is the sparse [token, feature] matrix with `values` at the entries of `self`, and 0 elsewhere.
        """
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
    """For each token, returns the k entries with the largest pre-activation times |W_dec[i]|.

    Candidates are found by scores in the run's precision. The final choice and the pre-activations use float32 sums.
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
