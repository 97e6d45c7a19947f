"""Tables of the activation cache."""

import pyarrow as pa

from .table import FLOAT, INT, LAYER, STRING, Table

ACTIVATION_NORM = Table(
    "activation_norm",
    "Norms of the training activations of each site and layer. A few tokens can hold most of the squared norm (massive "
    "activations).",
    ("site", "layer"),
    {
        "site": (STRING, "site of the activations"),
        "layer": LAYER,
        "n_tokens": (INT, "number of cached tokens"),
        "scale": (FLOAT, "sqrt(E|x|^2 / d), by which training divides"),
        "median_norm": (FLOAT, "median of |x| over tokens"),
        "largest_norm": (FLOAT, "largest |x|"),
        "largest_over_median": (FLOAT, "largest_norm / median_norm; null if the median is 0"),
        "top_share": (
            FLOAT,
            "share of the sum of |x|^2 held by the 0.1 % of the tokens (at least one) with the largest norms",
        ),
        "n_over_10": (INT, "number of tokens whose norm exceeds 10 times the median"),
        "n_over_100": (INT, "number of tokens whose norm exceeds 100 times the median"),
        "sequence": (pa.int32(), "row of the training split's token array with the largest norm"),
        "position": (pa.int32(), "position of this token in the sequence, from 0"),
        "token": (STRING, "this token"),
    },
)
