"""Lines, points and cells of plots have the values of their rows."""

import numpy as np
import pytest

from circuitloom.report.plots import (
    draw_concepts,
    draw_densities,
    draw_effects,
    draw_faithfulness,
    draw_pretraining,
    draw_training,
    lines_of,
)

RUNS = [
    {"run": run, "kind": kind, "act": "topk", "site_in": site, "site_out": "mlp_out", "skip": False}
    for run, kind, site in (
        ("tc-a", "transcoder", "mlp_in"),
        ("tc-b", "transcoder", "mlp_in"),
        ("sae", "sae", "mlp_out"),
    )
]


def drawn(axes) -> dict[str, list[tuple]]:
    """Label of each line to its points."""
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_runs_of_one_kind_share_a_colour_but_not_a_line_style() -> None:
    lines = lines_of(RUNS)
    assert lines["tc-a"].colour == lines["tc-b"].colour != lines["sae"].colour
    assert lines["tc-a"].style != lines["tc-b"].style


def test_a_series_names_the_site_unless_it_is_mlp_out() -> None:
    runs = [
        {"run": f"{site_in} {site_out}", "kind": "sae" if site_in == site_out else "transcoder", "act": "topk",
         "site_in": site_in, "site_out": site_out, "skip": False}
        for site_in, site_out in (("mlp_in", "mlp_out"), ("mlp_in", "mlp_added"), ("mlp_out", "mlp_out"),
                                  ("mlp_added", "mlp_added"), ("resid_mid", "resid_mid"))
    ]  # fmt: skip
    assert [line.series for line in lines_of(runs).values()] == [
        "transcoder, topk", "transcoder, topk to mlp_added", "sae, topk", "sae, topk on mlp_added",
        "sae, topk on resid_mid",
    ]  # fmt: skip


def test_pretraining_shows_the_loss_over_millions_of_tokens_and_the_entropy() -> None:
    rows = [{"tokens": 2_000_000, "loss": 5.0}, {"tokens": 4_000_000, "loss": 3.0}]
    (axes,) = draw_pretraining(rows, {"grammar_entropy": 1.25}).axes
    lines = drawn(axes)
    assert lines["training"] == [(2, 5), (4, 3)]
    (entropy,) = (
        points for name, points in lines.items() if name.startswith("entropy of the grammar: 1.250")
    )
    assert {y for _, y in entropy} == {1.25}
    assert len(lines) == 2


def test_training_shows_each_measure_of_each_run_in_the_column_of_its_layer() -> None:
    rows = [
        {"run": run, "layer": layer, "step": step, "loss": 10 * layer + step, "fvu": 0.5 / step, "dead": None}
        for run in ("tc-a", "sae") for layer in (0, 3) for step in (1, 2)
    ]  # fmt: skip
    figure = draw_training(rows, lines_of(RUNS))
    loss0, loss3, fvu0 = (drawn(axes) for axes in figure.axes[:3])
    assert set(loss0) == {"tc-a", "sae"}
    assert loss0["sae"] == [(1, 1), (2, 2)] and loss3["sae"] == [(1, 31), (2, 32)]
    assert fvu0["tc-a"] == [(1, 0.5), (2, 0.25)]
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["layer 0", "layer 3"]


def test_densities_show_the_middle_of_each_bin_without_the_dead_features() -> None:
    rows = [
        {"run": run, "layer": 1, "bin": i, "low": i - 5.0 if i else None, "high": i - 4.0 if i else None,
         "n_features": n + i}
        for run, n in (("tc-b", 3), ("sae", 7)) for i in range(3)
    ]  # fmt: skip
    transcoders, saes = draw_densities(rows, lines_of(RUNS)).axes
    assert drawn(transcoders) == {"tc-b": [(-3.5, 4), (-2.5, 5)]}
    assert drawn(saes) == {"sae": [(-3.5, 8), (-2.5, 9)]}


def test_concepts_show_the_f1_of_each_run_best_concept_first_and_leave_unscored_cells_empty() -> None:
    scores = {("a", "fire"): 0.5, ("b", "fire"): 0.75, ("a", "food"): 0.875, ("b", "food"): None}
    axes = draw_concepts([{"run": r, "concept": c, "f1": f1} for (r, c), f1 in scores.items()]).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["food", "fire"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), [[0.875, np.nan], [0.5, 0.75]])
    assert {(*text.get_position(), text.get_text()) for text in axes.texts} == {
        (0, 0, "0.88"), (0, 1, "0.50"), (1, 1, "0.75"),
    }  # fmt: skip


def test_effects_show_predicted_against_measured_effects_frozen_left_and_free_right() -> None:
    rows = [
        {"effect": 1.0, "effect_frozen": 1.5, "effect_free": -2.0},
        {"effect": -3.0, "effect_frozen": -3.0, "effect_free": None},
    ]
    frozen, free = draw_effects(rows).axes
    assert frozen.collections[0].get_offsets().tolist() == [[1.0, 1.5], [-3.0, -3.0]]
    assert free.collections[0].get_offsets().tolist() == [[1.0, -2.0]]
    assert drawn(frozen)["equal"] == [(-3, -3), (1, 1)]
    assert "frozen" in frozen.get_title("left") and "nothing" in free.get_title("left")


def test_faithfulness_shows_a_line_per_basis_in_the_panel_of_its_ablation() -> None:
    rows = [
        {"basis": basis, "ablation": ablation, "ranking": "effect", "n_kept": k,
         "faithfulness": None if k == 4 else share * k}
        for basis, ablation, share in (("tc", "zero", 0.25), ("heads", "zero", 0.5), ("tc", "mean", 0.125))
        for k in (0, 1, 2, 4)
    ]  # fmt: skip
    zero, mean = draw_faithfulness(rows).axes
    assert drawn(zero)["tc"] == [(0, 0), (1, 0.25), (2, 0.5)]
    assert drawn(zero)["heads"] == [(0, 0), (1, 0.5), (2, 1)]
    assert drawn(mean)["tc"] == [(0, 0), (1, 0.125), (2, 0.25)]
    assert "set to mean" in mean.get_title("left")
    assert zero.get_ylim() == pytest.approx((-0.5, 1.5))
