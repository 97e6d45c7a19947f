"""What a dialect of SQL must say: views over Parquet files, macros with parameters, and functions."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...core.token_text import CHARACTER
from ..queries import quoted

OPENING, CLOSING = "\ufdd0", "\ufdd1"
"""Marks around a token until `whole_text` has joined the bytes of characters; then they become [[ and ]]."""
_MARKS = r"[\x{FDD0}\x{FDD1}]*"
PARTS = (
    re.sub(r"\s", "", CHARACTER.pattern).replace("⟩⟨", f"⟩{_MARKS}⟨").replace(")⟨", f"){_MARKS}⟨")
    + "|[^⟨]+|⟨"
)
"""Regular expression, in the syntax of Java and RE2, of the parts of joined tokens: bytes that make up a character,
with marks between them, and everything else. The macro `characters` of the catalogue has the same."""
BYTES_STAY = (
    "in `text`, a character that several tokens make up stays as bytes, such as ⟨E4⟩⟨B8⟩⟨AD⟩: {reason}"
)


@dataclass(frozen=True)
class PortableMacro:
    """A macro that every engine can answer, in its own form."""

    name: str
    description: str
    parameters: Mapping[str, str]
    """Maps the name of each parameter to text or integer."""
    tables: tuple[str, ...]
    """Names of the tables that it reads."""
    order: str
    """The usual order of the rows, as in ORDER BY."""
    template: str
    """The SELECT as a Jinja template. `sql` is the dialect. $NAME is a parameter."""


@dataclass
class Dialect(ABC):
    """SQL of one engine, for a study with this `spacing` between tokens."""

    spacing: str
    endpoint: str = ""
    """Address of the S3 server, if it is not AWS'."""
    notes: list[str] = field(default_factory=list)
    """What the engine cannot do, and why. The generated file begins with these lines."""

    title: ClassVar[str]
    """Name and version of the engine."""
    usage: ClassVar[str]
    """How to open the generated file FILE."""
    types: ClassVar[Mapping[str, str]] = {"text": "VARCHAR", "integer": "INTEGER"}
    marks: ClassVar[tuple[str, str]] = ("'[['", "']]'")
    """SQL literals of the marks around a token."""
    refused: ClassVar[str] = ""
    """Characters in the path of a folder with which the engine does not find the files of a pattern."""
    expands_patterns: ClassVar[bool] = True
    """Whether the engine finds files in a bucket by a pattern. Otherwise, all files are listed."""
    reads_partitions: ClassVar[bool] = False
    """Whether `SELECT *` also has a column for each folder NAME=VALUE in a path. Then views name their columns."""
    defines_macros: ClassVar[bool] = True
    """Whether a macro is a statement. Otherwise, it is a query that the user fills in and runs."""

    def prepare(self) -> list[str]:
        """Returns statements that come first."""
        return []

    def view(self, table: str, places: Sequence[str], columns: str) -> list[str]:
        """Returns the statements that define the view `table` of the files at `places`: paths or patterns."""
        selects = [f"SELECT {columns} FROM {self.files(place)}" for place in places]
        return [f"CREATE OR REPLACE VIEW {table} AS\n" + "\nUNION ALL\n".join(selects)]

    def files(self, place: str) -> str:
        """Returns what follows FROM to read the Parquet files at a path or pattern."""
        return f"read_parquet({quoted(place)})"

    @abstractmethod
    def macro(self, macro: PortableMacro, select: str) -> str:
        """Returns the statement that defines a macro, or its text where there is no such statement."""

    def parameter(self, name: str, macro: PortableMacro) -> str:
        """Returns how a macro's SELECT refers to a parameter."""
        return name

    def unpacked(self, packed: str, n: str) -> str | None:
        """Returns the list of the features in a row of `code`, or None if the engine has no expression for it."""
        return None

    def exploded(self, values: str) -> str:
        """Returns an expression with a row for each element of a list."""
        return f"unnest({values})"

    def firing_on_mine(self) -> str:
        """Returns a SELECT of layer and feature of everything in a run that fires on the tokens of `mine`."""
        features = self.unpacked("code.packed", "code.n_features")
        assert features
        return (
            f"SELECT code.layer AS layer, {self.exploded(features)} AS feature\n"
            "FROM code\n"
            "JOIN mine ON mine.sequence = code.sequence AND mine.position = code.position\n"
            "WHERE code.run = $of_run"
        )

    def joined(self, value: str, order: str) -> str:
        """Returns the aggregate that joins texts in an order."""
        return f"string_agg({value}, {quoted(self.spacing)} ORDER BY {order})"

    def contains(self, text: str, part: str) -> str:
        """Returns the condition that `text` contains `part`, character for character."""
        return f"contains({text}, {part})"

    def length(self, text: str) -> str:
        """Returns the number of characters."""
        return f"char_length({text})"

    def substring(self, text: str, start: str, length: str) -> str:
        """Returns `length` characters from the one at `start`, counted from 1."""
        return f"substring({text}, {start}, {length})"

    def in_marks(self, token: str) -> str:
        """Returns a token between marks."""
        return f"concat({self.marks[0]}, {token}, {self.marks[1]})"

    def shown(self, joined: str) -> str:
        """Returns joined tokens with marks as the text to show."""
        return joined

    @abstractmethod
    def marked(self, tokens: str, place: str) -> str:
        """Returns a list of tokens as text, with the token at `place`, counted from 0, in [[ ]]."""


class NamedFilesDialect(Dialect):
    """An engine that names a path or pattern of files before a view can read it."""

    create_view: ClassVar[str] = "CREATE VIEW"

    def view(self, table: str, places: Sequence[str], columns: str) -> list[str]:
        """Returns the statements that define the view `table` of the files at `places`: paths or patterns."""
        if len(places) == 1 and columns == "*":
            return [self.named_files(table, places[0])]
        names = [f"{table}_{number}" for number in range(1, len(places) + 1)]
        selects = [f"SELECT {columns} FROM {name}" for name in names]
        return [
            *(self.named_files(name, place) for name, place in zip(names, places, strict=True)),
            f"{self.create_view} {table} AS\n" + "\nUNION ALL\n".join(selects),
        ]

    @abstractmethod
    def named_files(self, name: str, place: str) -> str:
        """Returns the statement that makes `name` a table or view of the Parquet files at a path or pattern."""


class WholeTextDialect(Dialect):
    """An engine that can make characters of bytes."""

    def shown(self, joined: str) -> str:
        """Returns joined tokens with marks as the text to show."""
        opening, closing = self.marks
        return f"replace(replace({self.whole_text(joined)}, {opening}, '[['), {closing}, ']]')"

    def whole_text(self, joined: str) -> str:
        """Returns joined tokens with characters in place of the bytes that make them up. Marks in between move out."""
        return f"whole_text({joined})"
