"""A study of made-up features, written by the library's own writers, and the activations it is made of."""

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
from circuitloom.core.tables import FEATURE_CONCEPT, LOGIT, METRIC, TABLES, TOKEN, write_table
from circuitloom.corpus.tokens import Tokens
from circuitloom.evaluation.held_out import load_sequences
from circuitloom.features.basis import FeatureBasis
from circuitloom.features.external_sort import sort_block
from circuitloom.features.tabulation import FeatureTables
from circuitloom.language_model.hooks import Site

SEQUENCES, TABULATED = 40, 36
"""Of all held-out tokens, and of those with features, as `features.tokens` may ask for."""
RUNS = {"tc-narrow": np.arange(24), "tc-wide": np.r_[:8, 255:258, 65_533:65_539, 69_999]}
"""Run to the features of it that may fire: numbers of two bytes, and of four."""
WIDTHS = {"tc-narrow": 24, "tc-wide": 70_000}
LAYERS = (1, 10)
RUN, OTHER_RUN, LAYER, FEATURE, SILENT = "tc-narrow", "tc-wide", 1, 0, 3
CONCEPTS = ("caught_fire", "food")
FILLED = {
    "run": RUN, "other_run": OTHER_RUN, "layer": LAYER, "feature": FEATURE,
    "concept": CONCEPTS[0], "pattern": "caught", "trace": "some",
}  # fmt: skip
"""What the examples of macros leave open."""
CONFIG = Features(examples=9, bands=3, band_examples=2, before=5, after=3, bins=6)
SPLIT = ("activation", "code", "example", "feature", "histogram", "logit")
"""Tables of which each run and layer has its own file."""
ELSEWHERE = {
    **{"document": "corpus", "concept": "corpus", "pretraining": "model", "language_model": "language_model"},
    **{"run": "evaluation", "density_histogram": "evaluation", "concept_score": "evaluation"},
    **{"pareto": "evaluation", "baseline": "evaluation/baseline/mlp_out", "history": "dictionaries/tc-wide/layer1"},
    **dict.fromkeys(("trace", "node", "edge", "path", "intervention"), "circuits/war"),
    **dict.fromkeys(("causal", "faithfulness", "feature_effect"), "circuits/plural"),
    **dict.fromkeys(("claim", "outcome", "source", "year", "component", "planted"), "cases/caught"),
    **dict.fromkeys(("deembedding", "connection", "blind"), "circuits/weights/tc-wide/layer1"),
}  # fmt: skip
"""Tables of which one row will do, and the folder that holds their file."""

PIECES = (
    *(" caught", " w1", " w12", "s", ".", "\n", " é", " a", " nevertheless", " w1w1", "", " the"),
    *(" caught", " w1", " w1", " afterwards", " 日本"),
)
BLANKS = ["<pad>", "<bos>", *(PIECES[i % len(PIECES)] for i in range(VOCABULARY - 2))]
"""Tokens, by id, that bring their blanks with them; many ids read alike, as many tokens do in any text."""
WORDS = [piece.strip(" ") for piece in BLANKS]
"""Tokens with blanks between them."""


@dataclass(frozen=True)
class Study:
    """A study's folder, and what its tables say."""

    folder: Path
    text: np.ndarray
    """Each token as text, by place in the flattened token array."""
    document: np.ndarray
    scored: np.ndarray
    """Places where features may fire."""
    z: dict[tuple[str, int], dict[int, np.ndarray]]
    """Run and layer to feature to its activation at each place; only features that may fire."""

    def firing(self) -> dict[tuple[str, int, int], np.ndarray]:
        """Run, layer and feature to its activations, where it fires at all."""
        return {
            (*place, feature): z
            for place, features in self.z.items()
            for feature, z in features.items()
            if z.any()
        }


def places(rows: list[tuple]) -> list[int]:
    """Rows that begin with sequence and position as places in the flattened token array."""
    return [row[0] * CONTEXT + row[1] for row in rows]


def matching(text: Sequence[str], spacing: str, pattern: str) -> list[int]:
    """Tokens of one sequence at which a match of at most 100 characters ends, by Python's `re`."""
    # Python's $ also matches before a line's end
    end = pattern if r"\$" in pattern else pattern.replace("$", r"\Z")
    compiled = re.compile(rf"(?:{end})\Z", re.ASCII)
    whole, found, stop = spacing.join(text), [], -len(spacing)
    for i, token in enumerate(text):
        stop += len(spacing) + len(token)
        # what stands before the first place to search from is seen by ^ and \b
        if compiled.search(whole, max(0, stop - 100), stop):
            found.append(i)
    return found


def make_study(folder: Path) -> Study:
    """Every table of a study in `folder`, all but the catalogue."""
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
    _write_evaluation(folder / "evaluation")
    schemas = {table.name: table for table in TABLES}
    for name, place in ELSEWHERE.items():
        row = {column: _any_value(kind) for column, (kind, _) in schemas[name].columns.items()}
        write_table(schemas[name], [row], folder / place / f"{name}.parquet")
    return Study(folder, text, held_out.document.flatten().numpy(), scored, z)


def make_corpus(folder: Path, strings: list[str]) -> Tokens:
    """Random held-out tokens and their table."""
    tokens = make_tokens(SEQUENCES)
    token, document = tokens.take(slice(None)).numpy(), tokens.take_document(slice(None)).numpy()
    write_token_table(folder, np.array(strings, object)[token], token, document)
    return tokens


def write_token_table(
    folder: Path, text: np.ndarray, token: np.ndarray | None = None, document: np.ndarray | None = None
) -> None:
    """The token table of `text`, tokens by sequence and position."""
    sequence, position = np.indices(text.shape)
    nothing = np.zeros_like(sequence)
    numbers = [sequence, position, *(nothing if x is None else x for x in (document, token))]
    columns = [*(pa.array(x.ravel()) for x in numbers), pa.array(text.ravel(), pa.string())]
    write_table(TOKEN, pa.table(columns, names=list(TOKEN.columns)), folder / "corpus" / "token.parquet")


def write_features(folder: Path, tokens: Tokens, run: str, layer: int, z: dict[int, np.ndarray]) -> None:
    """The feature tables of a run and layer."""
    width, work = WIDTHS[run], folder / f"{run}-{layer}.blocks"
    work.mkdir(parents=True)
    values = np.stack(list(z.values()), 1)
    place, column = values.nonzero()
    number = np.array(list(z), np.uint32)[column]
    sort_block(place.astype(np.uint16), number, values[place, column], width).write(work / "block000000")
    norm = None if run == OTHER_RUN else torch.arange(width) / 7
    basis = FeatureBasis(
        run, layer, Site("mlp_in", layer), width, _nothing, torch.ones(width, 2), True, norm, norm, ""
    )
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


def _nothing(x):
    raise AssertionError("the blocks are there")


def _activations(
    text: np.ndarray, scored: np.ndarray, features: np.ndarray, seed: int
) -> dict[int, np.ndarray]:
    """Few levels, so that many are tied; the first features fire on a token each, and 4 on every one."""
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
