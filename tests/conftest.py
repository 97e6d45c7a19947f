"""Shapes and types are checked at test time; real inputs are found or their tests skipped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
# two processes of tests share two cores: threads that wait for each other would spin
os.environ["OMP_NUM_THREADS"] = "1"
# without a GPU its kernels run in Triton's interpreter, which has to be said before Triton is imported
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# what a shell starts in the background ignores interrupts, as would the servers that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
# an int is a float, as PEP 484 has it
install_import_hook("circuitloom", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(scope="session")
def real_input() -> Path:
    """Folder with models/stories260K and data/tinystories: $REAL_INPUT, or `shared` beside the checkout."""
    folder = Path(os.environ.get("REAL_INPUT", Path(__file__).parents[2] / "shared"))
    if not (folder / "models" / "stories260K").is_dir():
        pytest.skip("set REAL_INPUT to a folder with models/stories260K and data/tinystories")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, once a process: two playwrights cannot be open in one. Its tests are skipped where there is none."""
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have tests tried once more that fail in a browser, or beside processes that they start and kill.

    On a machine that is busy with other tests these answer late, and no wait foresees all of that.
    """
    workflow = Path(__file__).parent / "workflow"
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()) or item.path.parent == workflow:
            item.add_marker(pytest.mark.flaky(reruns=1))
