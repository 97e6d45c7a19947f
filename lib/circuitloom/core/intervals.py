"""Intervals of scores that are functions of sums over documents."""

import numpy as np
from jaxtyping import Float

Z95 = 1.959964
"""Quantile of the normal distribution for 95 % intervals."""


def half_interval(influence: Float[np.ndarray, " document"], n: int) -> float:
    """Returns half the width of the 95 % interval of a score over `n` documents, at least 2, drawn independently.

    `influence` is what each document adds to the score's deviation from its expectation, to first order. The variance
    is that of a linearized ratio (Cochran, Sampling Techniques, 1977, chapter 6).
    """
    return Z95 * float(np.sqrt(n / (n - 1) * np.square(influence).sum()))
