"""A copy of the project in which the tiny profile has run, and one in which nothing has."""

from pathlib import Path

import pytest
from tests.workflow.project import Project, copy_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny profile, run from nothing to its end."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    run = project.snakemake()
    assert run.returncode == 0, run.stdout[-4000:]
    return project


@pytest.fixture
def fresh(tmp_path) -> Project:
    """A project in which nothing has run."""
    return copy_project(tmp_path / "project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep these tests in one process, so that the study runs once; the others fill a second."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("workflow"))
