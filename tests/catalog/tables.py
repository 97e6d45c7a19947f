"""A synthetic study, written by the library's own writers, with the activations that its tables come from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tests.activations.inputs import make_tokens
from tests.models import CONTEXT, VOCABULARY

from circuitloom.config.features import Features
from circuitloom.core.tables import (
    FEATURE_CONCEPT,
    LABEL,
    LABEL_OUTPUT,
    LOGIT,
    METRIC,
    NODE,
    TABLES,
    TOKEN,
    write_table,
)
from circuitloom.corpus.tokens import Tokens
from circuitloom.evaluation.held_out import load_sequences
from circuitloom.features.basis import FeatureBasis
from circuitloom.features.external_sort import sort_block
from circuitloom.features.tabulation import FeatureTables
from circuitloom.language_model.hooks import Site

SEQUENCES, TABULATED = 40, 36
"""Numbers of all held-out sequences, and of those with features: `features.tokens` may limit them."""
RUNS = {"tc-narrow": np.arange(24), "tc-wide": np.r_[:8, 255:258, 65_533:65_539, 69_999]}
"""Run to its features that may fire: indices of two bytes, and of four."""
WIDTHS = {"tc-narrow": 24, "tc-wide": 70_000}
LAYERS = (1, 10)
RUN, OTHER_RUN, LAYER, FEATURE, SILENT = "tc-narrow", "tc-wide", 1, 0, 3
CONCEPTS = ("caught_fire", "food")
FILLED = {
    "run": RUN, "other_run": OTHER_RUN, "layer": LAYER, "feature": FEATURE,
    "concept": CONCEPTS[0], "pattern": "caught", "trace": "some", "case_study": "some",
}  # fmt: skip
"""Parameters of the macros' examples."""
CONFIG = Features(examples=9, bands=3, band_examples=2, before=5, after=3, bins=6)
SPLIT = ("activation", "code", "example", "feature", "histogram", "logit")
"""Tables with one file per run and layer."""
ELSEWHERE = {
    **{"document": "corpus", "concept": "corpus", "notice": "corpus"},
    **{"pretraining": "model", "language_model": "language_model"},
    **{"run": "evaluation", "density_histogram": "evaluation", "concept_score": "evaluation"},
    **{"pareto": "evaluation", "baseline": "evaluation/baseline/mlp_out", "history": "dictionaries/tc-wide/layer1"},
    **{"activation_norm": "activations", "dictionary_benchmark": "benchmark"},
    **dict.fromkeys(
        ("trace", "node", "edge", "path", "intervention", "attention_score", "subgraph", "subgraph_node"),
        "circuits/war",
    ),
    **dict.fromkeys(("causal", "faithfulness", "feature_effect"), "circuits/plural"),
    **dict.fromkeys(("claim", "outcome", "source", "year", "component", "planted"), "cases/caught"),
    **dict.fromkeys(("compared_run", "compared_prompt"), "cases/clt_vs_plt"),
    **dict.fromkeys(("aggregate_node", "aggregate_edge"), "cases/caught"),
    **dict.fromkeys(("deembedding", "connection", "blind"), "circuits/weights/tc-wide/layer1"),
}  # fmt: skip
"""Tables with one arbitrary row, and the folder of their file."""

PIECES = (
    *(" caught", " w1", " w12", "s", ".", "\n", " é", " a", " nevertheless", " w1w1", "", " the"),
    *(" caught", " w1", " w1", " afterwards", " 日本"),
)
BLANKS = ["<pad>", "<bos>", *(PIECES[i % len(PIECES)] for i in range(VOCABULARY - 2))]
"""Tokens by id, each with its own blank; many ids have the same text."""
WORDS = [piece.strip(" ") for piece in BLANKS]
"""Tokens by id, without blanks."""


@dataclass(frozen=True)
class Study:
    """A study's folder, and the data of its tables."""

    folder: Path
    text: np.ndarray
    """Text of each token in the flattened token array."""
    document: np.ndarray
    scored: np.ndarray
    """Whether features may fire, per token."""
    z: dict[tuple[str, int], dict[int, np.ndarray]]
    """Run and layer to feature to its activation on each token; only features that may fire."""

    def firing(self) -> dict[tuple[str, int, int], np.ndarray]:
        """Run, layer and feature to its activations, only for features that fire."""
        return {
            (*place, feature): z
            for place, features in self.z.items()
            for feature, z in features.items()
            if z.any()
        }


