"""Tables of the features."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, POSITION, RUN_NAME, SEQUENCE, STRING, Table

FEATURE = Table(
    "feature",
    "What every feature of a dictionary does on the held-out tokens; neurons are features of the run `neurons`.",
    ("run", "layer", "feature"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "density": (FLOAT, "share of tokens on which it fires"),
        "n_tokens": (INT, "tokens on which it fires"),
        "max_activation": (pa.float32(), "largest activation; null where it never fires"),
        "mean_activation": (FLOAT, "mean over the tokens on which it fires; null where there are none"),
        "rms_activation": (
            FLOAT,
            "root of the mean square over the tokens on which it fires; null as above",
        ),
        "decoder_norm": (pa.float32(), "norm of the row it writes"),
        "encoder_norm": (pa.float32(), "norm of the row it reads with; null for neurons"),
        "bias": (pa.float32(), "encoder bias; null for neurons"),
        "alive": (pa.bool_(), "it fires at all"),
    },
)
HISTOGRAM = Table(
    "histogram",
    "How a feature's activations are distributed: bins of equal width from 0 to its largest.",
    ("run", "layer", "feature", "bin"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "bin": (pa.int16(), "bin, from 0; empty bins have no row"),
        "low": (pa.float32(), "activation at its lower edge, which it includes"),
        "high": (pa.float32(), "activation at its upper edge, which the last bin alone includes"),
        "n_tokens": (INT, "tokens whose activation lies in it"),
    },
)
ACTIVATION = Table(
    "activation",
    "Every activation that is not zero, by feature.",
    ("run", "layer", "feature", "sequence", "position"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "sequence": SEQUENCE,
        "position": POSITION,
        "activation": (pa.float32(), "value of the feature"),
    },
)
CODE = Table(
    "code",
    "Which features fire on a token: the entries of `activation` by token, one row a token on which any fires. "
    "The catalogue's view adds `features`, the list that `unpacked(packed, n_features)` gives.",
    ("run", "layer", "sequence", "position"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "sequence": SEQUENCE,
        "position": POSITION,
        "n_features": (pa.int32(), "features that fire"),
        "packed": (
            pa.binary(),
            "their numbers, ascending, big-endian, 2 bytes each (4 where the run has more than 65,536): "
            "a list of numbers would take 5 times as long to scan",
        ),
    },
)
EXAMPLE = Table(
    "example",
    "Examples of what a feature fires on: its largest activations, and samples from evenly spaced bands.",
    ("run", "layer", "feature", "band", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "band": (
            pa.int8(),
            "0: the largest; 1, 2, ...: bands of equal width, from 0 up to the largest activation",
        ),
        "rank": (pa.int16(), "place in the band, from 0, by activation, the earlier token first where equal"),
        "sequence": SEQUENCE,
        "position": POSITION,
        "activation": (pa.float32(), "value of the feature at the token"),
        "tokens": (pa.list_(STRING), "the token in its surroundings, within its sequence and document"),
        "activations": (pa.list_(pa.float32()), "the feature's value at each of them"),
        "window_start": (POSITION[0], "position of the first of them"),
        "band_low": (pa.float32(), "lower edge of the band (band 0: its smallest activation)"),
        "band_high": (pa.float32(), "upper edge of the band (band 0: the largest activation)"),
        "band_share": (pa.float32(), "share of the feature's activations that lie in the band"),
    },
)
LOGIT = Table(
    "logit",
    "Tokens that a feature's decoder row raises or lowers most, directly: W_dec[i] P(gain * W_U), mean over tokens "
    "taken off; the final norm's denominator, which depends on the input, left out.",
    ("run", "layer", "feature", "sign", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "sign": (pa.int8(), "1: raised, -1: lowered"),
        "rank": (pa.int16(), "place, from 0, the strongest first"),
        "token_id": (pa.int32(), "number of the token in the vocabulary"),
        "token": (STRING, "the token as text"),
        "effect": (pa.float32(), "change of its logit for an activation of 1 and a denominator of 1"),
    },
)
