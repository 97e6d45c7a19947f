"""Two results folders are equal if they differ only in times."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from tests.comparing import differences, numbers_differ


def write(folder: Path, loss: float = 1.0, speed: float = 5.0, view: int = 1, minute: int = 10) -> Path:
    for name in ("model", "logs"):
        (folder / name).mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(b"weights")
    (folder / "model.lock").write_text(str(speed))
    (folder / "logs" / "log").write_text(str(speed))
    pq.write_table(pa.table({"loss": [loss], "tokens_per_second": [speed]}), folder / "history.parquet")
    pq.write_table(pa.table({"loss": [loss]}), folder / "metric.parquet")
    with duckdb.connect(folder / "catalog.duckdb") as connection:
        connection.sql(f"CREATE VIEW one AS SELECT {view} AS value")
    times = f"<h3>Times</h3><table>{speed}</table></section> 2026-01-01 10:{minute} UTC"
    traces = f'<table data-answer="traces"><td>{speed}</td></table>'
    (folder / "report.html").write_text(f"<p>{loss}</p>{traces}<table>{loss}</table>{times}")
    return folder


def test_times_are_not_compared(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a"), write(tmp_path / "b", speed=6.0, minute=11)
    assert (one / "history.parquet").read_bytes() != (other / "history.parquet").read_bytes()
    assert differences(one, other) == []


def test_every_other_number_is_compared(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a"), write(tmp_path / "b", loss=1.0000001, view=2)
    assert differences(one, other) == ["catalog.duckdb", "history.parquet", "metric.parquet", "report.html"]


def test_missing_and_changed_files_are_differences(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a"), write(tmp_path / "b")
    (other / "model" / "weights").write_bytes(b"weightz")
    (one / "metric.parquet").unlink()
    assert differences(one, other) == ["metric.parquet", "model/weights"]


def test_versions_are_compared_by_values_and_not_by_descriptions(tmp_path) -> None:
    for name, meaning, value in (("old", "a", 1.5), ("new", "b", 1.5), ("off", "a", 1.25)):
        (tmp_path / name).mkdir()
        field = pa.field("loss", pa.float64(), metadata={"meaning": meaning})
        pq.write_table(pa.table([[value]], schema=pa.schema([field])), tmp_path / name / "metric.parquet")
    assert numbers_differ(tmp_path / "old", tmp_path / "new") == []
    assert numbers_differ(tmp_path / "old", tmp_path / "off") == ["metric.parquet"]
