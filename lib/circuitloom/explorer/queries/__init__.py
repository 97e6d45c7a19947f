"""The SQL behind the explorer's views, one file a question; each view shows its own, filled in."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ...catalog.questions import fill_in

FOLDER = Path(__file__).parent


def query(name: str, names: Mapping[str, Any] | None = None) -> str:
    """The statement called `name`, with `names` filled in, quoted: it runs as it stands in the SQL console."""
    return fill_in(_text(name), names or {})


@cache
def _text(name: str) -> str:
    return (FOLDER / f"{name}.sql").read_text().strip()
