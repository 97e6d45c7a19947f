"""Tables of the dictionaries."""

from .table import FLOAT, INT, LAYER, RUN_NAME, STRING, Table

RUN = Table(
    "run",
    "Dictionaries and how they were trained.",
    ("run",),
    {
        "run": RUN_NAME,
        "kind": (STRING, "transcoder, sae, neuron or residual"),
        "site_in": (STRING, "site that is read"),
        "site_out": (STRING, "site that is written"),
        "act": (STRING, "activation function"),
        "width": (INT, "number of features, F"),
        "k": (INT, "active features a token (topk, batchtopk), else null"),
        "sparsity": (
            FLOAT,
            "weight of the sparsity penalty (relu, jumprelu), else null; null of what was imported",
        ),
        "seed": (INT, "seed of the initial weights; null of what was imported"),
        "config": (STRING, "the run's whole config, JSON"),
    },
)
HISTORY = Table(
    "history",
    "Training of a dictionary, a row every few steps; none of what was imported.",
    ("run", "layer", "step"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "step": (INT, "optimiser steps taken"),
        "loss": (FLOAT, "what is minimised"),
        "reconstruction": (FLOAT, "reconstruction loss, a share of the variance of the output"),
        "sparsity": (FLOAT, "sparsity penalty with its weight, 0 without one"),
        "auxiliary": (FLOAT, "auxiliary loss with its weight, 0 without one"),
        "l0": (FLOAT, "features active a token"),
        "fvu": (FLOAT, "fraction of variance unexplained, on the step's batch"),
        "dead": (FLOAT, "share of features silent for `dead_tokens`"),
        "learning_rate": (FLOAT, "learning rate of Adam"),
        "tokens_per_second": (FLOAT, "tokens trained on a second, by this run alone"),
    },
)
