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


@pytest.fixture(scope="session")
def window(browser, address):
    with visiting(browser, address) as visit:
        yield visit


@pytest.fixture
def visit(window):
    """The same page for all tests, which keeps the compiled scripts: compiling them takes most of a page's time."""
    window.problems.clear()
    yield window
    assert window.problems == []
