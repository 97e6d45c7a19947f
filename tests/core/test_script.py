"""A fault in a job is one line, an exit code and a log; its files are checked, recorded, and never recorded halfway."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from circuitloom.core.checksums import check_inputs, record_path, write_record
from circuitloom.core.errors import first_line
from circuitloom.core.script import job

FAULTS: dict[str, tuple[Exception, str]] = {
    "broken input": (ValueError("a.txt is empty;\n give text"), "a.txt is empty; give text"),
    "a full disk": (OSError(28, "No space left on device", "a.zarr"), "the disk is full (a.zarr); make room"),
    "a full disk under safetensors": (
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "the disk is full (",
    ),
    "a full disk under numpy": (OSError("15384 requested and 10176 written"), "the disk is full ("),
    "torch out of memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "out of memory;",
    ),
    "a GPU out of memory": (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB."), "out of memory;"),
    "an error of ours": (KeyError("layer"), "unexpected KeyError: 'layer'; details in "),
}  # fmt: skip


@dataclass
class Script:
    """What Snakemake tells a script, in the study `folder`."""

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
def test_a_fault_is_said_in_one_line_and_its_details_are_logged(fault, tmp_path, capsys):
    error, message = FAULTS[fault]
    log = tmp_path / "logs" / "rule.log"
    with pytest.raises(SystemExit) as stop, job("corpus", Script(tmp_path)):
        raise error
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"circuitloom: corpus: {message}")
    assert "Traceback" in log.read_text()


def test_a_log_without_room_hides_no_message(tmp_path, capsys, monkeypatch):
    def full(*_a, **_k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit), job("corpus", Script(tmp_path)):
        raise ValueError("what went wrong")
    assert capsys.readouterr().err == "circuitloom: corpus: what went wrong\n"


def test_an_error_that_says_nothing_is_told_by_its_class():
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("\n one\ntwo")) == "one"


@pytest.fixture
def script(tmp_path) -> Script:
    """A job that makes one file of another."""
    (tmp_path / "source").write_bytes(b"source")
    write_record(tmp_path, tmp_path / "source")
    return Script(tmp_path, input=[str(tmp_path / "source")], output=[str(tmp_path / "made")])


def test_what_a_job_made_is_recorded_in_place_of_what_it_made_before(script, tmp_path):
    for content in (b"first", b"another"):
        with job("corpus", script):
            (tmp_path / "made").write_bytes(content)
        check_inputs(tmp_path, [tmp_path / "made"])
    (tmp_path / "made").write_bytes(b"Another")
    with pytest.raises(ValueError, match="made: not what was written"):
        check_inputs(tmp_path, [tmp_path / "made"])


def test_a_job_does_not_begin_on_a_damaged_input(script, tmp_path, capsys):
    (tmp_path / "source").write_bytes(b"sourcE")
    begun = []
    with pytest.raises(SystemExit) as stop, job("corpus", script):
        begun.append(1)
    assert stop.value.code == 1
    assert not begun
    (line,) = capsys.readouterr().err.splitlines()
    remedy = "not what was written (its checksum differs); delete it and run again"
    assert line == f"circuitloom: corpus: {tmp_path / 'source'}: {remedy}"


def test_a_job_that_fails_leaves_no_record(script, tmp_path):
    write_record(tmp_path, tmp_path / "source")
    (tmp_path / "made").write_bytes(b"old")
    write_record(tmp_path, tmp_path / "made")
    with pytest.raises(SystemExit), job("corpus", script):
        (tmp_path / "made").write_bytes(b"half")
        raise ValueError("no more")
    assert not record_path(tmp_path, tmp_path / "made").exists()
