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
            run = _sql if arguments.command == "sql" else _queries
            run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # the reader has seen enough, as `head` has; what is still buffered goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (ValueError, OSError, MemoryError) as error:
            from .errors import first_line

            sys.exit(f"circuitloom: {arguments.command}: {first_line(error)}")


def _parser() -> argparse.ArgumentParser:
    """What may be asked for."""
    parser = argparse.ArgumentParser(prog="circuitloom", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    document = commands.add_parser(
        "document", help="write config/README.md and docs/formats.md from the code"
    )
    document.add_argument("root", type=Path, nargs="?", default=Path(), help="the project's folder")
    sql = commands.add_parser("sql", help="query the tables of a profile: one SELECT, nothing is changed")
    sql.add_argument("statement", help='such as "SHOW TABLES"; - reads it from standard input')
    place = sql.add_mutually_exclusive_group()
    place.add_argument(
        "--profile", default="quickstart", metavar="NAME", help="read results/NAME (quickstart)"
    )
    place.add_argument("--catalog", type=Path, metavar="PATH", help="a catalog.duckdb, or its folder")
    sql.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of the output")
    queries = commands.add_parser(
        "queries", help="print docs/queries.md: questions, their SQL, what came out"
    )
    queries.add_argument(
        "profiles",
        nargs="+",
        metavar="FOLDER=PATTERN",
        help="a profile's folder, and a word or phrase to ask about",
    )
    return parser


def _queries(arguments: argparse.Namespace) -> None:
    """Print the page of questions."""
    from .catalog.page import queries_page

    profiles = (profile.partition("=") for profile in arguments.profiles)
    print(queries_page({Path(folder): pattern or "." for folder, _, pattern in profiles}), end="")


def _sql(arguments: argparse.Namespace) -> None:
    """Print what a statement gives; a table fits the terminal, or is as wide as it needs to be in a file."""
    from .catalog.entry import open_sandbox, run_statement
    from .catalog.output import write_result

    statement = sys.stdin.read() if arguments.statement == "-" else arguments.statement
    connection = open_sandbox(arguments.catalog or Path("results") / arguments.profile)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write_result(run_statement(connection, statement), arguments.format, sys.stdout, width)


if __name__ == "__main__":
    main()
