"""Reports of synthetic studies."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.report.made_up_study import make_study
from tests.report.page import Page, read_page

from circuitloom.report.write import ReportInputs, write_report


@dataclass(frozen=True)
class WrittenReport:
    """A report and its inputs."""

    inputs: ReportInputs
    file: Path
    html: str
    page: Page


def write(folder: Path, **keys) -> WrittenReport:
    inputs = make_study(folder / "made", **keys)
    file = folder / "made" / "report.html"
    write_report(inputs, file)
    html = file.read_text()
    return WrittenReport(inputs, file, html, read_page(html))


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> WrittenReport:
    """The report of a study with all parts."""
    return write(tmp_path_factory.mktemp("report"))
