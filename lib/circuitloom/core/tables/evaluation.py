"""Tables of the evaluation."""

import pyarrow as pa

from .dictionaries import RUN
from .table import FLOAT, INT, LAYER, RUN_NAME, STRING, Table

NATS = "nats a token"
BASELINE = Table(
    "baseline",
    "What dictionaries are measured against: the untouched model, and the model with a site ablated.",
    ("site", "layer"),
    {
        "site": (STRING, "site that is ablated"),
        "layer": (pa.int16(), "block of the model, from 0; -1: all studied layers ablated at once"),
        "ce_original": (FLOAT, f"cross-entropy of the untouched model, {NATS}"),
        "ce_zero": (FLOAT, f"cross-entropy with zero in place, {NATS}"),
        "ce_mean": (FLOAT, f"cross-entropy with the untouched model's mean in place, {NATS}"),
        "kl_zero": (FLOAT, f"KL(original || zero in place), {NATS}"),
        "kl_mean": (FLOAT, f"KL(original || mean in place), {NATS}"),
        "n_tokens": (INT, "tokens scored"),
    },
)
METRIC = Table(
    "metric",
    "How well a dictionary stands in for what it reconstructs, on held-out tokens.",
    ("run", "layer"),
    {
        "run": RUN_NAME,
        "layer": (pa.int16(), "block of the model, from 0; -1: all layers replaced at once"),
        "l0": (
            FLOAT,
            "features active a token, mean (layer -1: mean over layers, as all columns but those of CE and KL, "
            "each layer on the inputs that the replaced layers before it make)",
        ),
        "fvu": (FLOAT, "fraction of variance unexplained; predicting the mean gives 1"),
        "mse": (FLOAT, "squared error a token, summed over dimensions"),
        "cosine": (FLOAT, "mean cosine of y and its reconstruction"),
        "norm_ratio": (FLOAT, "mean of |reconstruction| / |y|"),
        "relative_bias": (FLOAT, "E|reconstruction|^2 / E[y . reconstruction]; 1 is unbiased"),
        "ce": (FLOAT, f"cross-entropy with the reconstruction in place, {NATS}"),
        "ce_original": (FLOAT, f"cross-entropy of the untouched model, {NATS}"),
        "ce_zero": (FLOAT, f"cross-entropy with zero in place, {NATS}"),
        "ce_mean": (FLOAT, f"cross-entropy with the mean in place, {NATS}"),
        "ce_recovered_zero": (FLOAT, "(ce_zero - ce) / (ce_zero - ce_original)"),
        "ce_recovered_mean": (FLOAT, "(ce_mean - ce) / (ce_mean - ce_original)"),
        "delta_ce": (FLOAT, f"ce - ce_original, {NATS}"),
        "kl": (FLOAT, f"KL(original || reconstruction in place), {NATS}"),
        "kl_zero": (FLOAT, f"KL(original || zero in place), {NATS}"),
        "kl_mean": (FLOAT, f"KL(original || mean in place), {NATS}"),
        "alive": (FLOAT, "share of features that fire on the evaluation set"),
        "density_over_1_percent": (FLOAT, "share of features that fire on more than 1 % of tokens"),
        "density_over_10_percent": (FLOAT, "share of features that fire on more than 10 % of tokens"),
        "n_tokens": (INT, "tokens scored"),
    },
)
SCORED = {
    "feature": (pa.int32(), "the feature"),
    "sign": (pa.int8(), "1, or -1 where it is the negative direction that scores (residual directions)"),
    "threshold": (FLOAT, "activation above which the feature says that the concept is present"),
    "precision": (FLOAT, "on the scoring half"),
    "recall": (FLOAT, "on the scoring half"),
    "f1": (FLOAT, "on the scoring half"),
    "f1_choosing": (FLOAT, "F1 on the choosing half, by which threshold, feature and layer are chosen"),
    "n_positive": (INT, "tokens of the scoring half that have the concept"),
}
FEATURE_CONCEPT = Table(
    "feature_concept",
    "The best features of each concept: chosen, each with its threshold, on one half of the held-out documents, "
    "scored on the other.",
    ("run", "layer", "concept", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "concept": (STRING, "name of the concept"),
        "rank": (pa.int16(), "place among the concept's features, from 0, by f1_choosing"),
        **SCORED,
    },
)
CONCEPT_SCORE = Table(
    "concept_score",
    "The best feature of each concept (rank 0 of feature_concept), by layer and over all layers.",
    ("run", "layer", "concept"),
    {
        "run": RUN_NAME,
        "layer": (pa.int16(), "block of the model, from 0; -1: the best of all layers, by f1_choosing"),
        "concept": (STRING, "name of the concept"),
        "found_layer": (
            pa.int16(),
            "block that the feature is of: `layer`, or where that is -1 the best one",
        ),
        **SCORED,
    },
)
DENSITY_HISTOGRAM = Table(
    "density_histogram",
    "How many features of a dictionary have which density.",
    ("run", "layer", "bin"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "bin": (pa.int16(), "bin, from 0 (features that never fire)"),
        "low": (FLOAT, "log10 of the lowest density of the bin"),
        "high": (FLOAT, "log10 of the highest density of the bin"),
        "n_features": (INT, "features in the bin"),
    },
)
PARETO = Table(
    "pareto",
    "What pareto.png shows: sparsity against what a reconstruction costs the model.",
    ("run", "layer"),
    {
        "run": RUN_NAME,
        "layer": (pa.int16(), "block of the model, from 0; -1: all layers replaced at once"),
        **{name: RUN.columns[name] for name in ("kind", "act", "width", "k", "sparsity")},
        **{
            name: METRIC.columns[name]
            for name in ("l0", "ce", "ce_original", "ce_zero", "ce_mean", "ce_recovered_zero", "fvu", "alive")
        },
    },
)
