"""A copied study has other times, and nothing runs again after `circuitloom adopt`, which reads every file."""

import os
import shutil
from pathlib import Path

import pytest
from tests.workflow.project import ROOT, Project


def copy_results(finished: Project, folder: Path, metadata: bool) -> Project:
    """Copy the results into a new project, with new times in alphabetical order, as `cp -r` may set them."""
    project = Project(folder)
    for name in ("workflow", "scripts", "config"):
        shutil.copytree(finished.folder / name, folder / name)
    (folder / "lib").symlink_to(ROOT / "lib")
    shutil.copytree(finished.results, project.results, copy_function=shutil.copy)
    if metadata:
        shutil.copytree(finished.folder / ".snakemake" / "metadata", folder / ".snakemake" / "metadata")
    newest = project.folder.stat().st_mtime
    for number, file in enumerate(sorted(project.results.rglob("*"))):
        os.utime(file, (newest + number / 1000, newest + number / 1000))
    return project


@pytest.fixture
def without_metadata(finished, tmp_path) -> Project:
    return copy_results(finished, tmp_path / "copy", metadata=False)


def test_an_adopted_copy_has_nothing_to_do_and_notices_changes(finished, tmp_path) -> None:
    project = copy_results(finished, tmp_path / "copy", metadata=True)
    assert len(project.stale()) > 10
    run = project.circuitloom("adopt", "tiny")
    assert run.returncode == 0, run.stderr
    assert project.stale() == set()
    # Snakemake's records tell it what a changed key affects
    assert "evaluate_topk" in project.stale("--config", "evaluation={tokens: 4000}")


@pytest.mark.slow
def test_results_alone_are_adopted_and_recorded_on_request(without_metadata) -> None:
    project = without_metadata
    assert len(project.stale()) > 10
    run = project.circuitloom("adopt", "tiny")
    assert run.returncode == 0, run.stderr
    assert "snakemake --touch --forceall --cores 1" in run.stdout
    assert project.stale() == set()
    assert project.stale("--config", "evaluation={tokens: 4000}") == set()
    touched = project.snakemake("--touch", "--forceall")
    assert touched.returncode == 0, touched.stdout[-3000:]
    assert project.stale() == set()
    assert "evaluate_topk" in project.stale("--config", "evaluation={tokens: 4000}")


def test_a_damaged_copy_is_named_and_not_adopted(without_metadata) -> None:
    project = without_metadata
    file = project.results / "evaluation" / "metric.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    stale = project.stale()
    run = project.circuitloom("adopt", "tiny")
    assert run.returncode == 1
    assert run.stdout.startswith("results/tiny/evaluation/metric.parquet: not what was written")
    assert run.stderr == "circuitloom: adopt: results/tiny: 1 damaged; nothing was adopted\n"
    assert project.stale() == stale
