"""Reports of made-up studies."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.report.made_up_study import make_study
from tests.report.page import Page, read_page

from circuitloom.report.write import ReportInputs, write_report


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    sources: ReportInputs
    file: Path
    html: str
    page: Page


def write(folder: Path, **keys) -> Written:
    sources = make_study(folder / "made", **keys)
    file = folder / "made" / "report.html"
    write_report(sources, file)
    html = file.read_text()
    return Written(sources, file, html, read_page(html))


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Written:
    """The report of a study with everything in it."""
    return write(tmp_path_factory.mktemp("report"))
