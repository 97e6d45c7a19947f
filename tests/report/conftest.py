"""Reports of made-up profiles."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.report.page import Page, read_page
from tests.report.profile import make_profile

from circuitloom.report.write import Sources, write_report


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    sources: Sources
    file: Path
    html: str
    page: Page


def write(folder: Path, **keys) -> Written:
    sources = make_profile(folder / "made", **keys)
    file = folder / "made" / "report.html"
    write_report(sources, file)
    html = file.read_text()
    return Written(sources, file, html, read_page(html))


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Written:
    """The report of a profile with everything in it."""
    return write(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; tests that need it are skipped where there is none.

    Of a module, not of the session: two playwrights cannot be open in one process.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()
