"""A tiny study whose catalogue is written by hand, for tests of connections and the sandbox."""

from pathlib import Path

import duckdb

VIEWS = """
CREATE MACRO root() AS
  coalesce(getvariable('circuitloom_root'), regexp_replace(current_setting('temp_directory'), '[^/]*$', ''));
CREATE VIEW feature AS SELECT * FROM read_parquet(root() || 'features/*/*/feature.parquet', filename = true);
CREATE MACRO strongest(n) AS TABLE SELECT feature, name FROM feature ORDER BY effect DESC LIMIT n;
"""
NAMED = r"SELECT feature, 'l\n' || feature AS name, feature::FLOAT / 10 AS effect FROM range({}) t(feature)"


def make_study(folder: Path) -> None:
    """Two runs of three features each, and a catalogue with a view and two macros."""
    for run in ("a", "b"):
        (folder / "features" / run / "layer0").mkdir(parents=True)
    with duckdb.connect(folder / "catalog.duckdb") as connection:
        for run in ("a", "b"):
            write_features(folder, run, 3)
        connection.execute(VIEWS)


def write_features(folder: Path, run: str, count: int) -> None:
    duckdb.sql(NAMED.format(count)).write_parquet(str(folder / f"features/{run}/layer0/feature.parquet"))
