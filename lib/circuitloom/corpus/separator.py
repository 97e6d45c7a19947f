"""Splits text into documents at a separator."""

from collections.abc import Iterable, Iterator

from .rows import Row


def split_at(parts: Iterable[str], separator: str) -> Iterator[str]:
    """Yields the documents between the separators in a text that comes in `parts`.

    A separator may begin in one part and end in another. Only one document is held in memory.
    """
    held: list[str] = []
    # the beginning of a separator may be in these last characters
    tail = ""
    for part in parts:
        *documents, last = (tail + part).split(separator)
        for document in documents:
            yield "".join([*held, document])
            held.clear()
        complete = max(0, len(last) - len(separator) + 1)
        held.append(last[:complete])
        tail = last[complete:]
    yield "".join([*held, tail])


def separated_rows(rows: Iterable[str | Row], separator: str, unit: str) -> Iterator[str | Row]:
    """Yields the documents in `rows`. `unit` is what messages call a row.

    Each document is a row. Rows without text stay, and a problem also names the number of its row. Nothing follows a
    separator at the end of a text.
    """
    for number, row in enumerate(rows, 1):
        row = row if isinstance(row, Row) else Row(row)  # noqa: PLW2901
        if row.text is None:
            yield row._replace(problem=f"{unit} {number}: {row.problem}") if row.problem else row
            continue
        first, *others = row.text.split(separator)
        if others and not others[-1]:
            others.pop()
        yield row._replace(text=first) if row.remarks else first
        yield from others
