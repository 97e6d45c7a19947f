"""The tiny study with its results in a bucket: the same files as without."""

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
    """Snakemake with results in the bucket; what it says."""
    # one thread, as in the run without: how sums are split among threads decides their last bits
    command = [str(SNAKEMAKE), *arguments, "--cores", "2", "--max-threads", "1", *server.options]
    path = os.pathsep.join([str(project.folder / "lib"), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [*command, "--configfile", study], cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=3000, check=False, env=server.environment | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_results_in_a_bucket_equal_those_on_disk(tmp_path: Path) -> None:
    far, near = copy_project(tmp_path / "far"), copy_project(tmp_path / "near")
    study, _ = (project.config("tiny") for project in (far, near))
    with s3_server() as server:
        run(far, server, "dictionaries", study=study)
        # another machine, which has nothing but the bucket, goes on
        shutil.rmtree(far.folder / ".snakemake")
        run(far, server, study=study)
        assert not list(far.results.rglob("*.parquet"))
        assert "Nothing to be done" in run(far, server, "--dry-run", study=study)
        server.fetch(tmp_path / "bucket")
    local = near.snakemake("--max-threads", "1", study=study)
    assert local.returncode == 0, local.stdout[-4000:]
    assert differences(tmp_path / "bucket" / "results" / "tiny", near.results) == []
