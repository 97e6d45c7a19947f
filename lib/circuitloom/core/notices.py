"""Notices: what a job left out, changed or assumed, with counts. They appear on the terminal, in a table and in the
report."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .formatting import escape_invisible
from .tables import NOTICE, write_table


@dataclass(frozen=True)
class Notice:
    """One fact that a reader of the results must know, as a row of table NOTICE."""

    subject: str
    """What the notice is about: train, validation, text (both splits), or tokenizer."""
    kind: str
    """Short name of the fact, such as blank. (subject, kind) is unique in a table."""
    count: int | None
    """Number of items that are concerned. None if there is nothing to count."""
    message: str
    """One sentence, which begins in lower case and names the number and the unit."""


def write_notices(notices: Sequence[Notice], path: Path) -> None:
    """Write table NOTICE, sorted by subject and kind, to `path`."""
    rows = sorted((asdict(notice) for notice in notices), key=lambda row: (row["subject"], row["kind"]))
    write_table(NOTICE, rows, path)


def print_notices(stage: str, notices: Sequence[Notice]) -> None:
    """Print each notice on the terminal as one line."""
    for notice in notices:
        line = f"circuitloom: {stage}: {notice.subject}: {notice.message}"
        # names of files may contain line breaks and escape sequences
        print(escape_invisible(line), file=sys.stderr, flush=True)
