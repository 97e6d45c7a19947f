"""Copies of the project: one in which the tiny study has run, and one in which nothing has run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.workflow.forks import OUTPUT
from tests.workflow.jobs import JOBS, StudyRun, run_study
from tests.workflow.project import STUDY, Project, link_project


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Iterator[StudyRun]:
    """A run of the complete tiny study, whose jobs can run again in other folders."""
    project = link_project(tmp_path_factory.mktemp("finished"))
    with run_study(project, STUDY) as run:
        for name in (JOBS, OUTPUT):
            (project.folder / name).unlink()
        touched = project.snakemake("--touch", "--forceall")
        assert touched.returncode == 0, touched.stdout[-4000:]
        yield run


@pytest.fixture(scope="session")
def finished(finished_run: StudyRun) -> Project:
    """A project in which the complete tiny study has run, for Snakemake too.

    Jobs run in forks, which saves their imports. `test_snakemake_runs` compares the files with those of a run by
    Snakemake alone.
    """
    return finished_run.project


@pytest.fixture
def fresh(tmp_path) -> Project:
    """A project in which nothing has run."""
    return link_project(tmp_path / "project")


# before xdist reads the groups, also if this file is loaded first because its folder is named on the command line
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of the finished study in one process, so that it runs once, and each other file in one process."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            shared = "finished_run" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("finished" if shared else item.path.stem))
