"""The tables: their Arrow schemas, what each column means, and how they are written and read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import first_line
from .partial import replacing


@dataclass(frozen=True)
class Table:
    """A table: one Parquet file of this name wherever it is written."""

    name: str
    meaning: str
    key: tuple[str, ...]
    columns: dict[str, tuple[pa.DataType, str]]
    """Column to (type, one-line meaning with unit)."""

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, meanings included as field metadata."""
        fields = [pa.field(n, t, metadata={"meaning": meaning}) for n, (t, meaning) in self.columns.items()]
        return pa.schema(fields, metadata={"table": self.name, "key": ", ".join(self.key)})


_STRING, _FLOAT, _INT = pa.string(), pa.float64(), pa.int64()
_SEQUENCE = (pa.int32(), "row of the split's token array")
_POSITION = (pa.int16(), "place in the sequence, from 0 (the BOS in front)")
_RUN = (_STRING, "name of the dictionary's run")
_LAYER = (pa.int16(), "block of the model, from 0")

DOCUMENT = Table(
    "document",
    "Documents of the corpus, in the order in which they were packed.",
    ("split", "document"),
    {
        "split": (_STRING, "train or validation"),
        "document": (pa.int32(), "number of the document within its split, from 0"),
        "n_tokens": (pa.int32(), "tokens, without the BOS in front"),
        "log_probability": (_FLOAT, "log p under the grammar that generated it, in nats; null for real text"),
        "text": (_STRING, "the document"),
    },
)
TOKEN = Table(
    "token",
    "Held-out tokens, one row a position.",
    ("sequence", "position"),
    {
        "sequence": _SEQUENCE,
        "position": _POSITION,
        "document": (pa.int32(), "document the token belongs to"),
        "token_id": (pa.int32(), "number of the token in the vocabulary"),
        "token": (_STRING, "the token as text"),
    },
)
CONCEPT = Table(
    "concept",
    "Which planted concepts each held-out token takes part in (chronicle only).",
    ("concept", "sequence", "position"),
    {
        "concept": (pa.dictionary(pa.int16(), _STRING), "name of the concept"),
        "sequence": _SEQUENCE,
        "position": _POSITION,
    },
)
PRETRAINING = Table(
    "pretraining",
    "Loss of the language model while it is pretrained.",
    ("step",),
    {
        "step": (_INT, "optimiser steps taken"),
        "loss": (_FLOAT, "cross-entropy on the step's batches since the row before, nats a token"),
        "learning_rate": (_FLOAT, "learning rate of Muon"),
        "tokens_per_second": (_FLOAT, "tokens trained on a second"),
    },
)
LANGUAGE_MODEL = Table(
    "language_model",
    "What the language model achieves on held-out text, one row a figure.",
    ("figure",),
    {
        "figure": (_STRING, "name of the figure"),
        "value": (_FLOAT, "its value"),
        "unit": (_STRING, "its unit"),
        "meaning": (_STRING, "what it says"),
    },
)
RUN = Table(
    "run",
    "Dictionaries and how they were trained.",
    ("run",),
    {
        "run": _RUN,
        "kind": (_STRING, "transcoder, sae, neuron or residual"),
        "site_in": (_STRING, "site that is read"),
        "site_out": (_STRING, "site that is written"),
        "act": (_STRING, "activation function"),
        "width": (_INT, "number of features, F"),
        "k": (_INT, "active features a token (topk, batchtopk), else null"),
        "sparsity": (_FLOAT, "weight of the sparsity penalty (relu, jumprelu), else null"),
        "seed": (_INT, "seed of the initial weights"),
        "config": (_STRING, "the run's whole config, JSON"),
    },
)
HISTORY = Table(
    "history",
    "Training of a dictionary, a row every few steps.",
    ("run", "layer", "step"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "step": (_INT, "optimiser steps taken"),
        "loss": (_FLOAT, "what is minimised"),
        "reconstruction": (_FLOAT, "reconstruction loss, a share of the variance of the output"),
        "sparsity": (_FLOAT, "sparsity penalty with its weight, 0 without one"),
        "auxiliary": (_FLOAT, "auxiliary loss with its weight, 0 without one"),
        "l0": (_FLOAT, "features active a token"),
        "fvu": (_FLOAT, "fraction of variance unexplained, on the step's batch"),
        "dead": (_FLOAT, "share of features silent for `dead_tokens`"),
        "learning_rate": (_FLOAT, "learning rate of Adam"),
        "tokens_per_second": (_FLOAT, "tokens trained on a second, by this run alone"),
    },
)
_NATS = "nats a token"
BASELINE = Table(
    "baseline",
    "What dictionaries are measured against: the untouched model, and the model with a site ablated.",
    ("site", "layer"),
    {
        "site": (_STRING, "site that is ablated"),
        "layer": (pa.int16(), "block of the model, from 0; -1: all studied layers ablated at once"),
        "ce_original": (_FLOAT, f"cross-entropy of the untouched model, {_NATS}"),
        "ce_zero": (_FLOAT, f"cross-entropy with zero in place, {_NATS}"),
        "ce_mean": (_FLOAT, f"cross-entropy with the untouched model's mean in place, {_NATS}"),
        "kl_zero": (_FLOAT, f"KL(original || zero in place), {_NATS}"),
        "kl_mean": (_FLOAT, f"KL(original || mean in place), {_NATS}"),
        "n_tokens": (_INT, "tokens scored"),
    },
)
METRIC = Table(
    "metric",
    "How well a dictionary stands in for what it reconstructs, on held-out tokens.",
    ("run", "layer"),
    {
        "run": _RUN,
        "layer": (pa.int16(), "block of the model, from 0; -1: all layers replaced at once"),
        "l0": (
            _FLOAT,
            "features active a token, mean (layer -1: mean over layers, as all columns but those of CE and KL, "
            "each layer on the inputs that the replaced layers before it make)",
        ),
        "fvu": (_FLOAT, "fraction of variance unexplained; predicting the mean gives 1"),
        "mse": (_FLOAT, "squared error a token, summed over dimensions"),
        "cosine": (_FLOAT, "mean cosine of y and its reconstruction"),
        "norm_ratio": (_FLOAT, "mean of |reconstruction| / |y|"),
        "relative_bias": (_FLOAT, "E|reconstruction|^2 / E[y . reconstruction]; 1 is unbiased"),
        "ce": (_FLOAT, f"cross-entropy with the reconstruction in place, {_NATS}"),
        "ce_original": (_FLOAT, f"cross-entropy of the untouched model, {_NATS}"),
        "ce_zero": (_FLOAT, f"cross-entropy with zero in place, {_NATS}"),
        "ce_mean": (_FLOAT, f"cross-entropy with the mean in place, {_NATS}"),
        "ce_recovered_zero": (_FLOAT, "(ce_zero - ce) / (ce_zero - ce_original)"),
        "ce_recovered_mean": (_FLOAT, "(ce_mean - ce) / (ce_mean - ce_original)"),
        "delta_ce": (_FLOAT, f"ce - ce_original, {_NATS}"),
        "kl": (_FLOAT, f"KL(original || reconstruction in place), {_NATS}"),
        "kl_zero": (_FLOAT, f"KL(original || zero in place), {_NATS}"),
        "kl_mean": (_FLOAT, f"KL(original || mean in place), {_NATS}"),
        "alive": (_FLOAT, "share of features that fire on the evaluation set"),
        "density_over_1_percent": (_FLOAT, "share of features that fire on more than 1 % of tokens"),
        "density_over_10_percent": (_FLOAT, "share of features that fire on more than 10 % of tokens"),
        "n_tokens": (_INT, "tokens scored"),
    },
)
CONCEPT_SCORE = Table(
    "concept_score",
    "The best feature of each concept: chosen with its threshold on one half of the held-out documents, "
    "scored on the other.",
    ("run", "layer", "concept"),
    {
        "run": _RUN,
        "layer": (pa.int16(), "block of the model, from 0; -1: the best of all layers, by f1_choosing"),
        "concept": (_STRING, "name of the concept"),
        "found_layer": (
            pa.int16(),
            "block that the feature is of: `layer`, or where that is -1 the best one",
        ),
        "feature": (pa.int32(), "best feature"),
        "sign": (pa.int8(), "1, or -1 where it is the negative direction that scores (residual directions)"),
        "threshold": (_FLOAT, "activation above which the feature says that the concept is present"),
        "precision": (_FLOAT, "on the scoring half"),
        "recall": (_FLOAT, "on the scoring half"),
        "f1": (_FLOAT, "on the scoring half"),
        "f1_choosing": (_FLOAT, "F1 on the choosing half, by which threshold, feature and layer are chosen"),
        "n_positive": (_INT, "tokens of the scoring half that have the concept"),
    },
)
HISTOGRAM = Table(
    "density_histogram",
    "How many features of a dictionary have which density.",
    ("run", "layer", "bin"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "bin": (pa.int16(), "bin, from 0 (features that never fire)"),
        "low": (_FLOAT, "log10 of the lowest density of the bin"),
        "high": (_FLOAT, "log10 of the highest density of the bin"),
        "n_features": (_INT, "features in the bin"),
    },
)
PARETO = Table(
    "pareto",
    "What pareto.png shows: sparsity against what a reconstruction costs the model.",
    ("run", "layer"),
    {
        "run": _RUN,
        "layer": (pa.int16(), "block of the model, from 0; -1: all layers replaced at once"),
        **{name: RUN.columns[name] for name in ("kind", "act", "width", "k", "sparsity")},
        **{
            name: METRIC.columns[name]
            for name in ("l0", "ce", "ce_original", "ce_zero", "ce_mean", "ce_recovered_zero", "fvu", "alive")
        },
    },
)

