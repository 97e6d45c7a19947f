"""Splits text into documents at a separator."""

from collections.abc import Iterable, Iterator
from pathlib import Path

_CHUNK = 1 << 20
"""Number of characters read at a time."""


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


def separated_documents(paths: Iterable[str], separator: str) -> Iterator[str]:
    """Yields the documents of text files, which are split at `separator`. A document ends where its file ends."""
    for path in paths:
        with Path(path).open(encoding="utf-8") as file:
            yield from split_at(iter(lambda: file.read(_CHUNK), ""), separator)
