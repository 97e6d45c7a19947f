"""Tables of the analysis of weights: de-embeddings, connections between features, and blind predictions."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, RUN_NAME, STRING, Table

_VIA = "`direct`; `head L.H`: through head H of layer L"

DEEMBEDDING = Table(
    "deembedding",
    "Tokens whose embedding raises or lowers a feature's pre-activation most, by the weights alone: with the norms' "
    "gains and centering, without denominators, which depend on the input.",
    ("run", "layer", "feature", "via", "sign", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "via": (
            STRING,
            f"{_VIA}; `layer0`: through the run's layer-0 dictionary applied to the embedding alone",
        ),
        "sign": (pa.int8(), "1: raises the feature, -1: lowers it"),
        "rank": (pa.int16(), "rank from 0, strongest first"),
        "token_id": (pa.int32(), "id of the token"),
        "token": (STRING, "token as text"),
        "effect": (
            pa.float32(),
            "change of the pre-activation, with denominators and attention weights of 1",
        ),
    },
)
CONNECTION = Table(
    "connection",
    "Connections between features of different layers with the largest virtual weights, and their mean effects on "
    "held-out tokens.",
    ("run", "layer", "feature", "via", "source_layer", "source_feature"),
    {
        "run": RUN_NAME,
        "layer": (LAYER[0], "block of the target feature"),
        "feature": (FEATURE_INDEX[0], "index of the target feature"),
        "via": (STRING, _VIA),
        "rank": (
            pa.int16(),
            "rank from 0 by |weight|, among the feature's direct connections or among those through heads",
        ),
        "source_layer": (LAYER[0], "block of the source feature"),
        "source_feature": (FEATURE_INDEX[0], "index of the source feature"),
        "weight": (
            pa.float32(),
            "virtual weight: change of the pre-activation if the source writes a vector of norm 1 (in trained "
            "dictionaries: an activation of 1), with denominators and attention weights of 1",
        ),
        "mean_effect": (
            FLOAT,
            "mean over tokens of what the source, from all positions, adds to the pre-activation through this "
            "connection, with actual denominators and attention",
        ),
        "mean_effect_when_active": (
            FLOAT,
            "mean effect over the tokens on which the target feature fires; null if it never does",
        ),
        "n_active": (
            INT,
            "number of tokens, of those that means are over, on which the target feature fires",
        ),
    },
)
BLIND = Table(
    "blind",
    "Blind predictions: tokens that a feature is predicted to fire on without looking at any text, scored on held-out "
    "tokens. Some features of each layer.",
    ("run", "layer", "feature", "protocol"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "protocol": (
            STRING,
            "`restricted`: from weights alone; `plain`: also from the mean contributions of embeddings and layer-0 "
            "features where it fires",
        ),
        "tokens": (pa.list_(STRING), "predicted tokens, strongest first"),
        "place": (
            STRING,
            "position of the predicted tokens: `here`, where the feature fires, or `previous`, one before",
        ),
        "precision": (FLOAT, "share of predicted occurrences on which it fires; null if none occurs"),
        "recall": (
            FLOAT,
            "share of the tokens on which it fires that were predicted; null if it never fires",
        ),
        "f1": (
            FLOAT,
            "harmonic mean of precision and recall; null if it never fires",
        ),
        "n_tokens": (INT, "number of scored tokens on which it fires"),
    },
)
