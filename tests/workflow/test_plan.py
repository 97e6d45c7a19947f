"""The plan of the tiny study, compared with a finished run: tokens, disk, files, jobs and memory of each stage."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from tests.workflow.project import STUDY

from circuitloom.config import load_study
from circuitloom.core.layout import Layout
from circuitloom.core.tables import read_table
from circuitloom.corpus.tokens import open_tokens
from circuitloom.plan.costs import works_of
from circuitloom.plan.sizes import model_bytes, weight_bytes

FOLDERS = {
    "corpus": ["corpus"],
    "language_model": ["model", "language_model"],
    "activations": ["activations"],
    "dictionaries": ["dictionaries"],
    "evaluation": ["evaluation"],
    "features": ["features"],
    "circuits": ["circuits"],
    "labels": ["labels"],
    "cases": ["cases"],
}
"""Stage to the folders of its outputs."""
JOBS = {
    "corpus": ("build_corpus", "annotate_concepts"),
    "language_model": ("pretrain_model", "plot_pretraining", "measure_model"),
    "activations": ("index_rows", "cache_", "measure_norms"),
    "dictionaries": ("train_",),
    "evaluation": ("ablate_sites", "evaluate_", "match_concepts", "gather_evaluation", "draw_pareto"),
    "features": ("tabulate_",),
    "circuits": ("trace_", "view_weights", "ablate_plural"),
    "labels": ("describe_features", "score_label_outputs", "draw_circuits"),
    "cases": ("study_",),
    "catalog": ("build_catalog",),
    "report": ("write_report",),
}
"""Stage to the beginnings of its jobs' names."""


@pytest.fixture(scope="module")
def study(finished):
    return load_study(yaml.safe_load((finished.folder / STUDY).read_text()))


@pytest.fixture(scope="module")
def planned(study):
    """Stage to its planned work."""
    return {work.stage: work for work in works_of(study)}


@pytest.fixture(scope="module")
def layout(finished) -> Layout:
    return Layout(finished.results)


@pytest.fixture(scope="module")
def measured_jobs(layout) -> dict[str, list[float]]:
    """Stage to the peak memory of each of its jobs, in bytes."""
    jobs = defaultdict(list)
    for file in sorted(layout.benchmarks.glob("*.tsv")):
        (stage,) = (stage for stage, names in JOBS.items() if file.stem.startswith(names))
        with file.open() as lines:
            megabytes = next(csv.DictReader(lines, delimiter="\t"))["max_rss"]
        # Snakemake does not measure jobs of less than a second
        jobs[stage].append(0.0 if megabytes in ("-", "NA") else float(megabytes) * 2**20)
    return jobs


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def n_rows(files) -> int:
    return sum(read_table(file).num_rows for file in files)


def test_the_corpus_has_the_planned_number_of_tokens(planned, layout) -> None:
    splits = [open_tokens(layout.tokens(split)) for split in ("train", "validation")]
    # the last tokens that do not fill a sequence are dropped
    assert sum(len(each) * each.context for each in splits) == pytest.approx(
        planned["corpus"].tokens, rel=0.005
    )


def test_pretraining_uses_the_planned_number_of_tokens(planned, study, layout) -> None:
    steps = max(read_table(layout.model / "pretraining.parquet")["step"].to_pylist()) + 1
    tokens = steps * study.language_model.batch * study.corpus.context
    assert tokens == pytest.approx(planned["language_model"].tokens, rel=0.03)


def test_the_cache_has_the_planned_rows_and_bytes(planned, layout) -> None:
    work = planned["activations"]
    layers = sorted((layout.activations / "mlp_in").glob("layer*.zarr"))
    chunks = [file for layer in layers for file in (layer / "values" / "c").rglob("*") if file.is_file()]
    # the first position of each sequence is not cached
    assert sum(file.stat().st_size for file in chunks) == pytest.approx(work.written, rel=0.03)
    assert disk_bytes(layout.activations) == pytest.approx(work.disk, rel=0.05)
    assert len(chunks) == work.files


def test_training_uses_the_planned_tokens_and_stores_the_planned_weights(planned, study, layout) -> None:
    work = planned["dictionaries"]
    tokens = 0
    for name, run in study.runs.items():
        for layer in study.layers:
            history = read_table(layout.dictionary(name, layer) / "history.parquet")
            tokens += (max(history["step"].to_pylist()) + 1) * run.batch
    assert tokens == pytest.approx(work.tokens, rel=0.02)
    weights = sum(file.stat().st_size for file in layout.dictionaries.glob("*/*/weights.safetensors"))
    planned_weights = sum(weight_bytes(run, study.shape.d_model, study.layers) for run in study.runs.values())
    assert weights == pytest.approx(planned_weights * len(study.layers), rel=0.02)
    # a checkpoint also holds Adam's two moments
    assert 3 * weights <= work.disk <= 5 * weights
    assert len([file for file in layout.dictionaries.glob("*/*/[!.]*")]) == work.files


def test_the_feature_tables_have_the_planned_activations_and_files(planned, layout) -> None:
    work = planned["features"]
    activations = layout.root.glob("features/*/*/activation.parquet")
    # how many neurons fire is an estimate
    assert n_rows(activations) == pytest.approx(work.sorted_activations, rel=0.2)
    assert len(list(layout.root.glob("features/*/*/*.parquet"))) == work.files


def test_circuits_have_the_planned_number_of_files(planned, study, layout) -> None:
    files = [file for prompt in study.circuits.prompts for file in layout.trace(prompt).iterdir()]
    assert len([file for file in files if not file.name.startswith(".")]) == planned["circuits"].files


def test_the_model_has_about_the_planned_size(study, layout) -> None:
    # the plan counts one embedding and no biases; tiny's unembedding is not tied to it
    assert 1 <= (layout.model / "model.safetensors").stat().st_size / model_bytes(study) <= 2


@pytest.mark.parametrize(
    ("stage", "most"),
    [
        # peak: text and arrays are stored twice; tables are compressed
        ("corpus", 6),
        # peak: a checkpoint of weights and moments
        ("language_model", 3),
        ("activations", 1.05),
        # peak: a checkpoint of weights and moments
        ("dictionaries", 5),
        # 1 MB per run and layer, fitted to runs of thousands of features
        ("evaluation", 12),
        # peak: unsorted activations of the jobs in parallel
        ("features", 3),
        # 1 MB per prompt and per case, fitted to larger studies
        ("circuits", 3),
        ("cases", 4),
    ],
)
def test_the_planned_disk_is_enough_but_not_far_too_large(planned, layout, stage: str, most: float) -> None:
    used = sum(disk_bytes(layout.root / folder) for folder in FOLDERS[stage])
    assert 1 <= planned[stage].disk / used <= most


def test_the_planned_number_of_jobs_ran(planned, measured_jobs) -> None:
    ran = {stage: len(measured_jobs[stage]) for stage in planned}
    exact = {"activations", "dictionaries", "features", "cases"}
    assert {stage: ran[stage] for stage in exact} == {stage: planned[stage].starts for stage in exact}
    # small jobs such as plots are counted roughly
    for stage, work in planned.items():
        assert 0.5 <= work.starts / ran[stage] <= 1.5, stage


def test_no_job_needs_much_more_memory_than_planned(planned, measured_jobs) -> None:
    # the base, a process with its libraries, differs between machines
    for stage, work in planned.items():
        assert max(measured_jobs[stage]) <= 1.25 * work.memory, stage
