"""The command line: `circuitloom COMMAND`."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from . import __version__
from .benchmark_command import add_command as add_benchmark_command
from .catalog.engine_command import add_catalog_command
from .core.errors import first_line
from .core.layout import Layout
from .export_command import add_commands
from .generate_command import add_command as add_generate_command
from .import_command import add_command as add_import_command


def main() -> None:
    """Run the command that the arguments name. After an expected error, print one line and exit with code 1."""
    arguments = _parser().parse_args()
    try:
        arguments.run_command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader closed the pipe, as `head` does; discard what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"circuitloom: {arguments.command}: {first_line(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="circuitloom", description="Query, trace and explore the results of a study."
    )
    parser.add_argument("--version", action="version", version=f"circuitloom {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    sql = commands.add_parser("sql", help="query the tables of a study with one read-only statement")
    sql.add_argument("statement", help='such as "SHOW TABLES"; - reads it from standard input')
    source = sql.add_mutually_exclusive_group()
    source.add_argument(
        "--study", default="quickstart", metavar="NAME", help="read results/NAME (quickstart)"
    )
    source.add_argument("--catalog", type=Path, metavar="PATH", help="a catalog.duckdb, or its folder")
    sql.add_argument("--format", choices=("table", "csv", "json"), default="table", help="output format")
    sql.set_defaults(run_command=_sql)

    trace = commands.add_parser(
        "trace", help="trace a prompt through a study's transcoders and verify the circuit"
    )
    trace.add_argument("prompt", help="the text")
    trace.add_argument(
        "--special-tokens", action="store_true", help="special tokens that the text spells out are not text"
    )
    trace.add_argument(
        "--target",
        default="logits",
        help="logits, logit TOKEN, logit TOKEN vs TOKEN, feature LAYER/NUMBER or random; append @POSITION for another "
        'position than the last (logits); TOKEN is a word that follows the prompt, or in quotes exactly a token: "\\n"',
    )
    trace.add_argument("--study", default="quickstart", metavar="NAME", help="use results/NAME (quickstart)")
    trace.add_argument("--run", metavar="NAME", help="run of transcoders (that of the study's own prompts)")
    trace.add_argument("--width", type=int, default=20, help="number of paths kept at each length (20)")
    trace.add_argument("--length", type=int, default=5, help="steps of the longest path (5)")
    trace.add_argument(
        "--rows",
        default="all",
        help="all, or for long prompts the share of the influence to follow, such as 0.95",
    )
    trace.add_argument("--ablated", type=int, metavar="N", help="check only the N most influential nodes")
    trace.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="longest prompt, up to the model's positions (the study's context)",
    )
    trace.add_argument(
        "--attention",
        metavar="LAYER.HEAD[@QUERY,KEY]",
        help="also print why a head reads position KEY from position QUERY: pairs of sources of its attention score; "
        "without positions, for the circuit's edges of this head, or what it reads most from the last position; "
        "negative positions count from the end",
    )
    trace.add_argument(
        "--smallest",
        type=float,
        metavar="SHARE",
        help="search for the fewest features that keep this share of the target, such as 0.8",
    )
    trace.add_argument(
        "--errors",
        choices=("keep", "ablate"),
        default="keep",
        help="with --smallest: errors of transcoders (keep)",
    )
    trace.add_argument(
        "--supernodes",
        action="store_true",
        help="with --smallest: features at one position with the same label are one node",
    )
    trace.set_defaults(run_command=_trace)

    add_generate_command(commands)

    explore = commands.add_parser("explore", help="serve the explorer of a study's results on this machine")
    explore.add_argument("study", nargs="?", default="quickstart", help="results/STUDY (quickstart)")
    explore.add_argument(
        "--graph",
        type=Path,
        metavar="FILE",
        help="show this graph instead: JSON or .pt of circuit-tracer or Neuronpedia",
    )
    explore.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="with --graph FILE.pt: tokenizer that names its tokens",
    )
    explore.add_argument("--port", type=int, default=8050, help="0: any free port (8050)")
    explore.add_argument("--browser", action="store_true", help="open it in the browser")
    explore.set_defaults(run_command=_explore)

    add_commands(commands)

    verify = commands.add_parser(
        "verify", help="compare every file of a study's results with its recorded checksum"
    )
    verify.add_argument("study", nargs="?", default="quickstart", help="results/STUDY (quickstart)")
    verify.set_defaults(run_command=_verify)

    adopt = commands.add_parser(
        "adopt", help="verify results that were copied here, so that Snakemake makes none of them again"
    )
    adopt.add_argument("study", nargs="?", default="quickstart", help="results/STUDY (quickstart)")
    adopt.set_defaults(run_command=_adopt)

    add_import_command(commands)
    add_benchmark_command(commands)

    queries = commands.add_parser(
        "queries", help="print docs/queries.md: example questions, their SQL and results"
    )
    queries.add_argument(
        "studies",
        nargs="+",
        metavar="FOLDER=PATTERN",
        help="a study's folder, and a word or phrase for the examples",
    )
    queries.set_defaults(run_command=_queries)

    add_catalog_command(commands)

    document = commands.add_parser(
        "document", help="write config/README.md, config/schema.json and docs/*.md from the code"
    )
    document.add_argument("root", type=Path, nargs="?", default=Path(), help="the project's folder")
    document.set_defaults(run_command=_document)
    return parser


def _sql(arguments: argparse.Namespace) -> None:
    """Print the result of a statement. On a terminal, tables are cut to the terminal's width."""
    from .catalog.output import write_result
    from .catalog.sandbox import open_sandbox, run_statement

    statement = sys.stdin.read() if arguments.statement == "-" else arguments.statement
    connection = open_sandbox(arguments.catalog or Layout.of(arguments.study).root)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write_result(run_statement(connection, statement), arguments.format, sys.stdout, width)


