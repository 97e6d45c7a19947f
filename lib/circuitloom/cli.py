"""The command line: `python -m circuitloom COMMAND`."""

import argparse
import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Run the command that the arguments name."""
    arguments = _parser().parse_args()
    if arguments.command == "document":
        from .documentation import write_pages

        write_pages(arguments.root)
    else:
        try:
            COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # the reader has seen enough, as `head` has; what is still buffered goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (ValueError, OSError, MemoryError) as error:
            from .core.errors import first_line

            sys.exit(f"circuitloom: {arguments.command}: {first_line(error)}")


def _parser() -> argparse.ArgumentParser:
    """What may be asked for."""
    parser = argparse.ArgumentParser(prog="circuitloom", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    document = commands.add_parser(
        "document", help="write config/README.md and docs/formats.md from the code"
    )
    document.add_argument("root", type=Path, nargs="?", default=Path(), help="the project's folder")
    sql = commands.add_parser("sql", help="query the tables of a study: one SELECT, nothing is changed")
    sql.add_argument("statement", help='such as "SHOW TABLES"; - reads it from standard input')
    place = sql.add_mutually_exclusive_group()
    place.add_argument("--study", default="quickstart", metavar="NAME", help="read results/NAME (quickstart)")
    place.add_argument("--catalog", type=Path, metavar="PATH", help="a catalog.duckdb, or its folder")
    sql.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of the output")
    trace = commands.add_parser(
        "trace", help="trace a prompt through finished transcoders, and check the circuit"
    )
    trace.add_argument("prompt", help="the text")
    trace.add_argument(
        "--target",
        default="logits",
        help="logits, logit TOKEN, logit TOKEN vs TOKEN, feature LAYER/NUMBER or random; @POSITION behind it for "
        "another token than the last (logits)",
    )
    trace.add_argument("--study", default="quickstart", metavar="NAME", help="use results/NAME (quickstart)")
    trace.add_argument(
        "--run", metavar="NAME", help="transcoders to trace through (those of the study's own prompts)"
    )
    trace.add_argument("--width", type=int, default=20, help="paths kept at each length (20)")
    trace.add_argument("--length", type=int, default=5, help="steps of the longest path (5)")
    explore = commands.add_parser(
        "explore", help="look around in a study's results, in a browser on this machine"
    )
    explore.add_argument("study", nargs="?", default="quickstart", help="results/STUDY (quickstart)")
    explore.add_argument("--port", type=int, default=8050, help="0: any that is free (8050)")
    explore.add_argument("--browser", action="store_true", help="open it in the browser")
    verify = commands.add_parser(
        "verify", help="compare every file of a study's results with the checksum of what was written"
    )
    verify.add_argument("study", nargs="?", default="quickstart", help="results/STUDY (quickstart)")
    queries = commands.add_parser(
        "queries", help="print docs/queries.md: questions, their SQL, what came out"
    )
    queries.add_argument(
        "studies",
        nargs="+",
        metavar="FOLDER=PATTERN",
        help="a study's folder, and a word or phrase to ask about",
    )
    return parser


def _queries(arguments: argparse.Namespace) -> None:
    """Print the page of questions."""
    from .catalog.questions_page import queries_page

    studies = (study.partition("=") for study in arguments.studies)
    print(queries_page({Path(folder): pattern or "." for folder, _, pattern in studies}), end="")


def _trace(arguments: argparse.Namespace) -> None:
    """Print a prompt's circuit as a tree, with the checks."""
    from pydantic import ValidationError
    from rich.console import Console

    from .attribution.trace_tables import TraceRows
    from .attribution.tracer import feature_words, open_tracer
    from .attribution.tree import print_trace, strongest_features
    from .config.circuits import Circuits, Prompt
    from .config.messages import one_line

    model: type[Prompt] | type[Circuits] = Prompt
    try:
        prompt = Prompt(text=arguments.prompt, target=arguments.target)
        model = Circuits
        config = Circuits(width=arguments.width, length=arguments.length)
    except ValidationError as error:
        raise ValueError(one_line(model, error, "")) from None
    folder = Path("results") / arguments.study
    tracer = open_tracer(folder, arguments.run)
    trace = tracer.trace(prompt, config)
    words = feature_words(folder, trace.run, strongest_features(trace.paths))
    print_trace(trace, TraceRows(trace, "trace", tracer.strings), words, Console())


def _explore(arguments: argparse.Namespace) -> None:
    """Serve the explorer until it is interrupted."""
    from .explorer.app import HOST, start

    server = start(Path("results") / arguments.study, arguments.port)
    address = f"http://{HOST}:{server.port}"
    print(f"circuitloom: explore {arguments.study} at {address} (Ctrl+C ends it)", flush=True)
    if arguments.browser:
        import webbrowser

        webbrowser.open(address)
    # the server itself takes the interrupt
    server.serve_forever()
    sys.stdout.flush()
    # a trace that is under way would be waited for, and DuckDB would complain of what is still open
    os._exit(0)


def _verify(arguments: argparse.Namespace) -> None:
    """Print a line for each damaged file, and exit with 1; or one line that says that all are whole."""
    from .core.checksums import find_damage, summary

    folder = Path("results") / arguments.study
    damaged = 0
    for line in find_damage(folder):
        print(line, flush=True)
        damaged += 1
    if damaged:
        sys.exit(f"circuitloom: verify: {folder}: {damaged} damaged")
    print(f"{folder}: {summary(folder)}: all as they were written")


def _sql(arguments: argparse.Namespace) -> None:
    """Print what a statement gives; a table fits the terminal, or is as wide as it needs to be in a file."""
    from .catalog.entry import open_sandbox, run_statement
    from .catalog.output import write_result

    statement = sys.stdin.read() if arguments.statement == "-" else arguments.statement
    connection = open_sandbox(arguments.catalog or Path("results") / arguments.study)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write_result(run_statement(connection, statement), arguments.format, sys.stdout, width)


COMMANDS = {"sql": _sql, "queries": _queries, "trace": _trace, "explore": _explore, "verify": _verify}
