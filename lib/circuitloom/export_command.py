"""The commands `circuitloom export` and `circuitloom push`."""

import argparse
from pathlib import Path
from typing import Any

from .config.export_formats import EXPORT_FORMATS, check_options
from .core.layout import Layout
from .result_formats import RESULT_EXPORTS, add_options


def add_commands(commands: Any) -> None:
    """Add the parsers of both commands. `commands` is what argparse's add_subparsers returns."""
    export = commands.add_parser("export", help="write dictionaries, graphs or features for another tool")
    formats = "; ".join(f"{name}: {each.summary}" for name, each in EXPORT_FORMATS.items())
    export.add_argument("format", choices=EXPORT_FORMATS, metavar="FORMAT", help=formats)
    export.add_argument("results", help="a study (results/STUDY), or the folder of its results")
    export.add_argument("output", type=Path, metavar="OUT", help="folder to write")
    export.add_argument("--run", metavar="NAME", help="name of the run (the study's only one)")
    export.add_argument(
        "--layers", type=int, nargs="+", metavar="LAYER", help="layers (all with a dictionary)"
    )
    export.add_argument(
        "--model",
        metavar="NAME",
        help="name of the language model in the files; circuit-tracer-graph, delphi: folder or hub name of the "
        "tokenizer (the study's model)",
    )
    export.add_argument(
        "--license", metavar="ID", help="dictionaries: licence on the card, such as mit (unknown)"
    )
    add_options(export)
    export.set_defaults(run_command=_export)

    push = commands.add_parser("push", help="upload an exported folder to the Hugging Face hub")
    push.add_argument("folder", type=Path, help="folder that `circuitloom export` has written")
    push.add_argument("repository", metavar="REPO", help="repository, such as NAME/transcoders")
    push.add_argument("--public", action="store_true", help="a new repository is public, not private")
    push.set_defaults(run_command=_push)


def _export(arguments: argparse.Namespace) -> None:
    """Export what the format holds, and print what was written."""
    options = {name for each in EXPORT_FORMATS.values() for name in each.options}
    check_options(arguments.format, {name for name in options if getattr(arguments, name) is not None})
    if arguments.format in RESULT_EXPORTS:
        RESULT_EXPORTS[arguments.format](arguments)
        return
    from importlib.metadata import version

    from .exchange.export import export_run
    from .exchange.stored_run import StoredRun, run_names

    results = Layout.find(arguments.results).root
    run = arguments.run
    if run is None:
        names = run_names(results)
        if not names:
            raise ValueError(f"{results} has no dictionaries; run `snakemake dictionaries` for this study")
        if len(names) > 1:
            raise ValueError(f"{results} has {len(names)} runs; choose one with --run: {', '.join(names)}")
        run = names[0]
    stored = StoredRun(results, run, arguments.layers)
    result = export_run(
        arguments.format,
        stored,
        arguments.output,
        arguments.license,
        arguments.model,
        version("circuitloom"),
    )
    print(
        f"{result.folder}: {run} for {arguments.format}, {len(stored)} layers, {result.bytes / 1e6:.1f} MB; "
        f"{len(result.written)} written, {len(result.kept)} complete before"
    )


def _push(arguments: argparse.Namespace) -> None:
    """Upload a folder and print the address of the commit."""
    from .exchange.push import push

    print(push(arguments.folder, arguments.repository, arguments.public))