def _trace(arguments: argparse.Namespace) -> None:
    """Print the circuit of a prompt as a tree, and the checks of the trace."""
    from pydantic import ValidationError
    from rich.console import Console

    from .attribution.terminal import (
        attention_features,
        path_features,
        print_attention,
        print_trace,
        subgraph_features,
    )
    from .attribution.trace_tables import TraceRows
    from .attribution.tracer import feature_labels, label_groups, open_tracer
    from .config.circuits import Circuits, Prompt, SubgraphConfig
    from .config.messages import one_line

    if not arguments.prompt.strip():
        raise ValueError("the prompt is empty; give it at least one word")
    section: type[Prompt] | type[Circuits] | type[SubgraphConfig] = Prompt
    try:
        prompt = Prompt(
            text=arguments.prompt, special_tokens=arguments.special_tokens, target=arguments.target
        )
        section, search = SubgraphConfig, None
        if arguments.smallest is not None:
            search = SubgraphConfig(share=arguments.smallest, errors=arguments.errors)
        section = Circuits
        config = Circuits(
            width=arguments.width,
            length=arguments.length,
            rows=arguments.rows,
            ablated=arguments.ablated,
            context=arguments.context,
            subgraph=search,
        )
    except ValidationError as error:
        raise ValueError(one_line(section, error, "")) from None
    folder = Layout.of(arguments.study).root
    tracer = open_tracer(folder, arguments.run, context=config.context)
    if arguments.attention is not None:
        # a mistake is reported before the prompt is traced
        tracer.read_head(arguments.attention)
    # scores are attributed below, for the heads that are asked for
    shown = config.model_copy(update={"attention_pairs": 0})
    if arguments.supernodes:
        trace = tracer.trace(prompt, shown, groups=lambda model: label_groups(folder, tracer.run, model))
    else:
        trace = tracer.trace(prompt, shown)
    labels = feature_labels(folder, trace.run, path_features(trace.paths) | subgraph_features(trace))
    rows, console = TraceRows(trace, "trace", tracer.strings), Console()
    print_trace(trace, rows, labels, console)
    if arguments.attention is not None:
        attention = tracer.attention_of(trace, arguments.attention, config.attention_pairs)
        labels = feature_labels(folder, trace.run, attention_features(attention, trace))
        print_attention(attention, rows, labels, console)


def _explore(arguments: argparse.Namespace) -> None:
    """Serve the explorer until the user interrupts the process."""
    from .explorer.app import HOST, start
    from .explorer.graph_file import open_graph

    if arguments.graph is None:
        name, server = arguments.study, start(Layout.of(arguments.study).root, arguments.port)
    else:
        name, server = (
            arguments.graph,
            start(open_graph(arguments.graph, arguments.tokenizer), arguments.port),
        )
    address = f"http://{HOST}:{server.port}"
    print(f"circuitloom: explore {name} at {address} (Ctrl+C ends it)", flush=True)
    if arguments.browser:
        import webbrowser

        webbrowser.open(address)
    # the server handles the interrupt
    server.serve_forever()
    sys.stdout.flush()
    # exit at once: Python would wait for a running trace, and DuckDB would report open connections
    os._exit(0)


def _verify(arguments: argparse.Namespace) -> None:
    """Print one line per damaged file and exit with 1. Without damage, print a summary."""
    from .core.checksums import summary

    folder = Layout.of(arguments.study).root
    if damaged := _print_damage(folder):
        sys.exit(f"circuitloom: verify: {folder}: {damaged} damaged")
    print(f"{folder}: {summary(folder)}: no damage")


def _print_damage(folder: Path) -> int:
    """Print one line per damaged file. Returns the number of damaged files."""
    from .core.checksums import find_damage

    damaged = 0
    for line in find_damage(folder):
        print(line, flush=True)
        damaged += 1
    return damaged


def _adopt(arguments: argparse.Namespace) -> None:
    """Verify a copied study and give its files one time. If a file is damaged, print its line and exit with 1."""
    from .core.checksums import adopt, recorded_outputs, summary
    from .core.snakemake_records import has_records

    folder = Layout.of(arguments.study).root
    if damaged := _print_damage(folder):
        sys.exit(f"circuitloom: adopt: {folder}: {damaged} damaged; nothing was adopted")
    adopt(folder)
    print(f"{folder}: {summary(folder)}: adopted; no job has to run again for them")
    if not has_records(recorded_outputs(folder)):
        print(
            "Snakemake's records of these results (.snakemake/metadata) were not copied, so a changed config key "
            "reruns nothing; run `snakemake --touch --forceall --cores 1` once, with the config that made these "
            "results, to record it"
        )


def _queries(arguments: argparse.Namespace) -> None:
    """Print the page of example queries."""
    from .catalog.questions_page import queries_page

    studies = (study.partition("=") for study in arguments.studies)
    print(queries_page({Path(folder): pattern or "." for folder, _, pattern in studies}), end="")


def _document(arguments: argparse.Namespace) -> None:
    """Write the pages that are generated from the code."""
    from .documentation import write_pages

    write_pages(arguments.root)
