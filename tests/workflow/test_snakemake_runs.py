"""The complete tiny study, run by Snakemake. All other tests read a study whose jobs ran in forks."""

import pytest
from tests.comparing import differences
from tests.workflow.project import Project

pytestmark = pytest.mark.slow


def test_snakemake_writes_the_files_that_forked_jobs_write(finished: Project, fresh: Project) -> None:
    # with two cores some jobs have two threads, which sum floats in another order
    run = fresh.snakemake_alone(cores=1)
    assert run.returncode == 0, run.stdout[-4000:]
    assert differences(finished.results, fresh.results) == []
    again = fresh.snakemake("--dry-run")
    assert "Nothing to be done" in again.stdout, again.stdout[-3000:]
