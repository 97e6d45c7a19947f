"""The catalogue's macros: one file of SQL each, headed by what it gives and an example."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
FIRST = ("tokens_matching",)
"""Macros over tables that others are made of."""


@dataclass(frozen=True)
class Macro:
    """One macro."""

    name: str
    parameters: str
    """As they stand between the brackets."""
    meaning: str
    example: str
    """A statement, with {run}, {other_run}, {layer}, {feature}, {concept}, {pattern} and {trace} to be filled in."""
    sql: str
    """What creates it."""

    @property
    def is_table(self) -> bool:
        """It gives rows of several columns, not a value."""
        return " AS TABLE\n" in self.sql


def macros() -> Iterator[Macro]:
    """All macros, those first that others use."""
    for name in dict.fromkeys([*FIRST, *sorted(file.stem for file in FOLDER.glob("*.sql"))]):
        text = (FOLDER / f"{name}.sql").read_text()
        meaning, example = re.findall(r"^-- (?:example: )?(.*)$", text, re.MULTILINE)[:2]
        (parameters,) = re.findall(rf"MACRO {name}\(([^)]*)\)", text)
        yield Macro(name, parameters, meaning, example, text)
