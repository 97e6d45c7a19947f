"""Tables of what the weights say about features."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, RUN_NAME, STRING, Table

_VIA = "`direct`; `head L.H`: through head H of layer L"

DEEMBEDDING = Table(
    "deembedding",
    "Tokens whose embedding raises or lowers a feature's pre-activation most, by the weights alone: gains of norms and "
    "what takes off the mean are gone through, denominators, which depend on the input, are left out.",
    ("run", "layer", "feature", "via", "sign", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "via": (
            STRING,
            f"{_VIA}; `layer0`: through what the run's layer-0 dictionary makes of the embedding alone",
        ),
        "sign": (pa.int8(), "1: raised, -1: lowered"),
        "rank": (pa.int16(), "place, from 0, the strongest first"),
        "token_id": (pa.int32(), "number of the token in the vocabulary"),
        "token": (STRING, "the token as text"),
        "effect": (pa.float32(), "change of the pre-activation, for denominators and attention of 1"),
    },
)
CONNECTION = Table(
    "connection",
    "Features of earlier layers that a feature reads most, by the weights alone, and what they do to it on held-out "
    "tokens.",
    ("run", "layer", "feature", "via", "source_layer", "source_feature"),
    {
        "run": RUN_NAME,
        "layer": (LAYER[0], "block of the feature that reads"),
        "feature": (FEATURE_INDEX[0], "number of the feature that reads, from 0"),
        "via": (STRING, _VIA),
        "rank": (
            pa.int16(),
            "place among the feature's direct connections, or among those through heads, from 0, by |weight|",
        ),
        "source_layer": (LAYER[0], "block of the feature that is read"),
        "source_feature": (FEATURE_INDEX[0], "number of the feature that is read, from 0"),
        "weight": (
            pa.float32(),
            "change of the pre-activation for an activation, denominators and attention of 1",
        ),
        "mean_effect": (
            FLOAT,
            "mean over tokens of what the source adds to the pre-activation this way, from all positions, "
            "denominators and attention as they are",
        ),
        "mean_effect_when_active": (
            FLOAT,
            "the same over the tokens on which the feature fires; null where there are none",
        ),
        "n_active": (INT, "tokens on which the feature fires, of those that means are over"),
    },
)
BLIND = Table(
    "blind",
    "Tokens that a feature is predicted to fire on from what never shows a text, and how well that holds on held-out "
    "tokens; some features of a layer.",
    ("run", "layer", "feature", "protocol"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "protocol": (
            STRING,
            "`restricted`: from the weights; `plain`: also from what embeddings and layer-0 features, by number, "
            "contribute where it fires",
        ),
        "tokens": (pa.list_(STRING), "tokens predicted, the strongest first"),
        "place": (
            STRING,
            "where they stand when it fires: `here`, at its token, or `previous`, at the one before",
        ),
        "precision": (FLOAT, "share of the tokens predicted on which it fires; null where none occurs"),
        "recall": (
            FLOAT,
            "share of the tokens on which it fires that were predicted; null where it never fires",
        ),
        "f1": (
            FLOAT,
            "harmonic mean of both, 0 where they have nothing in common; null where it never fires",
        ),
        "n_tokens": (INT, "tokens on which it fires, of those that are scored"),
    },
)
