"""The command line: `python -m circuitloom COMMAND`."""

import argparse
from pathlib import Path


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(prog="circuitloom", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    document = commands.add_parser(
        "document", help="write config/README.md and docs/formats.md from the code"
    )
    document.add_argument("root", type=Path, nargs="?", default=Path(), help="the project's folder")
    arguments = parser.parse_args()
    if arguments.command == "document":
        from .documentation import write_pages

        write_pages(arguments.root)


if __name__ == "__main__":
    main()
