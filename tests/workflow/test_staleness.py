"""A change reruns what depends on it, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.workflow.project import Project

EVALUATION = {"ablate_sites", "evaluate_topk", "gather_evaluation", "draw_pareto"}
REPORT = {"build_catalog", "write_report"}
"""Rules that rerun after a change of any table."""
CONCEPTS = {"match_concepts"} | REPORT
FEATURES = {"tabulate_topk", "tabulate_neurons"} | REPORT
TRAINING = {"train_topk"}
CIRCUITS = {"trace_tc_topk8_128", "view_weights", "ablate_components_plural"}
LABELS = {"describe_features", "score_label_outputs", "draw_circuits"}
"""Labels read feature tables and analysed weights, and pictures of circuits show labels."""
CASES = {"study_feature", "study_greater_than", "study_difference", "study_planted"}
STAGES = (
    "corpus",
    "language_model",
    "activations",
    "dictionaries",
    "evaluation",
    "features",
    "circuits",
    "cases",
    "catalog",
    "report",
)


def test_a_finished_study_has_nothing_to_do(finished) -> None:
    assert finished.stale() == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_target(finished, stage: str) -> None:
    run = finished.snakemake("--dry-run", stage)
    assert run.returncode == 0, run.stdout
    assert "train_topk" not in run.stdout


def test_a_training_key_reruns_training_and_what_depends_on_it(finished) -> None:
    stale = finished.stale("--config", "training={learning_rate: 5e-3}")
    assert stale >= CIRCUITS | CASES
    possible = TRAINING | EVALUATION | CONCEPTS | CIRCUITS | CASES | LABELS | {"tabulate_topk"}
    assert TRAINING <= stale <= possible


def test_an_evaluation_key_does_not_rerun_training(finished) -> None:
    stale = finished.stale("--config", "evaluation={tokens: 4000}")
    assert "evaluate_topk" in stale
    assert stale <= EVALUATION | CONCEPTS | {"study_feature", "study_planted"}


def test_the_dtype_of_circuits_reruns_circuits_and_cases_alone(finished) -> None:
    stale = finished.stale("--config", "circuits={dtype: float64}")
    assert CIRCUITS | CASES <= stale <= CIRCUITS | CASES | LABELS | REPORT


def test_outliers_train_and_score_again_but_cache_nothing(finished) -> None:
    stale = finished.stale("--config", "activations={outliers: {action: drop}}")
    assert {"train_topk", "ablate_sites", "evaluate_topk"} <= stale
    assert not stale & {"cache_mlp_in", "index_rows", "measure_norms"}


def test_an_activations_key_does_not_rerun_corpus_and_model(finished) -> None:
    stale = finished.stale("--config", "activations={dtype: int8}")
    assert {"cache_mlp_in", "train_topk"} <= stale
    assert not stale & {"build_corpus", "pretrain_model", "measure_model"}


def test_an_added_site_does_not_cache_the_others_again(finished) -> None:
    stale = finished.stale("--config", "activations={sites: [mlp_in, resid_mid]}")
    # the report shows the config
    assert stale == {"cache_resid_mid", "measure_norms"} | REPORT


def test_a_removed_layer_caches_and_trains_nothing(finished) -> None:
    stale = finished.stale("--config", "activations={layers: [0]}")
    assert "gather_evaluation" in stale
    assert not stale & {"index_rows", "cache_mlp_in", "train_topk"}


def test_an_added_sweep_trains_only_itself(finished) -> None:
    stale = finished.stale("--config", "dictionaries={wider: {width: 256}}")
    assert {"train_wider", "evaluate_wider", "gather_evaluation"} <= stale
    assert not stale & {"train_topk", "evaluate_topk", "tabulate_topk", "cache_mlp_in"}


def test_an_added_run_makes_only_its_own_feature_tables(finished) -> None:
    run = finished.snakemake("--summary", "--config", "dictionaries={wider: {width: 256}}")
    files = [line for line in run.stdout.splitlines() if line.startswith("results/tiny/features/")]
    made = {line.split("/")[3] for line in files if line.endswith("update pending")}
    kept = {line.split("/")[3] for line in files if line.endswith("no update")}
    assert made == {"tc-topk8-256"}
    assert kept == {"tc-topk8-128", "sae-topk8-128", "neurons"}


def test_a_features_key_reruns_only_the_feature_tables_and_their_labels(finished) -> None:
    assert finished.stale("--config", "features={examples: 3}") == FEATURES | LABELS
    # circuits have no neurons
    stale = finished.stale("--config", "features={neurons: 8}")
    assert stale == {"tabulate_neurons", "describe_features", "score_label_outputs"} | REPORT


def test_a_tracing_key_reruns_only_the_traces(finished) -> None:
    assert (
        finished.stale("--config", "circuits={width: 5}") == {"trace_tc_topk8_128", "draw_circuits"} | REPORT
    )


def test_a_key_of_a_case_reruns_only_this_case(finished) -> None:
    assert finished.stale("--config", "cases={caught: {traced: 3}}") == {"study_feature"} | REPORT


@pytest.fixture(scope="module")
def editable(finished: Project, tmp_path_factory) -> Project:
    """The finished study with a library of its own."""
    project = finished.copy(tmp_path_factory.mktemp("editable") / "project")
    project.copy_library()
    return project


@contextmanager
def edited(project: Project, file: str, old: str, new: str) -> Iterator[None]:
    """Replace the first `old` in a file of the library while the context lasts."""
    path = project.folder / "lib" / "circuitloom" / file
    source = path.read_text()
    changed = source.replace(old, new, 1)
    assert changed != source
    path.write_text(changed)
    try:
        yield
    finally:
        path.write_text(source)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("macros.sql", "ORDER BY overlap", "ORDER BY lift"), ("report.sql", "SELECT", "SELECT DISTINCT")],
)
def test_edited_sql_reruns_only_the_catalogue_and_the_report(editable, file: str, old: str, new: str) -> None:
    with edited(editable, f"catalog/queries/{file}", old, new):
        assert editable.stale() == REPORT


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("templates/report.html", "<body", "<body "),
        ("templates/graph.js", ";", ";;"),
        ("plots.py", "\nimport ", "\nEDITED = 1\nimport "),
    ],
)
def test_an_edited_part_of_the_report_reruns_only_the_report(editable, file: str, old: str, new: str) -> None:
    with edited(editable, f"report/{file}", old, new):
        assert editable.stale() == {"write_report"}


@pytest.mark.parametrize(
    ("file", "reruns", "keeps"),
    [
        (
            "dictionaries/training/objective.py",
            {"train_topk"},
            {"build_corpus", "pretrain_model", "cache_mlp_in"},
        ),
        (
            "evaluation/pareto.py",
            {"draw_pareto"},
            {"evaluate_topk", "train_topk", "match_concepts", "cache_mlp_in"},
        ),
        ("activations/cache.py", {"cache_mlp_in"}, {"build_corpus", "pretrain_model"}),
        ("language_model/pretraining.py", {"pretrain_model"}, {"build_corpus"}),
        ("config/evaluation.py", {"evaluate_topk"}, {"build_corpus", "cache_mlp_in", "train_topk"}),
        (
            "plan/costs.py",
            set(),
            {"build_corpus", "pretrain_model", "cache_mlp_in", "train_topk", "evaluate_topk"},
        ),
    ],
)
def test_an_edited_module_reruns_the_jobs_that_use_it(
    editable, file: str, reruns: set[str], keeps: set[str]
) -> None:
    with edited(editable, file, "\nfrom ", "\nEDITED = 1\nfrom "):
        stale = editable.stale()
    assert reruns <= stale
    assert not stale & keeps


def test_a_reworded_docstring_reruns_nothing(editable) -> None:
    with edited(editable, "dictionaries/training/objective.py", '"""', '"""Reworded. '):
        assert editable.stale() == set()
