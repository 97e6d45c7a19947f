"""The results of a complete run of the tiny study."""

import os

import pyarrow.parquet as pq
import pytest

from circuitloom.core.tables import TABLES, read_table

STAGES = (
    "corpus",
    "language_model",
    "activations",
    "dictionaries",
    "evaluation",
    "features",
    "circuits",
    "cases",
)
TABLE_OF = {table.name: table for table in TABLES}


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_the_finished_study_runs_in_one_process(request, finished) -> None:
    """Without xdist's groups, each process runs the study and tests take twice as long."""
    assert request.node.nodeid.endswith("@finished")


def test_nothing_is_written_outside_results(finished) -> None:
    made = {path.name for path in finished.folder.iterdir()}
    assert made - {"lib", "workflow", "scripts", "config"} <= {"results", ".snakemake"}


def test_every_table_has_its_schema_and_rows(finished) -> None:
    files = sorted(finished.results.rglob("*.parquet"))
    # feature_effect needs SAEs of resid_mid, and two others a comparison of dictionaries, which tiny does not have;
    # dictionary_benchmark is written by a command
    assert {file.stem for file in files} == set(TABLE_OF) - {
        "dictionary_benchmark",
        "feature_effect",
        "compared_run",
        "compared_prompt",
    }
    # generated text has nothing to leave out; of a model that was hardly trained, no few features keep the target, and
    # labels of some layers name no next token
    maybe_empty = {"notice", "subgraph_node", "label_output"}
    # the behaviour has one prompt, which leaves none to test on
    of_templates = {"aggregate_node", "aggregate_edge", "outcome"}
    for file in files:
        table = read_table(file)
        assert table.schema.equals(TABLE_OF[file.stem].schema), file
        # features of layer 0 have no earlier features to be connected with
        first_layer = file.parts[-2:] == ("layer0", "connection.parquet")
        one_half = file.parts[-3] == "circuits" and file.stem in of_templates
        assert table.num_rows > 0 or first_layer or one_half or file.stem in maybe_empty, file


def test_every_run_is_scored_at_each_layer_and_at_all_layers_at_once(finished) -> None:
    metric = pq.read_table(finished.results / "evaluation" / "metric.parquet").to_pylist()
    keys = {(row["run"], row["layer"]) for row in metric}
    assert keys == {(run, layer) for run in ("tc-topk8-128", "sae-topk8-128") for layer in (-1, 0, 1)}
    for row in metric:
        assert row["ce_original"] <= row["ce"] < max(row["ce_zero"], row["ce_mean"])
        assert 0 < row["fvu"] < 1
        assert row["l0"] == pytest.approx(8, abs=0.5)


def test_no_unfinished_work_remains(finished) -> None:
    assert list(finished.results.rglob("*.partial")) == []
    assert list(finished.results.rglob("*.new")) == []


def test_all_pictures_are_png_files(finished) -> None:
    pictures = ["evaluation/pareto.png", "language_model/pretraining.png", "circuits/war/graph.png"]
    pictures += [str(file.relative_to(finished.results)) for file in finished.results.glob("cases/*/*.png")]
    assert len(pictures) == 3 + 2 + 4 + 4 + 2
    for picture in pictures:
        assert (finished.results / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_each_case_study_has_claims_and_a_result_that_names_the_failing_ones(finished) -> None:
    for case in ("caught", "spans", "century", "planted"):
        claims = read_table(finished.results / "cases" / case / "claim.parquet").to_pylist()
        page = (finished.results / "cases" / case / "result.md").read_text()
        failing = sum(not claim["holds"] for claim in claims)
        assert f"{len(claims) - failing} of {len(claims)} claims hold; these fail: " in page
        assert page.count("| **no** |") == failing > 0


def test_a_second_workflow_on_the_same_results_is_refused(finished) -> None:
    from filelock import FileLock

    with FileLock(finished.results / ".lock"):
        run = finished.snakemake("draw_pareto", "--force")
    assert run.returncode != 0
    assert "another run is using results/tiny; wait for it" in run.stdout
    assert (finished.results / "evaluation" / "pareto.png").is_file()


def test_the_plan_is_printed_without_running_the_study(fresh) -> None:
    run = fresh.snakemake("plan")
    assert run.returncode == 0, run.stdout
    lines = [line.split() for line in run.stdout.splitlines()]
    stages = [line[0] for line in lines if line and line[0] in STAGES]
    assert stages == list(STAGES)
    assert " measured; " in run.stdout
    assert not (fresh.results / "corpus").exists()


def test_the_report_shows_every_run_prompt_and_case_study(finished) -> None:
    from tests.report.page import read_page

    file = finished.results / "report.html"
    assert file.stat().st_size < 10_000_000
    page = read_page(file.read_text())
    claims = {name.partition(":")[2] for name in page.rows if name.startswith("claims_of_case:")}
    assert claims == {"caught", "spans", "century", "planted"}
    graphs = {name.partition(":")[2] for name in page.rows if name.startswith("graph_nodes:")}
    assert graphs == {"war", "caught"}
    runs = {row["run"] for row in page.rows["metrics"]}
    assert runs == {"tc-topk8-128", "sae-topk8-128"}
    # the pictures of all case studies, and the times of all rules
    assert page.pictures == len(list(finished.results.glob("cases/*/*.png")))
    for rule in ("train_topk", "trace_tc_topk8_128", "study_planted", "build_catalog"):
        assert rule in page.text


def test_the_sql_shown_in_the_report_gives_the_rows_shown(finished) -> None:
    import json

    from tests.report.page import read_page

    from circuitloom.catalog.output import rows_of
    from circuitloom.catalog.sandbox import open_sandbox, run_statement

    page = read_page((finished.results / "report.html").read_text())
    catalogue = open_sandbox(finished.results)
    for name, sql in page.sql.items():
        result = run_statement(catalogue, sql)
        columns = result.schema.names
        rows = [dict(zip(columns, row, strict=True)) for row in rows_of(result)]
        assert json.loads(json.dumps(rows)) == page.rows[name], name


def test_the_catalogue_has_the_features_and_metrics_of_every_run_and_layer(finished) -> None:
    from circuitloom import open_catalog

    catalog = open_catalog(finished.results)
    found = catalog.sql("SELECT run, layer, count(*) FROM feature GROUP BY ALL ORDER BY ALL").fetchall()
    runs = {"neurons": 128, "sae-topk8-128": 128, "tc-topk8-128": 128}
    assert found == [(run, layer, width) for run, width in runs.items() for layer in (0, 1)]
    l0 = dict(catalog.sql("SELECT (run, layer), l0 FROM metric WHERE layer >= 0").fetchall())
    density = "SELECT (run, layer), sum(density) FROM feature WHERE run <> 'neurons' GROUP BY ALL"
    assert dict(catalog.sql(density).fetchall()) == pytest.approx(l0)
    assert catalog.sql("FROM features_on('year')").fetchall()
