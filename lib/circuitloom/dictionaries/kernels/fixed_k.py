"""Sparse products on a GPU, where every token has k entries: by Triton's kernels, which are imported where they run.

Beside the CPU's (sparse.py, selection.py) three things differ. Large matrices are rounded to the run's precision before
they are read, sums are float32; so values and gradients too are of bfloat16's accuracy. Of features of equal score the
first are kept, so that every token has exactly k. And no size depends on the data, so that nothing waits for the GPU
and a step can be captured as a CUDA graph.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...config.dictionaries import Run
from ..training.parameters import Parameters
from ..training.selection import margin, rough_dtype
from ..training.sparse import Entries, Selected

MOST_K = 128
"""The choice compares all pairs of a token's candidates, whose number is twice k or more."""


def kernels_serve(run: Run, x: Float[Tensor, "token d_in"]) -> bool:
    """Whether a batch of this run is for the kernels; the others are for the CPU's products or dense ones."""
    return x.is_cuda and run.act == "topk" and run.k <= MOST_K and _triton_is_there()


def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class FixedKEntries(Entries):
    """The same number of entries in each row."""

    feature: Int[Tensor, " entry"]
    """int32; ascending within a token."""
    k: int
    """Entries a token."""
    width: int
    """Number of features, F."""
    precision: torch.dtype
    """Number format of dense operands."""
    rounded: tuple[Tensor, Tensor] | None = None
    """A matrix and its rounded copy, where that is at hand."""

    def operand(self, dense: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """The matrix, rounded."""
        if self.rounded is not None and self.rounded[0] is dense:
            return self.rounded[1]
        return dense.to(self.precision).contiguous()

    def sample(
        self, left: Float[Tensor, "token d"], right: Float[Tensor, "feature d"]
    ) -> Float[Tensor, " entry"]:
        """Entries of left @ right.T, those of the pattern alone."""
        from .products import sample

        return sample(left, right, self._by_token(self.feature)).flatten()

    def times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "feature d"]
    ) -> Float[Tensor, "token d"]:
        """Z @ dense, Z the matrix that has `values` at the pattern."""
        from .products import times

        return times(self._by_token(values), self._by_token(self.feature), dense)

    def transposed_times(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> Float[Tensor, "feature d"]:
        """Z.T @ dense."""
        return self.transposed_times_and_sums(values, dense)[0]

    def transposed_times_and_sums(
        self, values: Float[Tensor, " entry"], dense: Float[Tensor, "token d"]
    ) -> tuple[Float[Tensor, "feature d"], Float[Tensor, " feature"]]:
        """Z.T @ dense, and Z.T @ 1."""
        from .products import transposed_times

        return transposed_times(self._by_token(values), self._by_feature, dense)

    def _by_token(self, values: Tensor) -> Tensor:
        return values.contiguous().view(-1, self.k)

    @cached_property
    def _by_feature(self):
        from .products import ByFeature

        return ByFeature.of(self.feature, self.width)


@torch.no_grad()
def choose(p: Parameters, run: Run, x: Float[Tensor, "token d_in"]) -> Selected:
    """The k features of largest pre-activation times |W_dec[i]| of each token.

    Candidates are found by scores rounded to the run's precision, and chosen from by sums of float32, in which their
    pre-activations are computed as well.
    """
    from .rounding import prepare
    from .search import candidates_of
    from .search import choose as choose_among

    low, x = rough_dtype(run), x.contiguous()
    norm, weight, W_dec = prepare(p.W_enc, p.W_dec, low)
    bias, x = p.encoder_bias * norm, x.to(low)
    scores = torch.addmm(bias.to(low), x, weight.T)
    candidates, counts = candidates_of(scores, margin(run.k, len(p.W_enc), low != torch.float32))
    feature, pre = choose_among(x, weight, bias, norm, candidates, counts, run.k)
    rows = FixedKEntries(feature.flatten(), run.k, len(p.W_enc), low, (p.W_dec, W_dec))
    return Selected(rows, pre.flatten(), x)
