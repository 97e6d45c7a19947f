"""Builds the catalogue of a study: a DuckDB file with macros, and with views over Parquet files, but without data."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from ..core.atomic_io import atomic_path
from ..core.layout import TABLE_FOLDERS, Layout
from ..core.tables import TABLES, Table
from .queries import comment_on, macros
from .study_files import StudyFiles

STORAGE_VERSION = "v1.2.0"
"""Storage format of the catalogue. Every DuckDB from this version on opens the catalogue."""
ROOT = """
CREATE MACRO root() AS regexp_replace(
    coalesce(
        getvariable('circuitloom_root'),
        -- DuckDB names its temporary directory after the database file, which gives the catalogue's folder
        regexp_replace(current_setting('temp_directory'), '[^/]*$', '')
    ),
    -- escape glob characters in the folder's name
    '[*?\\[]', '[\\0]', 'g'
)
"""
PER_LAYER = "features/*/*"
"""Glob pattern of the folders with feature tables, one per run and layer. A query for one run and layer opens one
folder."""


def build_catalog(folder: Path) -> Path:
    """Write the catalogue of the study in `folder` atomically and return its path.

    The view of a table without files has no rows. Raises duckdb.Error if the disk is full.
    """
    path = Layout(folder).catalog
    with atomic_path(path) as new:
        for leftover in (new, new.with_name(f"{new.name}.wal")):
            leftover.unlink(missing_ok=True)
        with duckdb.connect(
            str(new), config={"storage_compatibility_version": STORAGE_VERSION}
        ) as connection:
            # root() cannot derive the folder from the name of the temporary catalogue file
            connection.execute("SET VARIABLE circuitloom_root = ?", [f"{folder.resolve()}/"])
            for statement in statements(folder):
                connection.execute(statement)
            # closing the connection also writes the file, but reports no error if the disk is full
            connection.execute("CHECKPOINT")
        # a killed writer may leave its write-ahead log behind, which would make the new catalogue unreadable
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
    return path


def statements(folder: Path) -> Iterator[str]:
    """Yields the SQL statements that create the catalogue of the study in `folder`."""
    yield ROOT
    yield comment_on("root", "Folder of the study, with glob characters escaped.")
    yield f"CREATE MACRO spacing() AS '{StudyFiles(folder).spacing()}'"
    yield comment_on("spacing", "Text between two tokens: a blank if tokens are words, else nothing.")
    # a macro or view must exist before it is used
    yield from (statement for macro in macros() if not macro.is_table for statement in macro.statements)
    for table in TABLES:
        yield _view(table, [place for place, tables in TABLE_FOLDERS.items() if table.name in tables], folder)
    yield from (statement for macro in macros() if macro.is_table for statement in macro.statements)


def _view(table: Table, folders: Sequence[str], folder: Path) -> str:
    """Returns the CREATE VIEW statement of `table`.

    `folders` are glob patterns, relative to the study's `folder`, of folders that may have files of the table.
    """
    extra = ", unpacked(packed, n_features) AS features" if table.name == "code" else ""
    # DuckDB rejects a glob pattern without matches
    present = [each for each in folders if any(folder.glob(f"{each}/{table.name}.parquet"))]
    if not present:
        with duckdb.connect() as connection:
            empty = connection.from_arrow(table.schema.empty_table())
            types = zip(empty.columns, empty.types, strict=True)
            columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in types)
        return f"CREATE VIEW {table.name} AS SELECT *{extra} FROM (SELECT {columns} WHERE false)"
    patterns = ", ".join(f"root() || '{each}/{table.name}.parquet'" for each in present)
    # with Hive partitioning, a parent folder named a=b would add a column a
    files = f"[{patterns}], hive_partitioning = false"
    if PER_LAYER not in folders:
        return f"CREATE VIEW {table.name} AS SELECT * FROM read_parquet({files})"
    return f"""
        CREATE VIEW {table.name} AS
        SELECT * EXCLUDE (filename) REPLACE (
            string_split(filename, '/')[-3] AS run,
            string_split(filename, '/')[-2][6:]::SMALLINT AS layer
        ){extra}
        FROM read_parquet({files}, filename = true)
    """
