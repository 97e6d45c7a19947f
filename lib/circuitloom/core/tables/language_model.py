"""Tables of the language model."""

from .table import FLOAT, INT, STRING, Table

PRETRAINING = Table(
    "pretraining",
    "Loss of the language model while it is pretrained.",
    ("step",),
    {
        "step": (INT, "optimizer steps taken"),
        "loss": (FLOAT, "cross-entropy on the batches since the previous row, nats per token"),
        "learning_rate": (FLOAT, "learning rate of Muon"),
        "tokens_per_second": (FLOAT, "training tokens per second"),
    },
)
LANGUAGE_MODEL = Table(
    "language_model",
    "Quality of the language model on held-out text, one row per figure.",
    ("figure",),
    {
        "figure": (STRING, "name of the figure"),
        "value": (FLOAT, "its value"),
        "unit": (STRING, "its unit"),
        "meaning": (STRING, "what it measures"),
    },
)
