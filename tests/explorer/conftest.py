"""A synthetic study and an explorer of it, shared by all tests of this folder that need a browser."""

from pathlib import Path

import pytest
from tests.explorer.browser import serving, visiting
from tests.explorer.made_up import make_study


@pytest.fixture(scope="session")
def made_up(tmp_path_factory) -> Path:
    return make_study(tmp_path_factory.mktemp("explorer") / "made-up")


@pytest.fixture(scope="session")
def address(made_up):
    with serving(made_up) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    with visiting(browser, address) as visit:
        yield visit
        assert visit.problems == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the browser tests in one process: the browser starts once."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("explorer"))
