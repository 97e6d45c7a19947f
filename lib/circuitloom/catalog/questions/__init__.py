"""Questions that researchers ask, one file of SQL each; and the page of what came out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..entry import literal

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """One question."""

    text: str
    sql: str
    """With {run}, {other_run}, {layer}, {feature}, {concept}, {pattern} and {token} to be filled in."""


def questions() -> Iterator[Question]:
    """All questions, in order."""
    for file in sorted(FOLDER.glob("*.sql")):
        head, _, sql = file.read_text().partition("\n")
        yield Question(head.removeprefix("-- "), sql.strip())


def fill_in(sql: str, names: Mapping[str, Any]) -> str:
    """`sql` with names filled in, quoted."""
    return sql.format_map({key: quoted(value) for key, value in names.items()})


def quoted(value: Any) -> str:
    """A value as SQL writes it."""
    return literal(value) if isinstance(value, str) else str(value)
