"""Tables of the features."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, POSITION, RUN_NAME, SEQUENCE, STRING, Table

FEATURE = Table(
    "feature",
    "Statistics of every feature on the held-out tokens; MLP neurons are features of the run `neurons`.",
    ("run", "layer", "feature"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "density": (FLOAT, "fraction of tokens on which the feature fires"),
        "n_tokens": (INT, "number of tokens on which it fires"),
        "max_activation": (pa.float32(), "largest activation; null if it never fires"),
        "mean_activation": (
            FLOAT,
            "mean activation over the tokens on which it fires; null if it never fires",
        ),
        "rms_activation": (
            FLOAT,
            "root mean square activation over the tokens on which it fires; null if it never fires",
        ),
        "decoder_norm": (
            pa.float32(),
            "norm of its decoder row; of a cross-layer transcoder, of its rows to all outputs, each relative to the "
            "output's scale",
        ),
        "encoder_norm": (pa.float32(), "norm of its encoder row; null for neurons"),
        "bias": (pa.float32(), "encoder bias; null for neurons"),
        "alive": (pa.bool_(), "whether it fires on any token"),
    },
)
HISTOGRAM = Table(
    "histogram",
    "Histogram of each feature's activations, in bins of equal width from 0 to its largest activation.",
    ("run", "layer", "feature", "bin"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "bin": (pa.int16(), "number of the bin, from 0; empty bins have no row"),
        "low": (pa.float32(), "lower edge (inclusive)"),
        "high": (pa.float32(), "upper edge (exclusive, except in the last bin)"),
        "n_tokens": (INT, "number of tokens with an activation in the bin"),
    },
)
ACTIVATION = Table(
    "activation",
    "All non-zero activations, ordered by feature.",
    ("run", "layer", "feature", "sequence", "position"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "sequence": SEQUENCE,
        "position": POSITION,
        "activation": (pa.float32(), "activation of the feature"),
    },
)
CODE = Table(
    "code",
    "The active features of each token: the table `activation` by token, without values. Tokens without active "
    "features have no row. The catalogue's view adds a list column `features`, unpacked from `packed`.",
    ("run", "layer", "sequence", "position"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "sequence": SEQUENCE,
        "position": POSITION,
        "n_features": (pa.int32(), "number of active features"),
        "packed": (
            pa.binary(),
            "ascending feature numbers, big-endian, 2 bytes each (4 if the run has more than 65,536 features); 5 times "
            "faster to scan than a list column",
        ),
    },
)
EXAMPLE = Table(
    "example",
    "Example tokens of each feature: its largest activations, and samples from bands of equal width.",
    ("run", "layer", "feature", "band", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "band": (
            pa.int8(),
            "0: the largest activations; 1, 2, ...: bands of equal width between 0 and the largest activation",
        ),
        "rank": (pa.int16(), "rank in the band, from 0, by activation; ties by position in the text"),
        "sequence": SEQUENCE,
        "position": POSITION,
        "activation": (pa.float32(), "activation at the token"),
        "tokens": (pa.list_(STRING), "the token and its context, within its sequence and document"),
        "activations": (pa.list_(pa.float32()), "activation at each of these tokens"),
        "window_start": (POSITION[0], "position of the first of these tokens"),
        "band_low": (pa.float32(), "lower edge of the band (band 0: smallest activation in it)"),
        "band_high": (pa.float32(), "upper edge of the band (band 0: largest activation)"),
        "band_share": (pa.float32(), "fraction of the feature's activations in the band"),
    },
)
LOGIT = Table(
    "logit",
    "Direct logit attribution of each feature: the tokens whose logits its decoder row raises or lowers most, "
    "W_dec[i] P (gain * W_U) minus the mean over tokens, with the final norm's denominator set to 1. Of a cross-layer "
    "transcoder, the sum over all layers that the feature writes to.",
    ("run", "layer", "feature", "sign", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "sign": (pa.int8(), "1: logit raised, -1: logit lowered"),
        "rank": (pa.int16(), "rank, from 0, strongest first"),
        "token_id": (pa.int32(), "token id"),
        "token": (STRING, "text of the token"),
        "effect": (pa.float32(), "change of the logit for an activation of 1 and a denominator of 1"),
    },
)
