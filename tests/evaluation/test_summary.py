import pyarrow as pa
import pytest

from circuitloom.config import Run
from circuitloom.core.tables import (
    CONCEPT_SCORE,
    FEATURE_CONCEPT,
    METRIC,
    PARETO,
    RUN,
    read_table,
    write_table,
)
from circuitloom.evaluation.pareto import draw_pareto, pareto_figure, pareto_table
from circuitloom.evaluation.summary import basis_rows, concatenate_tables, concept_scores, run_rows

RUNS = [
    Run(name="tc", width=64, k=8),
    Run(name="tc-wide", width=64, k=16),
    Run(name="sae", kind="sae", width=64, act="relu", sparsity=0.01),
    Run(name="mid", kind="sae", site="resid_mid", width=64, k=8),
]


@pytest.fixture
def runs() -> pa.Table:
    return pa.Table.from_pylist([*run_rows(RUNS), *basis_rows(16, 64)], schema=RUN.schema)


@pytest.fixture
def metrics() -> pa.Table:
    rows = [
        {"run": run.name, "layer": layer, "l0": 20.0 - place, "ce": 2 + place / 10, "ce_original": 1.9, "ce_zero": 4.0,
         "ce_mean": 3.0}
        for place, run in enumerate(RUNS)
        for layer in (-1, 0, 1, 2)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=METRIC.schema)


def test_concatenated_tables_keep_every_row_in_order(metrics, tmp_path):
    for number in range(3):
        write_table(METRIC, metrics.slice(number * 4, 4), tmp_path / f"{number}.parquet")
    concatenate_tables(
        METRIC, [tmp_path / f"{number}.parquet" for number in range(3)], tmp_path / "metric.parquet"
    )
    assert read_table(tmp_path / "metric.parquet") == metrics.slice(0, 12)


def test_concatenating_no_tables_gives_an_empty_table(tmp_path):
    concatenate_tables(METRIC, [], tmp_path / "metric.parquet")
    assert read_table(tmp_path / "metric.parquet").num_rows == 0


def test_the_best_layer_of_a_run_is_chosen_on_the_choosing_half():
    scores = {  # (run, concept) to the (f1_choosing, f1) of each layer
        ("tc", "date"): [(0.5, 0.9), (0.8, 0.6), (0.7, 0.95)],
        ("tc", "name"): [(0.4, 0.4), (0.3, None), (0.2, 0.1)],
        ("neurons", "date"): [(0.1, 0.1), (0.1, 0.3), (0.3, 0.2)],
    }
    features = [
        {"run": run, "layer": layer, "concept": concept, "rank": rank, "feature": 10 * layer + rank,
         "f1_choosing": layers[layer][0] - rank / 100, "f1": layers[layer][1]}
        for (run, concept), layers in scores.items()
        for layer in range(3)
        for rank in range(2)
    ]  # fmt: skip
    rows = concept_scores(pa.Table.from_pylist(features, schema=FEATURE_CONCEPT.schema)).to_pylist()
    assert len({(row["run"], row["layer"], row["concept"]) for row in rows}) == len(rows) == 12
    best = {(row["run"], row["concept"]): row for row in rows if row["layer"] == -1}
    found = {key: (row["found_layer"], row["feature"], row["f1"]) for key, row in best.items()}
    assert found == {
        ("tc", "date"): (1, 10, 0.6), ("tc", "name"): (0, 0, 0.4), ("neurons", "date"): (2, 20, 0.2),
    }  # fmt: skip


def test_a_study_without_concepts_has_an_empty_table_of_concept_scores():
    assert concept_scores(FEATURE_CONCEPT.schema.empty_table()).schema == CONCEPT_SCORE.schema


def test_a_run_has_k_or_sparsity_depending_on_its_activation_function(runs):
    by_name = {row["run"]: row for row in runs.to_pylist()}
    assert (by_name["tc"]["k"], by_name["tc"]["sparsity"]) == (8, None)
    assert (by_name["sae"]["k"], by_name["sae"]["sparsity"]) == (None, 0.01)
    assert (by_name["mid"]["site_in"], by_name["mid"]["site_out"]) == ("resid_mid", "resid_mid")
    assert (by_name["neurons"]["kind"], by_name["residual"]["width"]) == ("neuron", 16)
    assert Run.model_validate_json(by_name["tc"]["config"]) == RUNS[0]


