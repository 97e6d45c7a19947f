"""What reruns after a change: what depends on it, and nothing else."""

import pytest

EVALUATION = {
    "ablate_site", "evaluate_topk", "evaluate_topk_together", "gather_evaluation", "draw_pareto",
}  # fmt: skip
REPORT = {"build_catalog", "write_report"}
"""What follows from a change of any table."""
CONCEPTS = {"compare_bases", "match_topk"} | REPORT
FEATURES = {"tabulate_features", "tabulate_neurons"} | REPORT
TRAINING = {"train_topk"}
CIRCUITS = {"trace_prompt", "view_weights", "ablate_components_plural"}
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


def test_a_changed_key_reruns_its_stage_and_what_follows(finished) -> None:
    stale = finished.stale("--config", "training={learning_rate: 5e-3}")
    assert stale >= CIRCUITS | CASES
    assert TRAINING <= stale <= TRAINING | EVALUATION | CONCEPTS | CIRCUITS | CASES | {"tabulate_features"}


def test_a_key_of_the_evaluation_leaves_training_alone(finished) -> None:
    stale = finished.stale("--config", "evaluation={tokens: 4000}")
    assert "evaluate_topk" in stale
    assert stale <= EVALUATION | CONCEPTS | {"study_feature", "study_planted"}


def test_a_key_of_the_activations_leaves_corpus_and_model_alone(finished) -> None:
    stale = finished.stale("--config", "activations={dtype: int8}")
    assert {"cache_mlp_in", "train_topk"} <= stale
    assert not stale & {"build_corpus", "pretrain_model", "measure_model"}


def test_another_site_leaves_the_others_alone(finished) -> None:
    stale = finished.stale("--config", "activations={sites: [mlp_in, resid_mid]}")
    # the report shows the config
    assert stale == {"cache_resid_mid", "write_report"}


def test_a_layer_fewer_neither_caches_nor_trains(finished) -> None:
    stale = finished.stale("--config", "activations={layers: [0]}")
    assert "gather_evaluation" in stale
    assert not stale & {"index_rows", "cache_mlp_in", "train_topk"}


def test_another_sweep_trains_only_itself(finished) -> None:
    stale = finished.stale("--config", "dictionaries={wider: {width: 256}}")
    assert {"train_wider", "evaluate_wider", "gather_evaluation"} <= stale
    assert not stale & {"train_topk", "evaluate_topk", "match_topk", "cache_mlp_in", "compare_bases"}


def test_another_run_has_only_its_own_tables_made(finished) -> None:
    run = finished.snakemake("--summary", "--config", "dictionaries={wider: {width: 256}}")
    files = [line for line in run.stdout.splitlines() if line.startswith("results/tiny/features/")]
    made = {line.split("/")[3] for line in files if line.endswith("update pending")}
    kept = {line.split("/")[3] for line in files if line.endswith("no update")}
    assert made == {"tc-topk8-256"}
    assert kept == {"tc-topk8-128", "sae-topk8-128", "neurons"}


def test_a_key_of_the_features_makes_their_tables_anew_and_nothing_else(finished) -> None:
    assert finished.stale("--config", "features={examples: 3}") == FEATURES
    assert finished.stale("--config", "features={neurons: 8}") == {"tabulate_neurons"} | REPORT


def test_a_key_of_tracing_traces_prompts_anew_and_nothing_else(finished) -> None:
    assert finished.stale("--config", "circuits={width: 5}") == {"trace_prompt"} | REPORT


def test_a_key_of_a_case_studies_it_anew_and_nothing_else(finished) -> None:
    assert finished.stale("--config", "cases={caught: {traced: 3}}") == {"study_feature"} | REPORT


def test_an_edited_macro_makes_only_the_catalogue_and_what_is_made_of_it_anew(finished) -> None:
    path = finished.folder / "lib" / "circuitloom" / "catalog" / "macros" / "coactivation.sql"
    source = path.read_text()
    try:
        path.write_text(source.replace("ORDER BY overlap", "ORDER BY lift"))
        assert finished.stale() == REPORT
    finally:
        path.write_text(source)


@pytest.mark.parametrize(
    "file", ["queries/metric.sql", "templates/report.html", "templates/graph.js", "plots.py"]
)
def test_an_edited_part_of_the_report_writes_only_the_report_anew(finished, file: str) -> None:
    path = finished.folder / "lib" / "circuitloom" / "report" / file
    source = path.read_text()
    try:
        path.write_text(source + ("\nEDITED = 1\n" if file.endswith(".py") else "\n\n"))
        assert finished.stale() == {"write_report"}
    finally:
        path.write_text(source)


@pytest.mark.parametrize(
    ("file", "reruns", "spares"),
    [
        ("dictionaries/objective.py", {"train_topk"}, {"build_corpus", "pretrain_model", "cache_mlp_in"}),
        (
            "evaluation/pareto.py",
            {"draw_pareto"},
            {"evaluate_topk", "train_topk", "match_topk", "cache_mlp_in"},
        ),
        ("activations/recorder.py", {"cache_mlp_in"}, {"build_corpus", "pretrain_model"}),
        ("language_model/pretrain.py", {"pretrain_model"}, {"build_corpus"}),
        ("config/evaluation.py", {"evaluate_topk"}, {"build_corpus", "cache_mlp_in", "train_topk"}),
        (
            "plan/costs.py",
            set(),
            {"build_corpus", "pretrain_model", "cache_mlp_in", "train_topk", "evaluate_topk"},
        ),
    ],
)
def test_an_edited_module_reruns_what_uses_it(
    finished, file: str, reruns: set[str], spares: set[str]
) -> None:
    path = finished.folder / "lib" / "circuitloom" / file
    source = path.read_text()
    try:
        path.write_text(source + "\n_EDITED = 1\n")
        stale = finished.stale()
    finally:
        path.write_text(source)
    assert reruns <= stale
    assert not stale & spares


def test_a_reworded_docstring_reruns_nothing(finished) -> None:
    path = finished.folder / "lib" / "circuitloom" / "dictionaries" / "objective.py"
    source = path.read_text()
    try:
        path.write_text(
            source.replace('"""What training minimises', '"""Said otherwise: what training minimises', 1)
        )
        assert path.read_text() != source
        assert finished.stale() == set()
    finally:
        path.write_text(source)
