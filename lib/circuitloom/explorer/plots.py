"""Draws the plots of the explorer with plotly, in the colours of the report."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from dash import dcc

from ..catalog.client import Row
from ..core.plotting import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from ..evaluation.pareto import series_suffix

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)
KIND_COLOURS = {"transcoder": BLUE, "sae": VERMILION, "clt": GREEN}
_TICKS = [digit * 10.0**power for power in range(-6, 10) for digit in (1, 2, 5)]
LOGARITHMIC = {"type": "log", "tickvals": _TICKS, "ticktext": [f"{tick:g}" for tick in _TICKS]}
"""Plotly settings of a logarithmic axis with ticks at 1, 2, 5, 10 and so on."""
SYMBOLS = {"topk": "circle", "batchtopk": "square", "relu": "triangle-up", "jumprelu": "diamond"}
DASHES = {
    ("mlp_out", False): "solid", ("mlp_out", True): "dot", ("mlp_added", False): "dash", ("mlp_added", True): "dashdot",
}  # fmt: skip
"""Line style by (reconstructed site, whether the run has a skip connection)."""

EFFECTS = 2000
"""Maximum number of edges in a plot of effects."""


def escape_markup(text: str) -> str:
    """Escapes the characters of `text` that plotly reads as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def plot(
    traces: Sequence[dict[str, Any]], x: str, y: str, id: Any = None, height: int = 320, **layout: Any
) -> dcc.Graph:
    """Returns a plot of plotly `traces`. `x` and `y` are axis titles. `layout` overrides default settings."""
    axis = {
        "linecolor": "#888",
        "gridcolor": "#e6e6e6",
        "zeroline": False,
        "ticks": "outside",
        "automargin": True,
    }
    figure = {
        "data": list(traces),
        "layout": {
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
            "margin": {"l": 60, "r": 12, "t": 12, "b": 46},
            "height": height,
            "colorway": list(COLOURS),
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "legend": {"orientation": "h", "y": 1.12, "x": 0},
            "hovermode": "closest",
            **layout,
            "xaxis": {**axis, "title": {"text": x}, **layout.get("xaxis", {})},
            "yaxis": {**axis, "title": {"text": y}, **layout.get("yaxis", {})},
        },
    }
    identity = {} if id is None else {"id": id}
    return dcc.Graph(figure=figure, config={"displaylogo": False, "displayModeBar": False}, **identity)


def pareto(rows: Sequence[Row], measure: str, label: str) -> dcc.Graph:
    """Plots the column `measure` of `rows` against L0, with one line per kind, site and activation function."""
    traces = []
    for (kind, site, act), group in groupby(rows, key=lambda row: (row["kind"], row["site_out"], row["act"])):
        points = list(group)
        base, _, skip = act.partition(", ")
        colour = KIND_COLOURS.get(kind, GREEN)
        traces.append(
            {
                "x": [row["l0"] for row in points],
                "y": [row[measure] for row in points],
                "customdata": [row["run"] for row in points],
                "text": [escape_markup(row["run"]) for row in points],
                "hovertemplate": "%{text}<br>L0 %{x:.3g}, %{y:.4g}<extra></extra>",
                "mode": "lines+markers",
                "name": f"{kind}, {act}{series_suffix(site)}",
                "line": {"color": colour, "width": 1.5, "dash": DASHES[site, bool(skip)]},
                "marker": {
                    "symbol": SYMBOLS.get(base, "circle"), "size": 10, "line": {"color": colour, "width": 2},
                    "color": "white" if skip else colour,
                },
            }
        )  # fmt: skip
    if measure == "ce" and rows:
        ends, level = [f(row["l0"] for row in rows) for f in (min, max)], rows[0]["ce_original"]
        line = {"color": "#222", "dash": "dash", "width": 1}
        traces.append(
            {"x": [0.8 * ends[0], 1.25 * ends[1]], "y": [level, level], "mode": "lines", "line": line,
             "name": "original model", "hoverinfo": "skip"}
        )  # fmt: skip
    return plot(traces, "L0 (active features per token)", label, "pareto", 420, xaxis=LOGARITHMIC)


def histogram(rows: Sequence[Row]) -> dcc.Graph:
    """Plots a histogram of the nonzero activations of a feature."""
    trace = {
        "type": "bar",
        "x": [(row["low"] + row["high"]) / 2 for row in rows],
        "width": [row["high"] - row["low"] for row in rows],
        "y": [row["n_tokens"] for row in rows],
        "marker": {"color": BLUE, "line": {"color": "white", "width": 1}},
        "hovertemplate": "around %{x:.3g}: %{y} tokens<extra></extra>",
    }
    return plot([trace], "activation", "tokens", height=220, yaxis=LOGARITHMIC, bargap=0)


def curves(rows: Sequence[Row], measure: str, label: str) -> dcc.Graph:
    """Plots the column `measure` of table `history` against training steps, with one line per layer."""
    traces = []
    for layer, group in groupby(rows, key=lambda row: row["layer"]):
        points = list(group)
        traces.append(
            {
                "x": [row["step"] for row in points],
                "y": [row[measure] for row in points],
                "mode": "lines",
                "name": f"layer {layer}",
                "line": {"width": 1.5},
            }
        )
    return plot(traces, "training steps", label, height=260, yaxis=LOGARITHMIC)


def densities(rows: Sequence[Row]) -> dcc.Graph:
    """Plots a histogram of feature densities, with one line per layer. Dead features are not shown."""
    traces = []
    for layer, group in groupby(rows, key=lambda row: row["layer"]):
        bins = [row for row in group if row["low"] is not None and row["low"] > float("-inf")]
        traces.append(
            {
                "x": [(row["low"] + row["high"]) / 2 for row in bins],
                "y": [row["n_features"] for row in bins],
                "mode": "lines",
                "line": {"shape": "hvh", "width": 1.5},
                "name": f"layer {layer}",
            }
        )
    return plot(traces, "density (log10 of the fraction of tokens)", "features", height=260)


def effects(rows: Sequence[Row]) -> dcc.Graph:
    """Plots the measured effect of each edge against the predicted effect, for the first `EFFECTS` edges.

    Each edge has two points: its frozen effect and its free effect.
    """
    measured = [row for row in rows if row["effect_frozen"] is not None]
    rows = measured[:EFFECTS]
    traces = [
        {
            "type": "scatter",
            "x": [row["effect"] for row in rows if row[column] is not None],
            "y": [row[column] for row in rows if row[column] is not None],
            "mode": "markers",
            "name": name,
            "marker": {"color": colour, "size": 5, "symbol": symbol, "opacity": 0.6},
            "hovertemplate": "predicted %{x:.3g}, measured %{y:.3g}<extra></extra>",
        }
        for column, name, colour, symbol in (
            ("effect_free", "free", VERMILION, "circle-open"),
            ("effect_frozen", "frozen", BLUE, "circle"),
        )
    ]
    if ends := [row["effect"] for row in rows]:
        line = {"x": [min(ends), max(ends)], "y": [min(ends), max(ends)], "mode": "lines", "showlegend": False,
                "line": {"color": "#888", "width": 1, "dash": "dash"}, "hoverinfo": "skip"}  # fmt: skip
        traces.insert(0, line)
    largest = f" ({EFFECTS:,} largest of {len(measured):,})" if len(measured) > EFFECTS else ""
    return plot(traces, f"predicted effect{largest}", "measured effect", height=340)
