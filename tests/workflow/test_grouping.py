"""A study whose jobs are grouped gives the files of one with a job per layer and prompt."""

import shutil
from pathlib import Path

import pytest
from tests.comparing import differences
from tests.workflow.jobs import StudyRun, run_study
from tests.workflow.project import Project

pytestmark = pytest.mark.slow
STAGES = ("evaluation", "features", "circuits")
"""Stages whose jobs can be grouped."""


@pytest.fixture(scope="module")
def runs(finished: Project, tmp_path_factory) -> dict[bool, StudyRun]:
    """Whether jobs are grouped, to a run of `STAGES` with one core."""
    runs = {}
    for grouped in (True, False):
        project = finished.copy(tmp_path_factory.mktemp("grouping") / "project")
        for stage in STAGES:
            shutil.rmtree(project.results / stage)
        study = project.config("grouping", resources={"group_jobs": grouped})
        with run_study(project, study, STAGES) as runs[grouped]:
            pass
    return runs


def test_grouped_jobs_write_the_same_files(runs: dict[bool, StudyRun]) -> None:
    one, other = (runs[grouped].project.results for grouped in (True, False))
    for stage in STAGES:
        assert len(list((one / stage).rglob("*.parquet"))) > 10
        assert differences(one / stage, other / stage) == []


def test_only_grouped_jobs_have_all_layers_and_prompts(runs: dict[bool, StudyRun]) -> None:
    def folders(grouped: bool, rule: str) -> list[int]:
        """Number of folders into which each job of a rule writes."""
        jobs = [job for job in runs[grouped].jobs if job.rule.startswith(rule)]
        return [len({Path(output).parent for output in job.output}) for job in jobs]

    # two runs at two layers, and both layers together
    assert folders(True, "evaluate_topk") == [6]
    assert folders(False, "evaluate_topk") == [2, 2]
    assert folders(False, "evaluate_together") == [1, 1]
    assert folders(True, "tabulate_topk") == [4]
    assert folders(False, "tabulate_topk") == [2, 2]
    assert folders(True, "trace_") == [2]
    assert folders(False, "trace_") == [1, 1]
