"""Runs the code on the card of an export, as a reader does who copies it."""

import os
import re
from pathlib import Path
from typing import Any


def run_card(folder: Path, before: str | None = None) -> dict[str, Any]:
    """Returns what the code on the card in `folder` defines. The folder becomes the working directory.

    Code from the line that starts with `before` is left out.
    """
    found = re.search(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{folder}: no code on the card"
    code, defined = found[1], {}
    if before is not None:
        assert f"\n{before}" in code
        code = code[: code.index(f"\n{before}")]
    # circuit-tracer opens files again when their weights are needed
    os.chdir(folder)
    exec(code, defined)
    return defined
