"""Reports of made-up profiles."""

from dataclasses import dataclass
from pathlib import Path

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
