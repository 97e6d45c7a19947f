"""Tables of the evaluation."""

import pyarrow as pa

from .dictionaries import RUN
from .table import FLOAT, INT, LAYER, RUN_NAME, STRING, Table

NATS = "nats per token"
BASELINE = Table(
    "baseline",
    "Reference values for dictionaries: cross-entropy of the original model and with a site ablated.",
    ("site", "reads", "layer"),
    {
        "site": (STRING, "ablated site"),
        "reads": (
            STRING,
            "what the transcoders read that are compared with the row; mlp_in for SAEs. Rows differ only if "
            "`activations.outliers` drops tokens",
        ),
        "layer": (pa.int16(), "layer, from 0; -1: all layers ablated at once"),
        "ce_original": (FLOAT, f"cross-entropy of the original model, {NATS}"),
        "ce_zero": (FLOAT, f"cross-entropy with the site zero-ablated, {NATS}"),
        "ce_mean": (FLOAT, f"cross-entropy with the site mean-ablated, {NATS}"),
        "kl_zero": (FLOAT, f"KL(original || zero-ablated), {NATS}"),
        "kl_mean": (FLOAT, f"KL(original || mean-ablated), {NATS}"),
        "n_tokens": (INT, "number of scored tokens, including outliers"),
        "mean": (
            pa.list_(FLOAT),
            "mean of the site over scored tokens, to which fvu_median refers; null for -1",
        ),
        "norm_bound_x": (
            FLOAT,
            "norm at the site `reads` above which `activations.outliers` leaves tokens out, else null",
        ),
        "norm_bound_y": (
            FLOAT,
            "norm at the site above which `activations.outliers` leaves tokens out, else null",
        ),
    },
)
METRIC = Table(
    "metric",
    "Reconstruction and downstream metrics of each dictionary on held-out tokens.",
    ("run", "layer"),
    {
        "run": RUN_NAME,
        "layer": (pa.int16(), "layer, from 0; -1: all layers replaced at once"),
        "l0": (
            FLOAT,
            "mean number of active features per token; in rows of layer -1 this and all other columns except CE "
            "and KL are means over layers, each layer reading the output of the replaced layers before it",
        ),
        "fvu": (FLOAT, "fraction of variance unexplained; predicting the mean gives 1"),
        "fvu_median": (
            FLOAT,
            "median over tokens of |y - y_hat|^2 / |y - E y|^2, which weights all tokens equally, whatever their norm",
        ),
        "mse": (FLOAT, "mean over tokens of |y - y_hat|^2"),
        "cosine": (FLOAT, "mean cosine similarity of y and y_hat"),
        "norm_ratio": (FLOAT, "mean of |y_hat| / |y|"),
        "relative_bias": (FLOAT, "E|y_hat|^2 / E[y . y_hat]; 1 is unbiased, less than 1 is shrinkage"),
        "ce": (FLOAT, f"cross-entropy with y replaced by y_hat, {NATS}"),
        "ce_original": (FLOAT, f"cross-entropy of the original model, {NATS}"),
        "ce_zero": (FLOAT, f"cross-entropy with the site zero-ablated, {NATS}"),
        "ce_mean": (FLOAT, f"cross-entropy with the site mean-ablated, {NATS}"),
        "ce_recovered_zero": (FLOAT, "(ce_zero - ce) / (ce_zero - ce_original)"),
        "ce_recovered_mean": (FLOAT, "(ce_mean - ce) / (ce_mean - ce_original)"),
        "delta_ce": (FLOAT, f"ce - ce_original, {NATS}"),
        "kl": (FLOAT, f"KL(original || y replaced by y_hat), {NATS}"),
        "kl_zero": (FLOAT, f"KL(original || zero-ablated), {NATS}"),
        "kl_mean": (FLOAT, f"KL(original || mean-ablated), {NATS}"),
        "alive": (FLOAT, "fraction of features that fire on any scored token"),
        "density_over_1_percent": (FLOAT, "fraction of features that fire on more than 1 % of tokens"),
        "density_over_10_percent": (FLOAT, "fraction of features that fire on more than 10 % of tokens"),
        "n_tokens": (INT, "number of scored tokens"),
        "n_left_out": (INT, "number of tokens that `activations.outliers` left out of the scores"),
    },
)
SCORED = {
    "feature": (pa.int32(), "number of the feature, from 0"),
    "sign": (pa.int8(), "1, or -1 if the negative direction is scored (only residual directions)"),
    "threshold": (FLOAT, "activation above which the concept is predicted"),
    "precision": (FLOAT, "precision on the scoring half of the documents"),
    "recall": (FLOAT, "recall on the scoring half"),
    "f1": (FLOAT, "F1 on the scoring half"),
    "f1_choosing": (FLOAT, "F1 on the other half, on which threshold, feature and layer were chosen"),
    "n_positive": (INT, "number of tokens with the concept in the scoring half"),
}
FEATURE_CONCEPT = Table(
    "feature_concept",
    "The best features of each concept, chosen with their thresholds on one half of the held-out documents and scored "
    "on the other half.",
    ("run", "layer", "concept", "rank"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "concept": (STRING, "name of the concept"),
        "rank": (pa.int16(), "rank among the concept's features, from 0, by f1_choosing"),
        **SCORED,
    },
)
CONCEPT_SCORE = Table(
    "concept_score",
    "The best feature of each concept (rank 0 of feature_concept), per layer and over all layers.",
    ("run", "layer", "concept"),
    {
        "run": RUN_NAME,
        "layer": (pa.int16(), "layer, from 0; -1: the best of all layers by f1_choosing"),
        "concept": (STRING, "name of the concept"),
        "found_layer": (
            pa.int16(),
            "layer of the feature: equal to `layer`, or the best layer if that is -1",
        ),
        **SCORED,
    },
)
DENSITY_HISTOGRAM = Table(
    "density_histogram",
    "Histogram of the densities of a dictionary's features.",
    ("run", "layer", "bin"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "bin": (pa.int16(), "number of the bin; bin 0 holds the features that never fire"),
        "low": (FLOAT, "log10 of the bin's lower edge; null for bin 0"),
        "high": (FLOAT, "log10 of the bin's upper edge; null for bin 0"),
        "n_features": (INT, "number of features in the bin"),
    },
)
PARETO = Table(
    "pareto",
    "The points of pareto.png: L0 against cross-entropy with the reconstruction in place.",
    ("run", "layer"),
    {
        "run": RUN_NAME,
        "layer": (pa.int16(), "layer, from 0; -1: all layers replaced at once"),
        **{name: RUN.columns[name] for name in ("kind", "site_out", "act", "width", "k", "sparsity")},
        **{
            name: METRIC.columns[name]
            for name in ("l0", "ce", "ce_original", "ce_zero", "ce_mean", "ce_recovered_zero", "fvu", "alive")
        },
    },
)
DICTIONARY_BENCHMARK = Table(
    "dictionary_benchmark",
    "Scores of dictionaries by `circuitloom benchmark` (docs/dictionary_benchmark.md). Intervals are of 95 %, over "
    "documents.",
    ("run", "site", "layer", "benchmark", "measure", "task", "k", "other"),
    {
        "run": (
            STRING,
            "name of the dictionary's run; neurons, residual (coordinates of the site) or random (random directions, "
            "as many per token as the runs that read the site have active features)",
        ),
        "site": (STRING, "site that is read"),
        "layer": LAYER,
        "benchmark": (STRING, "core, sparse_probing, absorption or stability"),
        "measure": (STRING, "what is measured; measures of core have SAEBench's names"),
        "task": (
            STRING,
            "predicted label as GROUP/NAME, or GROUP for the mean over its labels (sparse_probing); parent concept, or "
            "planted for the mean over all pairs (absorption); else null",
        ),
        "k": (pa.int32(), "number of features that the probe reads; null: all dimensions of the site"),
        "other": (STRING, "child concept (absorption); run with another seed (stability); else null"),
        "value": (
            FLOAT,
            "the score; null if it is not defined, such as absorption without a feature for the parent",
        ),
        "low": (FLOAT, "lower end of the interval, else null"),
        "high": (FLOAT, "upper end of the interval, else null"),
        "n": (
            INT,
            "number of tokens (core); of tokens with the label that are scored (sparse_probing, absorption; "
            "silent_outside: of the parent's other tokens); of labels or pairs (means); of features of both runs "
            "(stability)",
        ),
        "unit": (STRING, "unit of the value"),
    },
)