TABLES = (
    DOCUMENT, TOKEN, CONCEPT, PRETRAINING, LANGUAGE_MODEL, RUN, HISTORY, BASELINE, METRIC, CONCEPT_SCORE,
    HISTOGRAM, PARETO,
)  # fmt: skip


def write_table(table: Table, rows: pa.Table | Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Write `rows` (columns by name, cast to the schema) to `path`, whole or not at all.

    Raises ValueError where a column is missing, unknown or of another type.
    """
    path = Path(path)
    if isinstance(rows, pa.Table):
        columns: Any = rows
    else:
        unknown = {key for row in rows for key in row} - set(table.columns)
        if unknown:
            raise ValueError(f"table {table.name} has no column {sorted(unknown)[0]}")
        columns = pa.Table.from_pylist(list(rows), schema=table.schema)
    try:
        columns = columns.select(list(table.columns)).cast(table.schema)
    except (KeyError, pa.ArrowInvalid) as error:
        raise ValueError(f"table {table.name}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        # page checksums: DuckDB reads flipped bytes without a word, pyarrow finds them
        pq.write_table(columns, new, compression="zstd", write_page_checksum=True)


def read_table(path: Path | str, rows: pc.Expression | None = None) -> pa.Table:
    """The table in `path`, or those of its rows for which `rows` holds; the page checksums are verified.

    Raises ValueError, naming the file, where it is damaged.
    """
    try:
        return pq.read_table(path, filters=rows, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)}); delete it and run again") from error
