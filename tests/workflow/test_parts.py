"""Several jobs cache activations: they give the activations of one job, even if they are killed."""

import shutil
import subprocess
from contextlib import suppress

import psutil
import pytest
import torch
from tests.workflow.project import Project

from circuitloom.activations.store import open_activations
from circuitloom.core.checksums import find_damage

JOBS = 3
LAYERS = (0, 1)


@pytest.fixture(scope="module")
def cached(finished: Project, tmp_path_factory) -> tuple[Project, str]:
    """A project in which three jobs have cached the activations of `finished`, and its study."""
    project = finished.copy(tmp_path_factory.mktemp("parts") / "project")
    study = project.config("parts", activations={"jobs": JOBS})
    run = project.snakemake("activations", study=study)
    assert run.returncode == 0, run.stdout[-4000:]
    return project, study


def parts_of(project: Project) -> list[str]:
    return [path.name for path in project.results.glob(f"activations/parts/mlp_in/*of{JOBS}")]


@pytest.mark.parametrize("layer", LAYERS)
def test_several_jobs_cache_the_same_rows_as_one(layer: int, cached, finished) -> None:
    one, three = (
        open_activations(project.results / "activations", "mlp_in", layer)
        for project in (finished, cached[0])
    )
    assert one.rows == three.rows
    assert one.stored.source == three.stored.source
    x, y = (next(each.batches(each.rows, 1)) for each in (one, three))
    # each of the jobs has one thread, the single job has two: sums of floats differ
    torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(one.mean, three.mean, rtol=1e-4, atol=1e-5)


def test_parts_are_deleted_and_nothing_is_stale(cached) -> None:
    project, study = cached
    assert parts_of(project) == []
    assert list(find_damage(project.results)) == []
    again = project.snakemake("activations", "--dry-run", study=study)
    assert "Nothing to be done" in again.stdout


@pytest.mark.slow
def test_finished_parts_are_kept_after_a_kill(cached) -> None:
    project, study = cached
    activations = project.results / "activations"
    before = (activations / "mlp_in" / "layer0.zarr" / "values" / "c" / "0" / "0").read_bytes()
    shutil.rmtree(activations / "mlp_in")
    # one job at a time: when the first has ended, the others have not
    process = subprocess.Popen(
        project.command("activations", study=study, cores=1), cwd=project.folder, env=project.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any("Finished jobid" in line and "cache_mlp_in_part" in line for line in process.stdout)
    jobs = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for job in jobs:
        with suppress(psutil.NoSuchProcess):
            job.kill()
    process.communicate(timeout=120)
    finished_parts = parts_of(project)
    assert 0 < len(finished_parts) < JOBS
    times = [project.results / "benchmarks" / f"cache_mlp_in_{part}.tsv" for part in finished_parts]
    before_rerun = [file.stat().st_mtime_ns for file in times]
    again = project.snakemake_alone("activations", study=study)
    assert again.returncode == 0, again.stdout[-4000:]
    assert [file.stat().st_mtime_ns for file in times] == before_rerun, "finished parts ran again"
    assert (activations / "mlp_in" / "layer0.zarr" / "values" / "c" / "0" / "0").read_bytes() == before
