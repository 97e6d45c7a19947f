"""The tiny study with its results in a bucket gives the same files as on disk."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.comparing import differences
from tests.storage.server import Server, s3_server
from tests.workflow.project import SNAKEMAKE, Project, copy_project

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(plugin) is None for plugin in ("snakemake_storage_plugin_s3", "moto")),
    reason="needs Snakemake's storage plugin for S3, and moto: make test-storage",
)


def run(project: Project, server: Server, *arguments: str, study: str) -> str:
    """Run Snakemake with results in the bucket; returns its output."""
    # one thread, as in the run on disk: the last bits of sums depend on the number of threads
    command = [str(SNAKEMAKE), *arguments, "--cores", "2", "--max-threads", "1", *server.options]
    path = os.pathsep.join([str(project.folder / "lib"), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [*command, "--configfile", study], cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=3000, check=False, env=server.environment | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_results_in_a_bucket_equal_those_on_disk(tmp_path: Path) -> None:
    remote, local = copy_project(tmp_path / "remote"), copy_project(tmp_path / "local")
    study, _ = (project.config("tiny") for project in (remote, local))
    with s3_server() as server:
        run(remote, server, "dictionaries", study=study)
        # continue as another machine would, which has only the bucket
        shutil.rmtree(remote.folder / ".snakemake")
        run(remote, server, study=study)
        assert not list(remote.results.rglob("*.parquet"))
        assert "Nothing to be done" in run(remote, server, "--dry-run", study=study)
        server.fetch(tmp_path / "bucket")
    result = local.snakemake_alone("--max-threads", "1", study=study)
    assert result.returncode == 0, result.stdout[-4000:]
    assert differences(tmp_path / "bucket" / "results" / "tiny", local.results) == []