def test_the_pareto_table_only_has_dictionaries_that_reconstruct_an_mlps_output(metrics, runs, tmp_path):
    table = pareto_table(metrics, runs)
    assert {row["run"] for row in table.to_pylist()} == {"tc", "tc-wide", "sae"}
    write_table(PARETO, table, tmp_path / "pareto.parquet")


def test_runs_of_mlp_added_are_series_with_baselines_of_their_own():
    made = [*RUNS, Run(name="added", site="mlp_added", width=64, k=8), Run(name="added-skip", site="mlp_added",
            width=64, k=8, skip=True), Run(name="sae-added", kind="sae", site="mlp_added", width=64)]  # fmt: skip
    runs = pa.Table.from_pylist([*run_rows(made)], schema=RUN.schema)
    rows = [
        {"run": run.name, "layer": 0, "l0": 9.0, "ce": 2 + place / 10, "ce_original": 1.9, "ce_zero": 4.0,
         "ce_mean": 2.5 if run.site == "mlp_added" else 3.0}
        for place, run in enumerate(made)
    ]  # fmt: skip
    table = pareto_table(pa.Table.from_pylist(rows, schema=METRIC.schema), runs).to_pylist()
    assert [(row["run"], row["site_out"]) for row in table] == [
        ("tc", "mlp_out"), ("tc-wide", "mlp_out"), ("added", "mlp_added"), ("added-skip", "mlp_added"),
        ("sae", "mlp_out"), ("sae-added", "mlp_added"),
    ]  # fmt: skip
    figure = pareto_figure(table)
    [panel] = figure.axes
    assert panel.get_title("right") == (
        "zero-ablated 4.000, mean-ablated 3.000\nzero-ablated 4.000, mean-ablated 2.500, mlp_added"
    )
    styles = {line.get_linestyle() for line in panel.lines[:-1]}
    assert styles == {"-", "--", "-."}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "transcoder, topk", "transcoder, topk, mlp_added", "transcoder, topk, skip, mlp_added",
        "SAE on MLP output, relu", "SAE on MLP output, topk, mlp_added", "original model",
    ]  # fmt: skip


def test_the_pareto_plot_has_a_panel_per_layer_with_the_original_model(metrics, runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_args, **_kwargs: figures.append(figure))
    draw_pareto(pareto_table(metrics, runs), tmp_path / "pareto.png")
    panels = figures[0].axes
    assert [panel.get_title("left") for panel in panels] == ["layer 0", "layer 1", "layer 2", "all layers"]
    assert panels[0].get_title("right") == "zero-ablated 4.000, mean-ablated 3.000"
    for panel in panels:
        lines = {tuple(line.get_ydata()) for line in panel.lines}
        # transcoders joined in order of L0, SAEs, the original model
        assert lines == {(2.1, 2.0), (2.2,), (1.9, 1.9)}
        assert panel.get_xscale() == "log"


def test_the_explorer_s_plot_has_the_same_series():
    from circuitloom.explorer import plots

    row = {"kind": "transcoder", "act": "topk", "run": "r", "l0": 8.0, "ce": 2.0, "ce_original": 1.9}
    rows = [row | {"site_out": site} for site in ("mlp_out", "mlp_added")]
    traces = plots.pareto(rows, "ce", "CE").figure["data"]
    assert [(trace["name"], trace["line"]["dash"]) for trace in traces] == [
        ("transcoder, topk", "solid"), ("transcoder, topk, mlp_added", "dash"), ("original model", "dash"),
    ]  # fmt: skip


def test_a_study_without_dictionaries_of_mlp_out_has_no_pareto_plot(metrics, runs, tmp_path):
    with pytest.raises(ValueError, match="no run reconstructs mlp_out or mlp_added; add"):
        draw_pareto(pareto_table(metrics, runs).slice(0, 0), tmp_path / "pareto.png")
