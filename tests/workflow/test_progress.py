"""What a run says: at its start what it will do, and after each job how much is left. Its jobs only touch files."""

import re

import pytest
from tests.workflow.project import Project

TOUCH = """
from pathlib import Path

for path in map(Path, snakemake.output):
    path.mkdir() if not path.suffix or path.suffix == ".zarr" else path.touch()
"""
FAIL = "raise SystemExit(1)"


@pytest.fixture
def project(fresh: Project) -> Project:
    """A project whose corpus stage takes no time."""
    for name in ("corpus_build", "corpus_annotate"):
        (fresh.folder / "scripts" / f"{name}.py").write_text(TOUCH)
    return fresh


def said(project: Project, *arguments: str, alone: bool = False) -> list[str]:
    """Lines of a run about the study, and lines that count steps."""
    run = project.snakemake_alone(*arguments) if alone else project.snakemake(*arguments)
    return re.findall(r"^tiny: .*|^.* steps .*done$", run.stdout, re.MULTILINE)


def test_a_run_says_what_it_does_and_counts_each_job_once(project: Project) -> None:
    # Snakemake and its jobs as processes of their own; the other tests run them in forks
    lines = said(project, "corpus", alone=True)
    assert lines[0] == "tiny: 2 jobs to run: corpus 2"
    counts = [line.partition(",")[0] for line in lines if "done" in line]
    assert counts == ["tiny: 1 of 2 jobs done", "tiny: 2 of 2 jobs done"]
    assert said(project, "corpus") == []


def test_a_second_run_knows_the_time_from_the_first(project: Project) -> None:
    said(project, "corpus")
    assert said(project, "corpus", "--forceall") == [
        "tiny: 2 jobs to run: corpus 2",
        "tiny: takes less than a minute",
        "tiny: 1 of 2 jobs done, less than a minute left",
        "tiny: 2 of 2 jobs done",
    ]


def test_a_run_counts_only_what_an_ended_run_has_left(project: Project) -> None:
    script = project.folder / "scripts" / "corpus_annotate.py"
    script.write_text(FAIL)
    assert "tiny: 2 of 2 jobs done" not in said(project, "corpus")
    script.write_text(TOUCH)
    lines = said(project, "corpus")
    assert lines[0] == "tiny: 1 job to run: corpus 1" and lines[-1] == "tiny: 1 of 1 job done"
