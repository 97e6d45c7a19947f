"""Tables of dictionaries and their training."""

from .table import FLOAT, INT, LAYER, RUN_NAME, STRING, Table

RUN = Table(
    "run",
    "Dictionaries and how they were trained.",
    ("run",),
    {
        "run": RUN_NAME,
        "kind": (STRING, "transcoder, sae, clt (cross-layer transcoder), neuron or residual"),
        "site_in": (STRING, "site that is read"),
        "site_out": (STRING, "site that is reconstructed"),
        "act": (STRING, "activation function"),
        "width": (INT, "number of features, F"),
        "k": (INT, "active features per token (topk, batchtopk), else null"),
        "sparsity": (
            FLOAT,
            "weight of the sparsity penalty (relu, jumprelu), else null; null for imported runs",
        ),
        "seed": (INT, "seed of the initial weights; null for imported runs"),
        "config": (STRING, "the run's config, JSON"),
    },
)
HISTORY = Table(
    "history",
    "Training history of dictionaries, one row every 10 steps; none for imported runs.",
    ("run", "layer", "step"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "step": (INT, "optimizer steps taken"),
        "loss": (FLOAT, "training loss: reconstruction + sparsity + auxiliary"),
        "reconstruction": (FLOAT, "reconstruction loss, as a fraction of the output's variance"),
        "sparsity": (FLOAT, "sparsity penalty times its weight; 0 without one"),
        "auxiliary": (FLOAT, "AuxK loss or pre-activation loss times its weight; 0 without one"),
        "l0": (FLOAT, "active features per token"),
        "fvu": (FLOAT, "fraction of variance unexplained on this step's batch"),
        "dead": (FLOAT, "share of features that have not fired for `dead_tokens` tokens"),
        "learning_rate": (FLOAT, "learning rate of Adam"),
        "outliers": (INT, "number of tokens so far that `activations.outliers` left out or capped"),
        "tokens_per_second": (FLOAT, "tokens per second of this run's steps"),
    },
)
