"""Environments of other libraries and engines, which `make test-exchange` makes from benchmarks/peers."""

import os
from pathlib import Path

import pytest

PEERS = Path(os.environ.get("PEERS", Path(__file__).parents[2] / ".peers")).absolute()
"""Folder of the environments."""


def peer_python(name: str) -> Path:
    """Python of an environment. Skips the test without it."""
    # the stamp is written last
    if not (PEERS / name / ".installed").is_file():
        pytest.skip(f"no environment {PEERS / name}; `make test-exchange` builds it")
    return PEERS / name / "bin" / "python"
