"""A fault in a job is one line, an exit code and a log; full disks and memories are known whoever reports them."""

from pathlib import Path

import pytest

from circuitloom.errors import first_line
from circuitloom.job import job

FAULTS: dict[str, tuple[Exception, str]] = {
    "broken input": (ValueError("a.txt is empty;\n give text"), "a.txt is empty; give text"),
    "a full disk": (OSError(28, "No space left on device", "a.zarr"), "the disk is full (a.zarr); make room"),
    "a full disk under safetensors": (
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "the disk is full (",
    ),
    "torch out of memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "out of memory;",
    ),
    "a GPU out of memory": (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB."), "out of memory;"),
    "an error of ours": (KeyError("layer"), "unexpected KeyError: 'layer'; details in "),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _keep_threads(monkeypatch):
    monkeypatch.setattr("circuitloom.job.set_threads", lambda threads: None)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_in_one_line_and_its_details_are_logged(fault, tmp_path, capsys):
    error, message = FAULTS[fault]
    log = tmp_path / "logs" / "rule.log"
    with pytest.raises(SystemExit) as stop, job("corpus", 1, str(log)):
        raise error
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"circuitloom: corpus: {message}")
    assert "Traceback" in log.read_text()


def test_a_log_without_room_hides_no_message(tmp_path, capsys, monkeypatch):
    def full(*_a, **_k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit), job("corpus", 1, str(tmp_path / "rule.log")):
        raise ValueError("what went wrong")
    assert capsys.readouterr().err == "circuitloom: corpus: what went wrong\n"


def test_an_error_that_says_nothing_is_told_by_its_class():
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("\n one\ntwo")) == "one"
