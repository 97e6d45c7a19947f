"""A sweep with `files` is imported instead of trained; later stages run on it unchanged."""

from typing import Any

import torch
from tests import published_folders as folders
from tests.workflow.project import Project

from circuitloom.core.tables import read_table

D, WIDTH, LAYERS = 32, 48, 2
"""d of tiny's model; width and number of the files."""


def write_files(project: Project, seed: int) -> None:
    """Write files with random weights, one per layer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, D), "b_dec": (D,), "b_dec_out": (D,)}
    for layer in range(LAYERS):
        weights = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        torch.save({"cfg": {"is_transcoder": True}, "state_dict": weights}, project.folder / f"tc.{layer}.pt")


def published(project: Project) -> str:
    """A study like tiny whose only sweep is imported."""
    write_files(project, seed=0)
    files = {
        "files": str(project.folder / "tc.{layer}.pt"),
        "name": "published",
        "act": "relu",
        "width": WIDTH,
    }
    return project.config(
        "published",
        replace=("dictionaries",),
        dictionaries={"theirs": files},
        resources={"group_jobs": False},
    )


def imports(project: Project, *arguments: str, study: str) -> int:
    """Number of files that would be imported; asserts that nothing would be trained."""
    run = project.snakemake(*arguments, "--dry-run", "--quiet", "host", study=study)
    assert run.returncode == 0, run.stdout
    assert "rule train_" not in run.stdout
    return run.stdout.count("rule import_theirs:")


def test_files_are_imported_and_nothing_is_trained(fresh: Project) -> None:
    assert imports(fresh, study=published(fresh)) == LAYERS


def test_imported_dictionaries_are_scored_like_trained_ones(finished: Project, tmp_path) -> None:
    project = finished.copy(tmp_path / "project")
    study = published(project)
    table = "results/tiny/evaluation/published/layer1/metric.parquet"
    run = project.snakemake(table, study=study)
    assert run.returncode == 0, run.stdout[-4000:]
    (row,) = read_table(project.folder / table).to_pylist()
    assert (row["run"], row["layer"]) == ("published", 1)
    # random weights replace no MLP
    assert row["ce"] > row["ce_original"] and row["l0"] > 1
    assert imports(project, table, study=study) == 0
    write_files(project, seed=1)
    assert imports(project, table, study=study) == 1


def circuit_tracer_study(project: Project, **sweep: Any) -> str:
    """A study like tiny whose only sweep is a set of circuit-tracer with random weights."""
    folders.circuit_tracer(project.folder / "set", LAYERS, hooks=("mlp.hook_in", "mlp.hook_out"), d=D)
    return project.config(
        "published",
        replace=("dictionaries",),
        dictionaries={"theirs": {"files": str(project.folder / "set"), "name": "published", **sweep}},
        resources={"group_jobs": False},
    )


def test_a_recognised_set_is_tested_at_its_hooks_and_scored(finished: Project, tmp_path) -> None:
    project = finished.copy(tmp_path / "project")
    refused = project.snakemake("dictionaries", study=circuit_tracer_study(project))
    assert refused.returncode != 0
    (line,) = [
        line for line in refused.stdout.splitlines() if line.startswith("circuitloom: dictionaries: /")
    ][:1]
    assert "layer_" in line and "does not fit with mlp.hook_in to mlp.hook_out, as its files say: FVU" in line
    assert "none of" in line and "name the files of this model, or set largest_fvu above 1" in line
    study = circuit_tracer_study(project, largest_fvu=1e9)
    table = "results/tiny/evaluation/published/layer1/metric.parquet"
    run = project.snakemake(table, study=study)
    assert run.returncode == 0, run.stdout[-4000:]
    (row,) = read_table(project.folder / table).to_pylist()
    assert (row["run"], row["layer"]) == ("published", 1)
    assert imports(project, table, study=study) == 0
    # another file of one layer is imported again, and the other layer is not
    folders.circuit_tracer_layer(project.folder / "set", 1, "relu", True, d=D)
    folders.circuit_tracer_layer(project.folder / "set", 0, "relu", True, d=D)
    assert imports(project, table, study=study) == 1


def test_a_cross_layer_transcoder_is_imported_in_one_job(fresh: Project) -> None:
    files = fresh.folder / "set"
    folders.circuit_tracer_clt(files, LAYERS, hooks=("mlp.hook_in", "mlp.hook_out"), d=D)
    study = fresh.config(
        "published",
        replace=("dictionaries",),
        dictionaries={"theirs": {"files": str(files), "name": "published"}},
        resources={"group_jobs": False},
    )
    assert imports(fresh, study=study) == 1
