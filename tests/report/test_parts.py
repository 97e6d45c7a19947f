"""Parts of the page: formatted numbers and tokens, Markdown of case studies, plots as SVG."""

import math
import re

import pytest
from matplotlib.figure import Figure

from circuitloom.core.formatting import format_number, format_token, format_value
from circuitloom.report.plots import spread_evenly
from circuitloom.report.sections import inline_svg
from circuitloom.report.write import render_result


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (3.99963, "4.000"),
        (2.0, "2"),
        (131200.0, "131,200"),
        (1234.5, "1,234"),
        (3.6e-07, "3.600e-07"),
        (-0.0005, "-0.0005"),
        (math.nan, ""),
        (None, ""),
    ],
)
def test_numbers_have_four_significant_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_values_are_formatted_by_type() -> None:
    assert [format_value(value) for value in (None, True, 12345, ["a", "b\n"], "x\ty")] == [
        "",
        "yes",
        "12,345",
        "a, b↵",
        "x⇥y",
    ]


@pytest.mark.parametrize(
    ("token", "text"),
    [("", "∅"), (" ", "␣"), (" a b ", "␣a b␣"), ("\n", "↵"), ("\x00\u200b", "\\u0000\\u200b"), ("é", "é")],
)
def test_invisible_characters_of_tokens_are_shown(token: str, text: str) -> None:
    assert format_token(token) == text


def test_markdown_of_a_result_is_rendered_without_html_links_or_tables() -> None:
    text = "# case: title\n\nsome *words* <b>raw</b> [a](http://x.y)\n\n| a |\n|---|\n| 1 |\n\n![one](one.png) ![two](http://x.y/two.png)\n"
    title, page, seen = render_result(text, {"one.png": "data:one"})
    assert title == "case: title"
    assert "<em>words</em> &lt;b&gt;raw&lt;/b&gt; [a](http://x.y)" in page
    assert "<table>" not in page
    assert '<img alt="one" src="data:one"> two' in page
    assert "one.png" in seen


def draw(n: int) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.plot(range(n), marker="o", label="<a&b>")
    axes.set_title("$x < y$")
    axes.legend()
    return figure


def test_ids_of_plots_are_distinct_and_references_resolve() -> None:
    plots = [inline_svg(draw(3), name, "the same drawing") for name in ("one:a", "two:a")]
    ids = [set(re.findall(r' id="([^"]+)"', plot)) for plot in plots]
    assert ids[0] and not ids[0] & ids[1]
    for plot, own in zip(plots, ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", plot)) | set(re.findall(r'href="#([^"]+)"', plot)) == own


def test_a_plot_is_deterministic_and_its_text_is_text() -> None:
    plot = inline_svg(draw(3), "plot", 'says "this"')
    assert plot == inline_svg(draw(3), "plot", 'says "this"')
    assert "&lt;a&amp;b&gt;</text>" in plot
    assert 'aria-label="says &quot;this&quot;"' in plot
    assert plot.startswith("<svg ")


@pytest.mark.parametrize(
    ("layers", "n", "chosen"), [([3], 4, [3]), (list(range(24)), 4, [0, 8, 15, 23]), ([], 4, [])]
)
def test_layers_are_chosen_evenly_including_both_ends(layers: list[int], n: int, chosen: list[int]) -> None:
    assert spread_evenly(layers, n) == chosen
