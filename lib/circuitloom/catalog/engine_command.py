"""The command `circuitloom catalog`: SQL that opens a study's tables in another engine."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_catalog_command(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    catalog = commands.add_parser(
        "catalog", help="write SQL that defines a study's views and macros in another engine"
    )
    catalog.add_argument(
        "--engine", required=True, metavar="NAME", help="spark, clickhouse, polars, datafusion or duckdb"
    )
    catalog.add_argument(
        "results", help="a study's folder, such as results/quickstart, or s3://BUCKET/FOLDER"
    )
    catalog.add_argument("output", type=Path, nargs="?", help="the .sql file to write (standard output)")
    catalog.set_defaults(run_command=_catalog)


def _catalog(arguments: argparse.Namespace) -> None:
    """Write the engine's SQL to the file, or print it."""
    from ..core.atomic_io import write_atomically
    from .engines.generate import engine_script

    script = engine_script(arguments.engine, arguments.results)
    if arguments.output is None:
        sys.stdout.write(script)
        return
    write_atomically(arguments.output, script.encode())
    print(f"{arguments.output}: the tables of {arguments.results} for {arguments.engine}")
