"""All figures share one style."""

import ast
import io
import warnings
from pathlib import Path

import pytest

import circuitloom
from circuitloom.core.plotting import STYLE, escape_mathtext, styled
from circuitloom.evaluation.pareto import pareto_figure

ROOT = Path(circuitloom.__file__).parent


def test_every_function_that_creates_a_figure_is_styled() -> None:
    found = 0
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(call, ast.Call) and ast.unparse(call.func) == "Figure" for call in ast.walk(node)
            ):
                found += 1
                assert "styled" in [ast.unparse(each) for each in node.decorator_list], (file, node.name)
    assert found > 12


def test_a_styled_figure_has_no_top_and_right_spines_and_a_grid() -> None:
    row = {
        "layer": 0,
        "kind": "transcoder",
        "site_out": "mlp_out",
        "act": "topk",
        "l0": 8.0,
        "ce": 2.0,
        "ce_original": 1.9,
        "ce_zero": 3.0,
        "ce_mean": 2.5,
    }
    (axes,) = pareto_figure([row]).axes
    assert not axes.spines["top"].get_visible()
    assert not axes.spines["right"].get_visible()
    assert all(line.get_visible() for line in axes.get_xgridlines())
    assert axes.xaxis.label.get_size() == STYLE["font.size"]


def test_the_style_is_restored_after_drawing() -> None:
    from matplotlib import rcParams

    before = rcParams["axes.grid"]
    assert styled(lambda: rcParams["axes.grid"])() is True
    assert rcParams["axes.grid"] == before


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("中 by", "⟨U+4E2D⟩ by"),
        ("\U0001f9ff_x_", "⟨U+1F9FF⟩_x_"),
        ("⟨E4⟩", "⟨E4⟩"),
        ("\u200b", r"\u200b"),
        ("\u0301", "◌\u0301"),
        ("é$Σ", r"é\$Σ"),
    ],
)
def test_letters_that_the_font_lacks_are_named_and_drawn_without_a_warning(text: str, drawn: str) -> None:
    from matplotlib.figure import Figure

    assert escape_mathtext(text) == drawn
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, escape_mathtext(text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())


def test_text_in_figures_starts_no_formula_and_breaks_no_line() -> None:
    assert escape_mathtext("a$b\n") == r"a\$b\n"
