"""A failed job prints one line, exits with 1 and writes a log; inputs are verified, and finished outputs recorded."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from circuitloom.core.checksums import check_inputs, record_path, write_record
from circuitloom.core.errors import first_line
from circuitloom.core.script import VERIFY_INPUTS, job

FAULTS: dict[str, tuple[Exception, str]] = {
    "broken input": (ValueError("a.txt is empty;\n give text"), "a.txt is empty; give text"),
    "a full disk": (OSError(28, "No space left on device", "a.zarr"), "the disk is full (a.zarr); make room"),
    "a full disk under safetensors": (
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "the disk is full (",
    ),
    "a full disk under numpy": (OSError("15384 requested and 10176 written"), "the disk is full ("),
    "a disk quota": (OSError(122, "Disk quota exceeded", "a.zarr"), "the disk quota is used up (a.zarr); make room"),
    "a disk quota under safetensors": (
        RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        "the disk quota is used up (",
    ),
    "a disk quota under DuckDB": (
        RuntimeError('IO Error: Could not write file "a.duckdb": Disk quota exceeded'), "the disk quota is used up (",
    ),
    "another error number": (OSError("connection failed (os error 280)"), "connection failed (os error 280)"),
    "torch out of memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "out of memory;",
    ),
    "a GPU out of memory": (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB."), "out of memory;"),
    "an error of ours": (KeyError("layer"), "unexpected KeyError: 'layer'; details in "),
}  # fmt: skip


@dataclass
class Script:
    """Replaces Snakemake's object in a script of the study in `folder`."""

    folder: Path
    threads: int = 1
    input: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)

    @property
    def log(self) -> list[str]:
        return [str(self.folder / "logs" / "rule.log")]


@pytest.fixture(autouse=True)
def _keep_threads(monkeypatch):
    monkeypatch.setattr("circuitloom.core.script.set_threads", lambda threads: None)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_is_printed_in_one_line_and_its_traceback_is_logged(fault, tmp_path, capsys):
    error, message = FAULTS[fault]
    log = tmp_path / "logs" / "rule.log"
    with pytest.raises(SystemExit) as stop, job("corpus", Script(tmp_path)):
        raise error
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"circuitloom: corpus: {message}")
    assert "Traceback" in log.read_text()


def test_the_error_is_printed_even_if_the_log_cannot_be_written(tmp_path, capsys, monkeypatch):
    def full(*_a, **_k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit), job("corpus", Script(tmp_path)):
        raise ValueError("what went wrong")
    assert capsys.readouterr().err == "circuitloom: corpus: what went wrong\n"


def test_an_error_without_a_message_is_named_by_its_class():
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("\n one\ntwo")) == "one"


@pytest.fixture
def script(tmp_path) -> Script:
    """A job with one input and one output."""
    (tmp_path / "source").write_bytes(b"source")
    write_record(tmp_path, tmp_path / "source")
    return Script(tmp_path, input=[str(tmp_path / "source")], output=[str(tmp_path / "made")])


def test_a_job_replaces_the_record_of_its_output(script, tmp_path):
    for content in (b"first", b"another"):
        with job("corpus", script):
            (tmp_path / "made").write_bytes(content)
        check_inputs(tmp_path, [tmp_path / "made"])
    (tmp_path / "made").write_bytes(b"Another")
    with pytest.raises(ValueError, match="made: not what was written"):
        check_inputs(tmp_path, [tmp_path / "made"])


def test_a_job_does_not_start_with_a_damaged_input(script, tmp_path, capsys):
    (tmp_path / "source").write_bytes(b"sourcE")
    started = []
    with pytest.raises(SystemExit) as stop, job("corpus", script):
        started.append(1)
    assert stop.value.code == 1
    assert not started
    (line,) = capsys.readouterr().err.splitlines()
    remedy = "not what was written (its checksum differs); delete it and run again"
    assert line == f"circuitloom: corpus: {tmp_path / 'source'}: {remedy}"


def test_without_verify_inputs_a_job_compares_sizes_but_does_not_read_its_inputs(
    script, tmp_path, monkeypatch
):
    monkeypatch.setenv(VERIFY_INPUTS, "0")
    read = []
    monkeypatch.setattr("circuitloom.core.checksums._checksum", lambda file: read.append(file) or 0)
    (tmp_path / "source").write_bytes(b"sourcE")
    with job("corpus", script):
        (tmp_path / "made").write_bytes(b"made")
    # the output is recorded as usual
    assert read == [tmp_path / "made"]
    (tmp_path / "source").write_bytes(b"cut")
    with pytest.raises(SystemExit), job("corpus", script):
        pass


def test_a_job_that_fails_leaves_no_record(script, tmp_path):
    write_record(tmp_path, tmp_path / "source")
    (tmp_path / "made").write_bytes(b"old")
    write_record(tmp_path, tmp_path / "made")
    with pytest.raises(SystemExit), job("corpus", script):
        (tmp_path / "made").write_bytes(b"half")
        raise ValueError("no more")
    assert not record_path(tmp_path, tmp_path / "made").exists()
