"""Check shapes and types in all tests; find real inputs, or skip the tests that need them."""

import atexit
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import lazy_checks

os.environ["HF_HUB_OFFLINE"] = "1"
# two test processes share two cores: threads that wait for each other would spin
os.environ["OMP_NUM_THREADS"] = "1"
# without a GPU, kernels run in Triton's interpreter; Triton reads the variable when it is imported
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# a process in the background ignores interrupts, and so would the servers that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker ends without tearing down Python: DuckDB would print the types that beartype's caches hold, after the
    # summary. Callbacks run in reverse order, so this one runs last.
    atexit.register(os._exit, 0)
lazy_checks.install("circuitloom")


@pytest.fixture(scope="session")
def real_input() -> Path:
    """Folder with models/stories260K and data/tinystories: $REAL_INPUT, or `shared` beside the checkout."""
    folder = Path(os.environ.get("REAL_INPUT", Path(__file__).parents[2] / "shared"))
    if not (folder / "models" / "stories260K").is_dir():
        pytest.skip("set REAL_INPUT to a folder with models/stories260K and data/tinystories")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, once per process because a process can open only one Playwright. Skips tests without Chromium."""
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


FAST = {"ablation", "attribution", "catalog", "config", "core", "evaluation", "plan", "weights"}
"""Folders of fast tests. They need no workflow and no browser."""
OUTSIDE = {"browser", "real_input"}
"""Fixtures of tests that are not fast."""
LONG = {
    "test_architectures", "test_behaviour", "test_blind_prediction", "test_build", "test_case_loads",
    "test_causal_effects", "test_characters", "test_circuits", "test_direct_sources", "test_engines", "test_hostile",
    "test_macros", "test_paths", "test_questions_page", "test_sandbox",
}  # fmt: skip
"""Files of these folders that take the longest, most of them more than 8 seconds. They are not fast."""
OTHER_ARCHITECTURES = re.compile(r"gpt2|neox|gemma|granite|olmo2", re.IGNORECASE)
"""In the name of a case of a test, an architecture that fast tests leave out. They run on `llama` alone."""


COMMON = re.compile(r"gpt2|llama|gemma_?3", re.IGNORECASE)
OTHERS = re.compile(r"gemma|granite|mistral|neo|olmo|phi|qwen", re.IGNORECASE)
"""In the name of a case of a test, architectures on which `make test` runs the tests of `VARIED`, and those on which
`make test-slow` alone does."""
VARIED = {"ablation", "attribution", "weights"}
"""Folders whose tests run on each kind of block."""
COMBINED = re.compile(r"one layer without|skip cross-layer")
"""In the name of a case of these tests, sets of dictionaries that combine two kinds. `make test` runs them on `llama`
alone, `make test-slow` on the other architectures."""


LONGEST = ("workflow", "explorer")
"""Folders whose tests start first: a long file at the end would leave the other process without work."""

TOGETHER = {"report"}
"""Folders whose files share a fixture that takes seconds."""


def is_fast(item: pytest.Item, fixtures: set[str]) -> bool:
    """Whether `make test-fast` runs a test."""
    case = item.name.partition("[")[2]
    return (
        item.path.parent.name in FAST
        and item.path.stem not in LONG
        and not OUTSIDE & fixtures
        and not item.get_closest_marker("slow")
        and not OTHER_ARCHITECTURES.search(case)
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m fast`, do not import other folders."""
    folder = collection_path.parent == Path(__file__).parent and collection_path.is_dir()
    return True if folder and config.option.markexpr == "fast" and collection_path.name not in FAST else None


# before xdist reads the groups, and after the hooks of folders
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark fast tests. Repeat failed tests once if they use a browser or start and kill processes: a busy machine can
    delay these. Run each file in one process of xdist, so that its fixtures are made once."""
    workflow = Path(__file__).parent / "workflow"
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if is_fast(item, fixtures):
            item.add_marker(pytest.mark.fast)
        case = item.name.partition("[")[2]
        if item.path.parent.name in VARIED and (
            (OTHERS.search(case) and not COMMON.search(case))
            or (COMBINED.search(case) and COMMON.search(case) and "llama" not in case)
        ):
            item.add_marker(pytest.mark.slow)
        if "browser" in fixtures or item.path.parent == workflow:
            item.add_marker(pytest.mark.flaky(reruns=1))
        if not item.get_closest_marker("xdist_group"):
            folder = item.path.parent.name
            group = folder if folder in TOGETHER else f"{folder}/{item.path.stem}"
            item.add_marker(pytest.mark.xdist_group(group))