def places(rows: list[tuple]) -> list[int]:
    """Indices in the flattened token array, of rows that begin with sequence and position."""
    return [row[0] * CONTEXT + row[1] for row in rows]


def matching(text: Sequence[str], spacing: str, pattern: str) -> list[int]:
    """Positions in one sequence at which a match of at most 100 characters ends, by Python's `re`."""
    # Python's $ also matches before a final line break
    end = pattern if r"\$" in pattern else pattern.replace("$", r"\Z")
    compiled = re.compile(rf"(?:{end})\Z", re.ASCII)
    joined, found, stop = spacing.join(text), [], -len(spacing)
    for i, token in enumerate(text):
        stop += len(spacing) + len(token)
        # ^ and \b also see the character before the start of the search
        if compiled.search(joined, max(0, stop - 100), stop):
            found.append(i)
    return found


def make_study(folder: Path) -> Study:
    """Write all tables of a study to `folder`, but no catalogue."""
    tokens = make_corpus(folder, BLANKS)
    held_out = load_sequences(tokens, slice(TABULATED))
    text = np.array(BLANKS, object)[held_out.token.flatten().numpy()]
    scored = held_out.scored.flatten().numpy()
    z = {
        (run, layer): _activations(text, scored, features, seed)
        for seed, (run, features, layer) in enumerate((r, f, n) for r, f in RUNS.items() for n in LAYERS)
    }
    for (run, layer), activations in z.items():
        write_features(folder, tokens, run, layer, activations)
        write_labels(folder, run, layer, list(activations))
    _write_evaluation(folder / "evaluation")
    schemas = {table.name: table for table in TABLES}
    for name, place in ELSEWHERE.items():
        row = {column: _any_value(kind) for column, (kind, _) in schemas[name].columns.items()}
        if name == "trace":
            row["run"] = RUN
        write_table(schemas[name], [row], folder / place / f"{name}.parquet")
    _write_agreeing_nodes(folder / "circuits" / "agreeing")
    return Study(folder, text, held_out.document.flatten().numpy(), scored, z)


def make_corpus(folder: Path, strings: list[str]) -> Tokens:
    """Write random held-out tokens and their table; returns the tokens."""
    tokens = make_tokens(SEQUENCES)
    token, document = tokens.take(slice(None)).numpy(), tokens.take_document(slice(None)).numpy()
    write_token_table(folder, np.array(strings, object)[token], token, document)
    return tokens


def write_token_table(
    folder: Path, text: np.ndarray, token: np.ndarray | None = None, document: np.ndarray | None = None
) -> None:
    """Write the token table of `text`, an array of tokens by sequence and position."""
    sequence, position = np.indices(text.shape)
    zeros = np.zeros_like(sequence)
    numbers = [sequence, position, *(zeros if x is None else x for x in (document, token))]
    columns = [*(pa.array(x.ravel()) for x in numbers), pa.array(text.ravel(), pa.string())]
    write_table(TOKEN, pa.table(columns, names=list(TOKEN.columns)), folder / "corpus" / "token.parquet")


def write_features(folder: Path, tokens: Tokens, run: str, layer: int, z: dict[int, np.ndarray]) -> None:
    """Write the feature tables of a run and layer; `z`: activations by feature."""
    width, work = WIDTHS[run], folder / f"{run}-{layer}.blocks"
    work.mkdir(parents=True)
    values = np.stack(list(z.values()), 1)
    place, column = values.nonzero()
    number = np.array(list(z), np.uint32)[column]
    sort_block(place.astype(np.uint16), number, values[place, column], width).write(work / "block000000")
    norm = None if run == OTHER_RUN else torch.arange(width) / 7
    decoder = torch.ones(width, 2)
    basis = FeatureBasis(
        run, layer, Site("mlp_in", layer), width, _not_called, {layer: decoder}, decoder.norm(dim=1), "mlp_out", norm,
        norm, "",
    )  # fmt: skip
    scored = load_sequences(tokens, slice(TABULATED)).n_tokens
    target = folder / "features" / run / f"layer{layer}"
    paths = {name: target / f"{name}.parquet" for name in SPLIT if name != "logit"}
    FeatureTables(basis, tokens, pa.array(BLANKS), CONFIG, work, scored).write(paths)
    rows = [
        {"run": run, "layer": layer, "feature": feature, "sign": sign, "rank": rank, "token_id": 4 + rank,
         "token": BLANKS[4 + rank], "effect": sign * (0.5 - rank / 8 + feature / 1e6)}
        for feature in z for sign in (-1, 1) for rank in range(3)
    ]  # fmt: skip
    write_table(LOGIT, rows, target / "logit.parquet")


