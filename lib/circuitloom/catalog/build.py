"""The catalogue of a study: views over its Parquet files, and macros for what people ask; it holds no data."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from ..core.atomic_io import atomic_path
from ..core.tables import TABLES, Table
from .client import NAME
from .queries import macros

ROOT = """
CREATE MACRO root() AS regexp_replace(
    coalesce(
        getvariable('circuitloom_root'),
        -- the folder of the database that was opened: it names the folder for temporary files after itself
        regexp_replace(current_setting('temp_directory'), '[^/]*$', '')
    ),
    -- what stands for other characters in the names of files stands for itself here
    '[*?\\[]', '[\\0]', 'g'
)
"""
PLACES = {
    "corpus": ("document", "token", "concept"),
    "model": ("pretraining",),
    "language_model": ("language_model",),
    "dictionaries/*/*": ("history",),
    "evaluation": (
        "run", "metric", "density_histogram", "feature_concept", "concept_score", "pareto",
    ),
    "evaluation/baseline/*": ("baseline",),
    "features/*/*": ("feature", "histogram", "activation", "code", "example", "logit"),
    "circuits/weights/*/*": ("deembedding", "connection", "blind"),
    "circuits/*": (
        "trace", "node", "edge", "path", "intervention", "causal", "faithfulness", "feature_effect",
    ),
    "cases/*": ("claim", "outcome", "source", "faithfulness", "year", "component", "planted"),
}  # fmt: skip
"""Folder, in the study's, to the tables whose files lie there; a table may lie in several."""
SPLIT = "features/*/*"
"""Where each run and layer has a file of its own, which is found by its name without opening the others."""


def build_catalog(folder: Path) -> Path:
    """Write the catalogue of the study in `folder`, whole or not at all; returns its path.

    A table of which there is no file is a view without rows.
    Raises duckdb.Error where the disk is full.
    """
    path = folder / NAME
    with atomic_path(path) as new:
        for left in (new, new.with_name(f"{new.name}.wal")):
            left.unlink(missing_ok=True)
        with duckdb.connect(str(new)) as connection:
            # while it is written, the database does not bear its name
            connection.execute("SET VARIABLE circuitloom_root = ?", [f"{folder.resolve()}/"])
            for statement in statements(folder):
                connection.execute(statement)
            # closing would write the file as well, and not say so where the disk is full
            connection.execute("CHECKPOINT")
        # what a writer that was killed left beside the old catalogue would make the new one unreadable
        path.with_name(f"{NAME}.wal").unlink(missing_ok=True)
    return path


def statements(folder: Path) -> Iterator[str]:
    """What makes the catalogue of the study in `folder`."""
    yield ROOT
    yield f"CREATE MACRO spacing() AS '{_spacing(folder)}'"
    # what a view or macro uses must be there before it
    yield from (macro.sql for macro in macros() if not macro.is_table)
    for table in TABLES:
        yield _view(table, [place for place, names in PLACES.items() if table.name in names], folder)
    yield from (macro.sql for macro in macros() if macro.is_table)


def _view(table: Table, places: Sequence[str], folder: Path) -> str:
    made = ", unpacked(packed, n_features) AS features" if table.name == "code" else ""
    # DuckDB refuses a pattern that no file fits
    filled = [place for place in places if any(folder.glob(f"{place}/{table.name}.parquet"))]
    if not filled:
        with duckdb.connect() as connection:
            empty = connection.from_arrow(table.schema.empty_table())
            types = zip(empty.columns, empty.types, strict=True)
            columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in types)
        return f"CREATE VIEW {table.name} AS SELECT *{made} FROM (SELECT {columns} WHERE false)"
    patterns = ", ".join(f"root() || '{place}/{table.name}.parquet'" for place in filled)
    # a folder above that is named a=b would add a column
    files = f"[{patterns}], hive_partitioning = false"
    if SPLIT not in places:
        return f"CREATE VIEW {table.name} AS SELECT * FROM read_parquet({files})"
    return f"""
        CREATE VIEW {table.name} AS
        SELECT * EXCLUDE (filename) REPLACE (
            string_split(filename, '/')[-3] AS run,
            string_split(filename, '/')[-2][6:]::SMALLINT AS layer
        ){made}
        FROM read_parquet({files}, filename = true)
    """


def _spacing(folder: Path) -> str:
    """What stands between two tokens in a text: nothing, where tokens bring their blanks with them."""
    file = folder / "corpus" / "token.parquet"
    if not file.is_file():
        return ""
    query = "SELECT bool_or(contains(token, ' ')) FROM (SELECT token FROM read_parquet(?) LIMIT 100_000)"
    # DuckDB's default connection is the notebook's own
    with duckdb.connect() as connection:
        ((found,),) = connection.execute(query, [str(file)]).fetchall()
    return "" if found else " "
