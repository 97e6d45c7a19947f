"""What tracing finds in the results of a profile: model, tokenizer, dictionaries, what features fire on."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc

from ..corpus.tokenizer import load_tokenizer
from ..corpus.tokens import open_tokens
from ..dictionaries.dictionary import CONFIG, load_dictionary
from ..language_model.model import load
from ..tables import read_table
from .study import Tracer

WORDS = 3
"""Tokens named of those that a feature fires on most."""


def open_tracer(folder: Path, run: str | None = None, dtype: str = "float32") -> Tracer:
    """A tracer for a finished profile's `run`; for None, the one that most of its studies were traced through, else
    the first run of transcoders.

    Raises ValueError, with the remedy, where a part is missing.
    """
    for part, stage in (
        ("model", "language_model"),
        ("corpus/tokenizer", "corpus"),
        ("dictionaries", "dictionaries"),
    ):
        if not (folder / part).is_dir():
            raise ValueError(
                f"{folder / part} is missing; run `snakemake --cores all {stage}` for this profile first"
            )
    runs = transcoder_runs(folder)
    if not runs:
        raise ValueError(f"{folder / 'dictionaries'}: no run of transcoders; train one")
    run = run or traced_run(folder) or runs[0]
    if run not in runs:
        raise ValueError(f"{run} is no run of transcoders of {folder}; choose from {', '.join(runs)}")
    model = load(folder / "model", dtype)
    layers = sorted((folder / "dictionaries" / run).glob("layer*"))
    found = [load_dictionary(layer, model.device) for layer in layers if (layer / CONFIG).is_file()]
    context = open_tokens(folder / "corpus" / "validation.zarr").context
    tokenizer = load_tokenizer(str((folder / "corpus" / "tokenizer").resolve()))
    return Tracer(model, tokenizer, run, {each.layer: each for each in found}, context)


def transcoder_runs(folder: Path) -> list[str]:
    """The trained runs of transcoders, those of the study first and in its order."""
    found = []
    for config in sorted(folder.glob(f"dictionaries/*/layer*/{CONFIG}")):
        run = config.parts[-3]
        if run not in found and json.loads(config.read_text())["site_in"] == "mlp_in":
            found.append(run)
    table = folder / "evaluation" / "run.parquet"
    order = read_table(table).column("run").to_pylist() if table.is_file() else []
    return sorted(found, key=lambda run: (order.index(run) if run in order else len(order), run))


def traced_run(folder: Path) -> str | None:
    """The run that most studies of the profile were traced through; None where there are none."""
    tables = [read_table(file) for file in sorted(folder.glob("circuits/*/study.parquet"))]
    runs = Counter(run for table in tables for run in table.column("run").to_pylist())
    return max(runs, key=lambda run: runs[run], default=None)


def feature_words(folder: Path, run: str, features: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Layer and number to the tokens that a feature fires on most, where its examples are tabulated."""
    words: dict[tuple[int, int], str] = {}
    wanted: dict[int, list[int]] = {}
    for layer, feature in features:
        wanted.setdefault(layer, []).append(feature)
    for layer, numbers in wanted.items():
        file = folder / "features" / run / f"layer{layer}" / "example.parquet"
        if not file.is_file():
            continue
        rows = read_table(file, pc.field("feature").isin(numbers) & (pc.field("band") == 0))
        tokens: dict[int, Counter[str]] = {}
        for row in rows.select(["feature", "tokens", "position", "window_start"]).to_pylist():
            token = row["tokens"][row["position"] - row["window_start"]]
            tokens.setdefault(row["feature"], Counter())[token.strip()] += 1
        for feature, counts in tokens.items():
            words[layer, feature] = "fires on " + ", ".join(token for token, _ in counts.most_common(WORDS))
    return words
