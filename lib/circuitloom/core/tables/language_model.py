"""Tables of the language model."""

from .table import FLOAT, INT, STRING, Table

PRETRAINING = Table(
    "pretraining",
    "Loss of the language model while it is pretrained.",
    ("step",),
    {
        "step": (INT, "optimiser steps taken"),
        "loss": (FLOAT, "cross-entropy on the step's batches since the row before, nats a token"),
        "learning_rate": (FLOAT, "learning rate of Muon"),
        "tokens_per_second": (FLOAT, "tokens trained on a second"),
    },
)
LANGUAGE_MODEL = Table(
    "language_model",
    "What the language model achieves on held-out text, one row a figure.",
    ("figure",),
    {
        "figure": (STRING, "name of the figure"),
        "value": (FLOAT, "its value"),
        "unit": (STRING, "its unit"),
        "meaning": (STRING, "what it says"),
    },
)
