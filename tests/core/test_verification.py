"""`circuitloom verify` names every damaged file and exits with 1 if there is one; `circuitloom adopt` adopts none."""

import os
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from circuitloom.cli import main
from circuitloom.core.checksums import record_path, write_record
from circuitloom.core.snakemake_records import has_records


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
    """Run `circuitloom verify`; returns None for exit code 0, else the message."""
    return run(monkeypatch, "verify", *arguments)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["circuitloom", *arguments])
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


def set_times(folder: Path) -> dict[Path, int]:
    """Give each file and folder a time of its own, as copying does; returns the times."""
    files = sorted([folder, *folder.rglob("*")])
    for number, file in enumerate(files):
        os.utime(file, (number, number))
    return times(folder)


def times(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in sorted([folder, *folder.rglob("*")])}


def test_adopted_outputs_and_benchmarks_have_one_time(folder, monkeypatch, capsys) -> None:
    (folder / "model.v1" / ".snakemake_timestamp").touch()
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "build.tsv").touch()
    before = set_times(folder)
    assert run(monkeypatch, "adopt", "some") is None
    after = times(folder)
    adopted = {file.relative_to(folder).as_posix() for file in after if after[file] != before[file]}
    # catalog.duckdb has no record: a killed job may have left it
    assert adopted == {
        "corpus/token.parquet", "model.v1", "model.v1/weights", "model.v1/.snakemake_timestamp", "benchmarks/build.tsv",
    }  # fmt: skip
    assert len({after[folder / file] for file in adopted}) == 1
    adopted_line, hint = capsys.readouterr().out.splitlines()
    assert adopted_line.startswith("results/some: 2 files, 0.0 MB, of 2 outputs: adopted")
    assert "`snakemake --touch --forceall --cores 1`" in hint
    # as Snakemake names its records
    metadata = Path(".snakemake", "metadata")
    metadata.mkdir(parents=True)
    (metadata / urlsafe_b64encode(b"results/other/corpus/token.parquet").decode()).touch()
    assert run(monkeypatch, "adopt", "some") is None
    assert len(capsys.readouterr().out.splitlines()) == 2
    (metadata / urlsafe_b64encode(b"results/some/corpus/token.parquet").decode()).touch()
    assert run(monkeypatch, "adopt", "some") is None
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("damage", [b"Tokens", b"cut", None])
def test_a_damaged_study_is_not_adopted(folder, monkeypatch, capsys, damage: bytes | None) -> None:
    file = folder / "corpus" / "token.parquet"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    before = set_times(folder)
    assert (
        run(monkeypatch, "adopt", "some")
        == "circuitloom: adopt: results/some: 1 damaged; nothing was adopted"
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("results/some/corpus/token.parquet: ")
    assert times(folder) == before


def test_a_study_without_records_is_not_adopted(folder, monkeypatch) -> None:
    Path("results", "old").mkdir()
    assert "no checksums;" in str(run(monkeypatch, "adopt", "old"))


def test_a_record_of_a_long_path_lies_in_folders(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = Path("results", "n" * 200, "corpus", "token.parquet")
    name = urlsafe_b64encode(str(output).encode()).decode()
    assert not has_records([output])
    folder = Path(".snakemake", "metadata", f"@{name[:254]}")
    folder.mkdir(parents=True)
    (folder / name[254:]).touch()
    assert has_records([output])
