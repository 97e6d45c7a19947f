"""The tables: their Arrow schemas, what each column means, and how they are written and read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_SCORED = {
    "feature": (pa.int32(), "the feature"),
    "sign": (pa.int8(), "1, or -1 where it is the negative direction that scores (residual directions)"),
    "threshold": (_FLOAT, "activation above which the feature says that the concept is present"),
    "precision": (_FLOAT, "on the scoring half"),
    "recall": (_FLOAT, "on the scoring half"),
    "f1": (_FLOAT, "on the scoring half"),
    "f1_choosing": (_FLOAT, "F1 on the choosing half, by which threshold, feature and layer are chosen"),
    "n_positive": (_INT, "tokens of the scoring half that have the concept"),
}
FEATURE_CONCEPT = Table(
    "feature_concept",
    "The best features of each concept: chosen, each with its threshold, on one half of the held-out documents, "
    "scored on the other.",
    ("run", "layer", "concept", "rank"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "concept": (_STRING, "name of the concept"),
        "rank": (pa.int16(), "place among the concept's features, from 0, by f1_choosing"),
        **_SCORED,
    },
)
CONCEPT_SCORE = Table(
    "concept_score",
    "The best feature of each concept (rank 0 of feature_concept), by layer and over all layers.",
    ("run", "layer", "concept"),
    {
        "run": _RUN,
        "layer": (pa.int16(), "block of the model, from 0; -1: the best of all layers, by f1_choosing"),
        "concept": (_STRING, "name of the concept"),
        "found_layer": (
            pa.int16(),
            "block that the feature is of: `layer`, or where that is -1 the best one",
        ),
        **_SCORED,
    },
)
DENSITY_HISTOGRAM = Table(
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
_FEATURE = (pa.int32(), "number of the feature, from 0")
FEATURE = Table(
    "feature",
    "What every feature of a dictionary does on the held-out tokens; neurons are features of the run `neurons`.",
    ("run", "layer", "feature"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "feature": _FEATURE,
        "density": (_FLOAT, "share of tokens on which it fires"),
        "n_tokens": (_INT, "tokens on which it fires"),
        "max_activation": (pa.float32(), "largest activation; null where it never fires"),
        "mean_activation": (_FLOAT, "mean over the tokens on which it fires; null where there are none"),
        "rms_activation": (
            _FLOAT,
            "root of the mean square over the tokens on which it fires; null as above",
        ),
        "decoder_norm": (pa.float32(), "norm of the row it writes"),
        "encoder_norm": (pa.float32(), "norm of the row it reads with; null for neurons"),
        "bias": (pa.float32(), "encoder bias; null for neurons"),
        "alive": (pa.bool_(), "it fires at all"),
    },
)
HISTOGRAM = Table(
    "histogram",
    "How a feature's activations are distributed: bins of equal width from 0 to its largest.",
    ("run", "layer", "feature", "bin"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "feature": _FEATURE,
        "bin": (pa.int16(), "bin, from 0; empty bins have no row"),
        "low": (pa.float32(), "activation at its lower edge, which it includes"),
        "high": (pa.float32(), "activation at its upper edge, which the last bin alone includes"),
        "n_tokens": (_INT, "tokens whose activation lies in it"),
    },
)
ACTIVATION = Table(
    "activation",
    "Every activation that is not zero, by feature.",
    ("run", "layer", "feature", "sequence", "position"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "feature": _FEATURE,
        "sequence": _SEQUENCE,
        "position": _POSITION,
        "activation": (pa.float32(), "value of the feature"),
    },
)
CODE = Table(
    "code",
    "Which features fire on a token: the entries of `activation` by token, one row a token on which any fires. "
    "The catalogue's view adds `features`, the list that `unpacked(packed, n_features)` gives.",
    ("run", "layer", "sequence", "position"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "sequence": _SEQUENCE,
        "position": _POSITION,
        "n_features": (pa.int32(), "features that fire"),
        "packed": (
            pa.binary(),
            "their numbers, ascending, big-endian, 2 bytes each (4 where the run has more than 65,536): "
            "a list of numbers would take 5 times as long to scan",
        ),
    },
)
EXAMPLE = Table(
    "example",
    "Examples of what a feature fires on: its largest activations, and samples from evenly spaced bands.",
    ("run", "layer", "feature", "band", "rank"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "feature": _FEATURE,
        "band": (
            pa.int8(),
            "0: the largest; 1, 2, ...: bands of equal width, from 0 up to the largest activation",
        ),
        "rank": (pa.int16(), "place in the band, from 0, by activation, the earlier token first where equal"),
        "sequence": _SEQUENCE,
        "position": _POSITION,
        "activation": (pa.float32(), "value of the feature at the token"),
        "tokens": (pa.list_(_STRING), "the token in its surroundings, within its sequence and document"),
        "activations": (pa.list_(pa.float32()), "the feature's value at each of them"),
        "window_start": (_POSITION[0], "position of the first of them"),
        "band_low": (pa.float32(), "lower edge of the band (band 0: its smallest activation)"),
        "band_high": (pa.float32(), "upper edge of the band (band 0: the largest activation)"),
        "band_share": (pa.float32(), "share of the feature's activations that lie in the band"),
    },
)
LOGIT = Table(
    "logit",
    "Tokens that a feature's decoder row raises or lowers most, directly: W_dec[i] P(gain * W_U), mean over tokens "
    "taken off; the final norm's denominator, which depends on the input, left out.",
    ("run", "layer", "feature", "sign", "rank"),
    {
        "run": _RUN,
        "layer": _LAYER,
        "feature": _FEATURE,
        "sign": (pa.int8(), "1: raised, -1: lowered"),
        "rank": (pa.int16(), "place, from 0, the strongest first"),
        "token_id": (pa.int32(), "number of the token in the vocabulary"),
        "token": (_STRING, "the token as text"),
        "effect": (pa.float32(), "change of its logit for an activation of 1 and a denominator of 1"),
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
    DOCUMENT, TOKEN, CONCEPT, PRETRAINING, LANGUAGE_MODEL, RUN, HISTORY, BASELINE, METRIC, FEATURE_CONCEPT,
    CONCEPT_SCORE, DENSITY_HISTOGRAM, PARETO, FEATURE, HISTOGRAM, ACTIVATION, CODE, EXAMPLE, LOGIT,
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


@contextmanager
def table_writer(
    table: Table, path: Path | str, plain: Sequence[str] = (), uncompressed: Sequence[str] = ()
) -> Iterator[pq.ParquetWriter]:
    """A writer of `table`'s rows, some at a time; `path` is there once all are, and after a fault is as it was.

    Columns in `plain` repeat so little that no dictionary of their values is tried; those in `uncompressed` are
    read too often to be compressed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    compression: Any = {name: "none" if name in uncompressed else "zstd" for name in table.columns}
    dictionary: Any = [name for name in table.columns if name not in plain] if plain else True
    options = {"compression": compression if uncompressed else "zstd", "use_dictionary": dictionary}
    with (
        replacing(path) as new,
        pq.ParquetWriter(new, table.schema, write_page_checksum=True, **options) as writer,
    ):
        yield writer


def read_table(path: Path | str, rows: pc.Expression | None = None) -> pa.Table:
    """The table in `path`, or those of its rows for which `rows` holds; the page checksums are verified.

    Raises ValueError, naming the file, where it is damaged.
    """
    try:
        return pq.read_table(path, filters=rows, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)}); delete it and run again") from error
