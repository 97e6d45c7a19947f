"""`circuitloom verify` names every damaged file and exits with 1 if there is one."""

import sys
from pathlib import Path

import pytest

from circuitloom.cli import main
from circuitloom.core.checksums import record_path, write_record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with two recorded outputs; its project is the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results", "some")
    (folder / "corpus").mkdir(parents=True)
    (folder / "model.v1").mkdir()
    (folder / "corpus" / "token.parquet").write_bytes(b"tokens")
    (folder / "model.v1" / "weights").write_bytes(b"weights")
    (folder / "catalog.duckdb").write_bytes(b"views")
    for output in ("corpus/token.parquet", "model.v1"):
        write_record(folder, folder / output)
    return folder


def verify(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run the command; returns None for exit code 0, else the message."""
    monkeypatch.setattr(sys, "argv", ["circuitloom", "verify", *arguments])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return None


def test_an_intact_study_is_summarized_in_one_line(folder, monkeypatch, capsys) -> None:
    assert verify(monkeypatch, "some") is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "results/some: 2 files, 0.0 MB, of 2 outputs: no damage"


def test_every_damaged_file_has_a_line_and_the_exit_code_is_1(folder, monkeypatch, capsys) -> None:
    (folder / "corpus" / "token.parquet").write_bytes(b"Tokens")
    (folder / "model.v1" / "weights").unlink()
    assert verify(monkeypatch, "some") == "circuitloom: verify: results/some: 2 damaged"
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "results/some/corpus/token.parquet",
        "results/some/model.v1/weights",
    ]


def test_a_missing_output_and_a_damaged_record_are_named(folder, monkeypatch, capsys) -> None:
    (folder / "corpus" / "token.parquet").unlink()
    record = record_path(folder, folder / "model.v1")
    record.write_bytes(b"{}")
    assert verify(monkeypatch, "some") == "circuitloom: verify: results/some: 2 damaged"
    missing, damaged = capsys.readouterr().out.splitlines()
    assert missing.startswith(
        "results/some/corpus/token.parquet: missing; run again, or delete results/some/checksums/"
    )
    assert damaged.startswith(
        f"{record}: a damaged record; delete it and results/some/model.v1, and run again"
    )


@pytest.mark.parametrize(
    ("study", "message"), [("none", "results/none: not there;"), ("old", "no checksums;")]
)
def test_without_results_or_records_the_error_names_the_remedy(folder, monkeypatch, study, message) -> None:
    Path("results", "old").mkdir()
    assert message in str(verify(monkeypatch, study))
