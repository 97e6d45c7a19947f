"""A copy of the project in which the tiny study has run, and one in which nothing has."""

from pathlib import Path

import pytest
from tests.workflow.project import Project, copy_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny study, run from nothing to its end."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    run = project.snakemake()
    assert run.returncode == 0, run.stdout[-4000:]
    return project


@pytest.fixture
def fresh(tmp_path) -> Project:
    """A project in which nothing has run."""
    return copy_project(tmp_path / "project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that look at the finished study in one process, so that it runs once; and each other file's in one."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            shared = "finished" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("finished" if shared else item.path.stem))
