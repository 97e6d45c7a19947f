"""docs/queries.md: every question with its SQL, and what came out on some studies."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from .output import write_result
from .queries import NamedQuery, fill_in, questions, quoted
from .sandbox import open_sandbox, run_statement

WIDTH = 150
HEAD = """# Questions in SQL

What researchers ask of features, as SQL over the catalogue of a study, and what came out. Made by
`python -m circuitloom queries {arguments}`; ask on with `python -m circuitloom sql "SELECT ..." --study NAME`, or
from a notebook with `circuitloom.open_catalog("results/NAME").sql("SELECT ...").df()`. Tables and macros are listed in
[formats.md](formats.md).
"""
LABELLED = "concept"
"""A question with this word has no answer where the text has no labelled concepts."""


def queries_page(studies: Mapping[Path, str]) -> str:
    """The page, from the folders of studies, each with a word or phrase (a regular expression) to ask about.

    Raises ValueError where a folder has no catalogue.
    """
    arguments = " ".join(f"{folder}={pattern}" for folder, pattern in studies.items())
    parts = [HEAD.format(arguments=arguments)]
    opened = {folder.name: open_sandbox(folder) for folder in studies}
    names = {
        name: names_of(opened[name], pattern) for name, pattern in zip(opened, studies.values(), strict=True)
    }
    for number, question in enumerate(questions(), 1):
        parts.append(f"\n## {number}. {question.description}\n")
        parts += [part for study in opened for part in _answer(question, study, opened[study], names[study])]
    return "\n".join(parts).rstrip() + "\n"


def names_of(catalog: DuckDBPyConnection, pattern: str) -> dict[str, Any]:
    """What a study's questions are about: a transcoder, an SAE of equal k, a feature that answers to `pattern`."""

    def first(sql: str) -> dict[str, Any]:
        rows = run_statement(catalog, f"FROM ({sql}) LIMIT 1").read_all().to_pylist()
        return rows[0] if rows else {}

    def preferring(kind: str, k: int) -> str:
        return f"ORDER BY (kind = '{kind}') DESC, (k = {k}) DESC NULLS LAST, run"

    run = first(f"SELECT run, k FROM run {preferring('transcoder', 16)}")
    others = f"SELECT run FROM run WHERE run <> {quoted(run['run'])}"
    other = first(f"{others} {preferring('sae', run['k'] or 0)}")
    names = {"run": run["run"], "other_run": (other or run)["run"], "pattern": pattern}
    on = fill_in("SELECT layer, feature FROM features_on($pattern) WHERE run = $run", names)
    of = "SELECT concept FROM feature_concept WHERE n_positive BETWEEN 50 AND 500 ORDER BY f1 DESC NULLS LAST"
    token = fill_in("SELECT token FROM tokens_matching($pattern)", names)
    chosen = {"layer": 0, "feature": 0, "concept": "none", "token": pattern}
    return names | chosen | first(on) | first(of) | first(token)


def _answer(
    question: NamedQuery, study: str, catalog: DuckDBPyConnection, names: Mapping[str, Any]
) -> Iterator[str]:
    sql = fill_in(question.sql, names)
    result = io.StringIO()
    write_result(run_statement(catalog, sql), "table", result, WIDTH)
    yield f"{study}:\n\n```sql\n{sql}\n```\n"
    if LABELLED in sql and len(result.getvalue().splitlines()) <= 2:
        yield "No rows: this text has no labelled concepts.\n"
    else:
        yield f"```text\n{result.getvalue().rstrip()}\n```\n"
