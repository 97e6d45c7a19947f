"""`circuitloom benchmark`: scores the dictionaries of a finished study, trained or imported."""

import argparse
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .core.errors import first_line
from .core.layout import NEURONS, RANDOM, RESIDUAL, Layout
from .core.progress import announce

if TYPE_CHECKING:
    from torch import Tensor

    from .evaluation.dictionary_benchmark import BenchmarkInputs, Runs
    from .evaluation.held_out import HeldOut

TOKENS = 100_000
"""Number of held-out tokens that are scored by default."""
Row = Mapping[str, Any]


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "benchmark",
        help="score dictionaries: sparse probing, absorption, stability between seeds, SAEBench's core metrics",
    )
    parser.add_argument("study", help="a study (results/STUDY), or the folder of its results")
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="runs to score (all)")
    parser.add_argument(
        "--tokens",
        type=int,
        default=TOKENS,
        help=f"number of held-out tokens, in complete sequences ({TOKENS:,})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random dictionaries (0)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format of the language model (float32)",
    )
    labels = parser.add_argument_group("labels of documents, such as their kind, as further tasks (both)")
    labels.add_argument(
        "--labels", nargs="+", metavar="FILE", help="files with the held-out text: .jsonl, .parquet, ..."
    )
    labels.add_argument("--label-column", metavar="COLUMN", help="column or JSON key of the label")
    labels.add_argument("--text-column", metavar="COLUMN", default="text", help="that of the text (text)")
    parser.set_defaults(run_command=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> None:
    """Score the dictionaries, write the table, and print a summary."""
    from .core.checksums import write_record
    from .core.tables import DICTIONARY_BENCHMARK, write_table
    from .evaluation.dictionary_benchmark import benchmark_rows

    if arguments.tokens < 1:
        raise ValueError(f"--tokens {arguments.tokens}: a positive number of tokens is needed")
    if (arguments.labels is None) != (arguments.label_column is None):
        raise ValueError("labels of documents need --labels FILE and --label-column COLUMN; give both")
    layout = Layout.find(arguments.study)
    names = _run_names(layout, arguments.runs)
    inputs, runs = _read_study(layout, names, arguments)
    rows = list(benchmark_rows(inputs, runs))
    path = layout.dictionary_benchmark
    write_table(DICTIONARY_BENCHMARK, rows, path)
    write_record(layout.root, path)
    _update_catalog(layout)
    print(summary_table(rows))
    print(f"\nwrote {path}: {len(rows):,} rows; docs/dictionary_benchmark.md says what they mean")


def _run_names(layout: Layout, wanted: Sequence[str] | None) -> list[str]:
    """Returns the names of the runs to score. Raises ValueError if a part of the results or a run is missing."""
    from .exchange.stored_run import run_names

    for part, stage in (
        (layout.model, "language_model"),
        (layout.tokenizer, "corpus"),
        (layout.tokens("validation"), "corpus"),
        (layout.corpus_table("concept"), "corpus"),
    ):
        if not part.exists():
            raise ValueError(f"{part} is missing; run `snakemake --cores all {stage}` for this study first")
    known = run_names(layout.root)
    if not known:
        raise ValueError(f"{layout.root} has no dictionaries; run `snakemake dictionaries` for this study")
    names = list(dict.fromkeys(wanted or known))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{layout.root} has no run {unknown[0]}; choose from {', '.join(known)}")
    return names


def _read_study(
    layout: Layout, names: Sequence[str], arguments: argparse.Namespace
) -> "tuple[BenchmarkInputs, Runs]":
    """Returns what the dictionaries are scored on, and the dictionaries of the runs `names`."""
    from .config.evaluation import Evaluation
    from .core.tables import read_table
    from .corpus.tokenizer import load_tokenizer
    from .corpus.tokens import open_tokens
    from .dictionaries.cross_layer import load_layers
    from .evaluation.concepts import concept_annotations
    from .evaluation.dictionary_benchmark import DOCUMENT, PLANTED, TEXT, BenchmarkInputs, planted_labels
    from .evaluation.held_out import load_held_out
    from .evaluation.probing_tasks import text_tasks
    from .exchange.stored_run import StoredRun
    from .language_model.model import load_model

    held_out = load_held_out(open_tokens(layout.tokens("validation")), Evaluation(tokens=arguments.tokens))
    tokenizer = load_tokenizer(str(layout.tokenizer.resolve()))
    annotations = concept_annotations(read_table(layout.corpus_table("concept")), held_out)
    labels = {
        PLANTED: planted_labels(annotations),
        TEXT: text_tasks(held_out, tokenizer.strings(), tokenizer.separate_words),
    }
    if arguments.labels is not None:
        labels[DOCUMENT] = _document_labels(layout, held_out, arguments)
    table = layout.evaluation_table("metric")
    metrics = read_table(table).to_pylist() if table.is_file() else []
    model = load_model(layout.model, arguments.dtype)
    stored = [StoredRun(layout.root, name) for name in names]
    inputs = BenchmarkInputs(
        model,
        held_out,
        labels,
        {(row["run"], row["layer"]): row for row in metrics},
        {each.name: each.config for each in stored},
        seed=arguments.seed,
    )
    return inputs, {
        each.name: load_layers([each.folder(layer) for layer in each], model.device) for each in stored
    }


def _document_labels(
    layout: Layout, held_out: "HeldOut", arguments: argparse.Namespace
) -> "dict[str, Tensor]":
    """Returns the labels of the tokens of documents that the files of the arguments label."""
    import pyarrow.compute as pc

    from .core.tables import read_table
    from .evaluation.probing_tasks import document_tasks, read_document_values

    rows = read_table(
        layout.corpus_table("document"), pc.field("split") == "validation", ["document", "text"]
    )
    scored = set(held_out.document[held_out.scored].tolist())
    texts = {row["document"]: row["text"] for row in rows.to_pylist() if row["document"] in scored}
    found = read_document_values(arguments.labels, arguments.text_column, arguments.label_column, texts)
    if missing := len(texts) - len(found):
        announce(
            "benchmark", f"{missing} of {len(texts)} documents have no label in {', '.join(arguments.labels)}"
        )
    return document_tasks(held_out, found)


def _update_catalog(layout: Layout) -> None:
    """Add the table to the study's catalogue, if it has one. The catalogue keeps its time, so that Snakemake does not
    make the report again."""
    import duckdb

    from .catalog.build import build_catalog
    from .core.checksums import record_path, write_record

    if not layout.catalog.is_file():
        return
    status = layout.catalog.stat()
    try:
        build_catalog(layout.root)
    except duckdb.Error as error:
        announce(
            "benchmark", f"{layout.catalog} was not updated ({first_line(error)}); run `snakemake catalog -f`"
        )
        return
    os.utime(layout.catalog, ns=(status.st_atime_ns, status.st_mtime_ns))
    if record_path(layout.root, layout.catalog).is_file():
        write_record(layout.root, layout.catalog)


def _columns(rows: Sequence[Row]) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns (heading, format, columns of its rows) of each column of the summary that has rows."""
    found = [
        ("L0", ".1f", {"measure": "l0"}),
        ("explained", ".3f", {"measure": "explained_variance"}),
        ("CE score", ".3f", {"measure": "ce_loss_score"}),
    ]
    groups = sorted({row["task"] for row in rows if row["measure"] == "mean_balanced_accuracy"})
    for group in groups:
        for k in (1, 2, 5, None):
            keys = {"measure": "mean_balanced_accuracy", "task": group, "k": k}
            found.append((f"{group} k={'all' if k is None else k}", ".3f", keys))
    found.append(("absorbed", ".3f", {"measure": "mean_absorbed", "task": "planted"}))
    found.append(("stable", ".3f", {"measure": "shared_at_0.7"}))
    return [column for column in found if any(_fits(row, column[2]) for row in rows)]


def _fits(row: Row, keys: Mapping[str, Any]) -> bool:
    return all(row.get(key) == value for key, value in keys.items())


def summary_table(rows: Sequence[Row]) -> str:
    """Returns a table with a line per run and site: means over layers, and over seeds."""
    from tabulate import tabulate

    columns = _columns(rows)
    bases = (RANDOM, NEURONS, RESIDUAL)
    keys = sorted({(row["run"], row["site"]) for row in rows}, key=lambda key: (key[0] in bases, key))
    lines = []
    for run, site in keys:
        own = [row for row in rows if (row["run"], row["site"]) == (run, site)]
        cells = [run, site]
        for _, digits, wanted in columns:
            values = [row["value"] for row in own if _fits(row, wanted) and row["value"] is not None]
            cells.append(format(fmean(values), digits) if values else "")
        lines.append(cells)
    headings = ["run", "reads", *(name for name, *_ in columns)]
    return tabulate(lines, headings, tablefmt="simple", disable_numparse=True)