def write_labels(folder: Path, run: str, layer: int, features: list[int]) -> None:
    """Write labels of the features of a run and layer: of odd ones, that of a language model is the best."""
    rows = [
        {"run": run, "layer": layer, "feature": feature, "label": label, "source": source, "kind": kind, "f1": f1}
        for feature in features
        for label, source, kind, f1 in (
            ("`caught` after `w1`", "rule", "n-gram", 0.5 + feature % 7 / 16),
            ("`caught`", "frequent", "token", 1.0),
            ("Being caught", "small-model", "text", 0.25 if feature % 2 == 0 else 1.0),
        )
    ]  # fmt: skip
    target = folder / "labels" / "rules" / run / f"layer{layer}"
    write_table(LABEL, rows, target / "label.parquet")
    key = {"run": run, "layer": layer, "label": "`caught` after `w1`"}
    outputs = [
        {**key, "feature": feature, "output": 0.75, "output_low": 0.5, "output_high": 1.0}
        for feature in features
    ]
    write_table(LABEL_OUTPUT, outputs, target / "label_output.parquet")


def _write_agreeing_nodes(folder: Path) -> None:
    """Write two nodes of the trace, whose features have one label."""
    common = {
        "trace": FILLED["trace"],
        "kind": "feature",
        "in_graph": True,
        "is_root": False,
        "run": RUN,
        "layer": LAYER,
    }
    rows = [
        common | {"node": 10 + feature, "feature": feature, "position": 5, "influence": 0.25}
        for feature in (0, 2)
    ]
    write_table(NODE, rows, folder / "node.parquet")


def _not_called(x):
    raise AssertionError("all blocks were written before")


def _activations(
    text: np.ndarray, scored: np.ndarray, features: np.ndarray, seed: int
) -> dict[int, np.ndarray]:
    """Activations of few distinct values, with many ties. Features 0 to 2 fire on one token each, 4 on all tokens."""
    random = np.random.default_rng(seed)
    density = random.uniform(0.02, 0.3, len(features))
    density[4] = 1
    fires = random.random((len(text), len(features))) < density
    for column in range(3):
        fires[:, column] = (text == PIECES[column]) & (random.random(len(text)) < 0.9)
    fires[:, SILENT] = False
    values = (fires & scored[:, None]) * random.integers(1, 9, fires.shape) / 4
    return dict(zip(features.tolist(), values.astype(np.float32).T, strict=True))


def _write_evaluation(folder: Path) -> None:
    random = np.random.default_rng(0)
    numbers = [name for name, (kind, _) in METRIC.columns.items() if kind == pa.float64()]
    metrics = [
        {"run": run, "layer": layer, "n_tokens": 1000 + layer, **{name: random.random() for name in numbers}}
        for run in RUNS
        for layer in (*LAYERS, -1)
    ]
    metrics[0]["cosine"] = None
    write_table(METRIC, metrics, folder / "metric.parquet")
    scores = ("threshold", "precision", "recall", "f1", "f1_choosing")
    rows = [
        {"run": run, "layer": layer, "concept": concept, "rank": rank, "feature": feature, "sign": 1 - 2 * (rank > 3),
         "n_positive": 9, **{name: random.integers(1, 6) / 8 for name in scores}}
        for run in (*RUNS, "residual") for layer in LAYERS for concept in CONCEPTS
        for rank, feature in enumerate([FEATURE, SILENT, 5, 6, 7])
    ]  # fmt: skip
    rows[2] |= {"f1": None, "precision": None}
    rows[5] |= {"f1": 0}
    write_table(FEATURE_CONCEPT, rows, folder / "feature_concept.parquet")


def _any_value(kind: pa.DataType):
    if pa.types.is_floating(kind):
        return 0.5
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_list(kind):
        return [_any_value(kind.value_type)]
    return 3 if pa.types.is_integer(kind) else "some"
