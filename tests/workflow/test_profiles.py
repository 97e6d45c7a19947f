"""Resources that jobs request from an executor, Snakemake's workflow profiles, and the image; needs no cluster."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.workflow.project import ROOT, Project

PROFILES = sorted(path.parent.name for path in (ROOT / "workflow" / "profiles").glob("*/config.yaml"))
KEYS = {"mem_mb", "runtime", "gpu", "slurm_partition"}
REQUESTED = re.compile(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", re.MULTILINE)


def requested(project: Project, attempt: int, **resources: Any) -> dict[str, dict[str, str]]:
    """Resources that the jobs of each rule request at the given attempt, from a dry run."""
    study = project.config("requests", resources=resources)
    run = project.snakemake("--dry-run", "--quiet", "host", "--attempt", str(attempt), study=study)
    assert run.returncode == 0, run.stdout[-3000:]
    return {
        rule: {key: value for key, value in (each.split("=", 1) for each in line.split(", ")) if key in KEYS}
        for rule, line in REQUESTED.findall(run.stdout)
        if rule != "all"
    }


def test_every_rule_requests_memory_and_time_and_each_retry_doubles_them(
    fresh: Project,
) -> None:
    first, third = requested(fresh, 1), requested(fresh, 3)
    assert len(first) == 28 and first.keys() == third.keys()
    for name, keys in first.items():
        assert keys.keys() == {"mem_mb", "runtime"}, name
        assert third[name] == {key: str(4 * int(value)) for key, value in keys.items()}, name


def test_every_rule_with_a_script_requests_resources() -> None:
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        scripts = file.read_text().count("script:\n")
        assert file.read_text().count(f'**needs("{file.stem}"') == (0 if file.stem == "plan" else scripts), (
            file
        )


def test_gpus_and_partitions_come_from_the_config(fresh: Project) -> None:
    keys = {"gpu": True, "partition": "cpus", "gpu_partition": "gpus", "memory": {"dictionaries": 5}}
    rules = requested(fresh, 1, **keys)
    assert rules["train_topk"] == {"mem_mb": "5", "runtime": "1440", "gpu": "1", "slurm_partition": "gpus"}
    assert rules["build_catalog"] == {"mem_mb": "4000", "runtime": "30", "slurm_partition": "cpus"}
    without = {name for name, keys in rules.items() if "gpu" not in keys}
    assert {"build_corpus", "annotate_concepts", "index_rows", "draw_pareto", "write_report"} <= without
    assert not {"pretrain_model", "cache_mlp_in", "trace_tc_topk8_128", "study_planted"} & without


def test_jobs_run_in_parallel_on_one_machine_whatever_they_request(fresh: Project) -> None:
    huge = {"memory": {"corpus": 10**9, "language_model": 10**9, "activations": 10**9}, "gpu": True}
    study = fresh.config("huge", resources=huge)
    # each job waits until the other has started
    script = 'from pathlib import Path\nimport time\nPath("{own}").touch()\nend = time.time() + 60\n'
    script += 'while not Path("{other}").exists():\n    assert time.time() < end\n    time.sleep(0.1)\n'
    for name, own, other, output in (
        ("corpus_annotate", "a", "b", "snakemake.output[0]"),
        ("activations_index", "b", "a", 'snakemake.output[0] + "/zarr.json"'),
    ):
        touch = f"out = Path({output})\nout.parent.mkdir(parents=True, exist_ok=True)\nout.touch()\n"
        (fresh.folder / "scripts" / f"{name}.py").write_text(script.format(own=own, other=other) + touch)
    targets = ["results/tiny/corpus/concept.parquet", "results/tiny/activations/rows.zarr"]
    run = fresh.snakemake(*targets, study=study)
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize("name", PROFILES)
def test_a_dry_run_with_a_profile_lists_all_jobs(name: str, fresh: Project, tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "workflow" / "profiles" / name / "config.yaml").read_text())
    # the plugins may be missing: leave out their own settings
    known = {
        key: value
        for key, value in settings.items()
        if key not in {"executor", "default-storage-provider"}
        and not key.startswith(("slurm-", "kubernetes-"))
    }
    folder = tmp_path / "profile"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(known))
    run = fresh.snakemake("--dry-run", "--workflow-profile", str(folder), "--quiet", "host")
    assert run.returncode == 0, run.stdout[-3000:]
    assert "rule train_topk:" in run.stdout and "rule write_report:" in run.stdout


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_names_its_executor_and_retries_jobs(name: str) -> None:
    settings = yaml.safe_load((ROOT / "workflow" / "profiles" / name / "config.yaml").read_text())
    assert settings["executor"] == name
    assert settings["retries"] >= 2 and settings["jobs"] > 1
    pinned = (ROOT / "requirements-cloud.lock").read_text()
    assert f"snakemake-executor-plugin-{name}==" in pinned


def test_the_image_contains_what_a_job_reads() -> None:
    recipe = (ROOT / "workflow" / "image" / "Containerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", recipe, re.MULTILINE) for word in line.split()}
    assert {"lib", "scripts", "workflow", "requirements.lock", "requirements-cloud.lock"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    (torch,) = re.findall(r"torch==\S+", recipe)
    pinning = [ROOT / "requirements.lock", *(ROOT / "benchmarks" / "peers").glob("*.txt")]
    assert {
        found for file in pinning for found in re.findall(r"^torch\b.*", file.read_text(), re.MULTILINE)
    } == {torch}


def test_only_python_dateutil_is_pinned_to_two_versions() -> None:
    pins = [
        dict(line.lower().split("==") for line in (ROOT / file).read_text().splitlines() if line[0] != "#")
        for file in ("requirements.lock", "requirements-cloud.lock")
    ]
    assert {name for name in pins[0].keys() & pins[1].keys()} == {"python-dateutil"}
