"""Generates the SQL that opens a study's Parquet tables in an engine other than the catalogue's DuckDB.

The views are those of `core/layout.py` that have files. The macros come from one source, portable.sql, whose functions
and parameters the engine's `Dialect` writes.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from shlex import quote
from textwrap import wrap

from jinja2 import Environment, StrictUndefined

from ...core.layout import TABLE_FOLDERS
from ...core.tables import TABLES
from ..queries import macros, read_queries
from ..study_files import S3, StudyFiles
from .dialect import Dialect, PortableMacro
from .dialects import DIALECTS

ENDPOINT = "AWS_ENDPOINT_URL"
"""Environment variable with the address of an S3 server that is not AWS'. ClickHouse does not read it."""
_WIDTH = 117
_REFUSED = re.compile(r"[*?\[\]{}\\'`\"\n]")
"""Characters that engines read as a part of a pattern, or as the end of a path."""
_PARAMETER = re.compile(r"\$([a-z_]+)")


@cache
def portable_macros() -> tuple[PortableMacro, ...]:
    """Returns the macros of portable.sql."""
    found = []
    for query in read_queries("portable", Path(__file__).parent):
        *head, template = query.sql.split("\n", 3)
        parameters, tables, order = (line.partition(": ")[2] for line in head)
        kinds = dict(parameter.split() for parameter in parameters.split(", "))
        found.append(
            PortableMacro(query.name, query.description, kinds, tuple(tables.split()), order, template)
        )
    return tuple(found)


def engine_script(engine: str, results: Path | str) -> str:
    """Returns a file of SQL statements that define the views and macros of the study in `results` for `engine`.

    `results` is a folder or s3://BUCKET/FOLDER. Raises ValueError if the engine is unknown, if there are no tables, or
    if the path has a character that an engine would not take literally.
    """
    if engine not in DIALECTS:
        raise ValueError(f"there is no engine {engine!r}; choose one of {', '.join(DIALECTS)}")
    files = StudyFiles(results)
    if found := _REFUSED.search(files.root):
        raise ValueError(
            f"{files.root}: engines read {found[0]!r} in a path as part of a pattern; move or link the results to a "
            "folder without it"
        )
    for character in DIALECTS[engine].refused:
        if character in files.root.removeprefix(S3):
            raise ValueError(
                f"{files.root}: {engine} finds no files by a pattern in a path with {character!r}; move or link the "
                "results to a folder without it"
            )
    present = tables_with_files(files)
    if not present:
        raise ValueError(f"there are no tables in {files.root}; make them with `snakemake`")
    dialect = DIALECTS[engine](files.spacing(), os.environ.get(ENDPOINT, "") if files.in_bucket else "")
    statements = [f"{statement};\n" for statement in dialect.prepare()]
    for table, patterns in present.items():
        meaning = next(each.meaning for each in TABLES if each.name == table)
        paths = [f"{files.root}/{path}" for path in _places(dialect, files, patterns)]
        first, *more = dialect.view(table, paths, _columns(dialect, table))
        statements += [f"{_comment(meaning)}{first};\n", *(f"{statement};\n" for statement in more)]
    for macro in portable_macros():
        if set(macro.tables) <= set(present):
            statements.append(_macro(dialect, macro))
    return "\n".join([_head(engine, dialect, files, present), *statements])


def tables_with_files(files: StudyFiles) -> dict[str, list[str]]:
    """Maps the name of each table that has files to the patterns, relative to the study, that find them."""
    present = {}
    for table in TABLES:
        folders = (folder for folder, names in TABLE_FOLDERS.items() if table.name in names)
        patterns = [f"{folder}/{table.name}.parquet" for folder in folders]
        if kept := [pattern for pattern in patterns if files.matching(pattern)]:
            present[table.name] = kept
    return present


def _places(dialect: Dialect, files: StudyFiles, patterns: Sequence[str]) -> list[str]:
    """Returns the patterns, or all files if the engine does not expand patterns in a bucket."""
    if dialect.expands_patterns or not files.in_bucket:
        return list(patterns)
    return [file for pattern in patterns for file in files.matching(pattern)]


def _columns(dialect: Dialect, table: str) -> str:
    features = dialect.unpacked("packed", "n_features") if table == "code" else None
    names = next(each.columns for each in TABLES if each.name == table)
    # quoted: a name may be a word of SQL
    every = ", ".join(f'"{name}"' for name in names) if dialect.reads_partitions else "*"
    return f"{every}, {features} AS features" if features else every


def _macro(dialect: Dialect, macro: PortableMacro) -> str:
    template = Environment(undefined=StrictUndefined, autoescape=False).from_string(macro.template)
    sql = template.render(sql=dialect, spacing=dialect.spacing)
    select = _PARAMETER.sub(lambda match: dialect.parameter(match[1], macro), sql)
    statement = dialect.macro(macro, select)
    comment = _comment(macro.description)
    return f"{comment}{statement};\n" if dialect.defines_macros else f"{statement}\n"


def _head(engine: str, dialect: Dialect, files: StudyFiles, present: Mapping[str, object]) -> str:
    """Returns the comment at the top of the file: how to open it, and what it leaves out."""
    absent = [table.name for table in TABLES if table.name not in present]
    left_out = [macro for macro in portable_macros() if not set(macro.tables) <= set(present)]
    ported = {macro.name for macro in portable_macros()}
    others = [macro.name for macro in macros() if macro.is_table and macro.name not in ported]
    lines = [
        *wrap(f"The tables of {files.root} for {dialect.title}.", _WIDTH),
        *wrap(f"Written by `circuitloom catalog --engine {engine} {quote(files.root)}`.", _WIDTH),
        "To open it, with this file's path for FILE and the name of a run for RUN:",
        "",
        *(f"    {line}" if line else "" for line in dialect.usage.split("\n")),
        "",
        "The macros, with their usual order; docs/formats.md describes all tables:",
    ]
    for macro in portable_macros():
        if macro not in left_out:
            lines.append(f"    {macro.name}({', '.join(macro.parameters)}) ORDER BY {macro.order}")
    lines += ["", "Left out or different:"]
    notes = list(dialect.notes)
    if absent:
        notes.append(f"the study has no files of these tables: {', '.join(absent)}")
    if left_out:
        notes.append(f"these macros need them: {', '.join(macro.name for macro in left_out)}")
    notes += [
        "`search` also finds matches that overlap, and finds bytes of a character as they are written: ⟨E4⟩",
        f"only in catalog.duckdb, because they are written in DuckDB's own SQL: {', '.join(others)}",
    ]
    for note in notes:
        lines += wrap(note, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return "".join(f"-- {line}".rstrip() + "\n" for line in lines)


def _comment(text: str) -> str:
    return "".join(f"-- {line}\n" for line in wrap(text, _WIDTH))
