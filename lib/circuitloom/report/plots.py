"""Draws the plots of the report. Each plot shows the rows of one query."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..catalog.client import Row
from ..core.plotting import BLUE, SERIES, VERMILION, escape_mathtext, styled

FAITHFULNESS_LIMITS = (-0.5, 1.5)
"""Limits of the y axis of the faithfulness plot."""
MAX_CONCEPTS = 40
"""Maximum number of concepts per panel."""
PANEL = 2.5
"""Width of a small panel in inches."""
_LINES = ("-", "--", ":", "-.")
_POINTS = ("", "o", "s", "^")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MEASURES = {
    "loss": "loss (minimised)",
    "fvu": "FVU (share of variance)",
    "dead": "dead features (share)",
}


@dataclass(frozen=True)
class Line:
    """Style of the line that shows a run."""

    colour: str
    style: str
    marker: str
    """Matplotlib marker, or an empty string for no marker."""
    series: str
    """Kind of dictionary, for axis labels. Runs of one series have the same colour."""


def lines_of(runs: Iterable[Row]) -> dict[str, Line]:
    """Returns the line style of each run. `runs` are the rows of the query `runs`."""
    members: dict[str, list[str]] = {}
    for row in runs:
        site = row["site_out"]
        reads = "" if site == "mlp_out" else f" {'on' if row['site_in'] == site else 'to'} {site}"
        reads += " from resid_mid" if row["site_in"] == "resid_mid" != site else ""
        skip = ", skip" if row["skip"] else ""
        members.setdefault(f"{row['kind']}, {row['act']}{skip}{reads}", []).append(row["run"])
    return {
        run: Line(
            SERIES[i % len(SERIES)], _LINES[j % len(_LINES)], _POINTS[j // len(_LINES) % len(_POINTS)], series
        )
        for i, (series, own) in enumerate(members.items())
        for j, run in enumerate(own)
    }


def spread_evenly(layers: Sequence[int], n: int) -> list[int]:
    """Returns at most `n` of `layers`, evenly spaced. The first and the last layer are included."""
    if len(layers) <= n:
        return list(layers)
    places = {round(i * (len(layers) - 1) / (n - 1)) for i in range(n)}
    return [layers[place] for place in sorted(places)]


@styled
def draw_pretraining(rows: Sequence[Row], figures: Mapping[str, float]) -> Figure:
    """Plots the loss of the language model against the number of training tokens.

    `figures` contains values of table `language_model`. Held-out loss and grammar entropy become horizontal lines.
    """
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [row["tokens"] / 1e6 for row in rows], [row["loss"] for row in rows], color=BLUE, label="training"
    )
    for name, label, colour, style in (
        ("cross_entropy_every", "held-out text, packed", VERMILION, ":"),
        ("grammar_entropy", "entropy of the grammar", "black", "--"),
    ):
        if name in figures:
            axes.axhline(figures[name], color=colour, linestyle=style, label=f"{label}: {figures[name]:.3f}")
    axes.set(xlabel="tokens trained on (millions)", ylabel="cross-entropy (nats per token)")
    axes.set_xlim(left=0)
    axes.legend()
    return figure


@styled
def draw_training(rows: Sequence[Row], lines: Mapping[str, Line]) -> Figure:
    """Plots loss, FVU and the share of dead features against training steps. Each layer has one column of panels."""
    layers = sorted({row["layer"] for row in rows})
    figure = Figure(figsize=_size(len(layers), len(_MEASURES), len(lines)), layout="constrained")
    panels = figure.subplots(len(_MEASURES), len(layers), squeeze=False, sharex=True, sharey="row")
    for (measure, name), across in zip(_MEASURES.items(), panels, strict=True):
        for panel, layer in zip(across, layers, strict=True):
            for run, own in _by_run(row for row in rows if row["layer"] == layer):
                values = [np.nan if row[measure] is None else row[measure] for row in own]
                panel.plot([row["step"] for row in own], values, **_line_style(lines[run]), label=run)
            if measure == "dead":
                panel.set_ylim(-0.03, 1.03)
            else:
                panel.set_yscale("log")
        across[0].set_ylabel(name)
    for panel, layer in zip(panels[0], layers, strict=True):
        panel.set_title(f"layer {layer}", loc="left")
    figure.supxlabel("optimizer steps")
    _legend(figure, panels.flat)
    return figure


@styled
def draw_densities(rows: Sequence[Row], lines: Mapping[str, Line]) -> Figure:
    """Plots the number of features against density, in panels by kind of dictionary (row) and layer (column)."""
    layers = sorted({row["layer"] for row in rows})
    kinds = list(
        dict.fromkeys(line.series for run, line in lines.items() if any(r["run"] == run for r in rows))
    )
    figure = Figure(figsize=_size(len(layers), len(kinds), len(lines)), layout="constrained")
    panels = figure.subplots(len(kinds), len(layers), squeeze=False, sharex=True, sharey=True)
    for kind, across in zip(kinds, panels, strict=True):
        for panel, layer in zip(across, layers, strict=True):
            own_layer = [row for row in rows if row["layer"] == layer and lines[row["run"]].series == kind]
            for run, own in _by_run(own_layer):
                # features that never fire have density 0, so their bin has no place on the log axis
                bins = [row for row in own if row["low"] is not None]
                middle = [(row["low"] + row["high"]) / 2 for row in bins]
                panel.plot(
                    middle,
                    [row["n_features"] for row in bins],
                    **_line_style(lines[run]),
                    label=run,
                    drawstyle="steps-mid",
                )
        across[0].set_ylabel(f"features\n({kind})")
    for panel, layer in zip(panels[0], layers, strict=True):
        panel.set_title(f"layer {layer}", loc="left")
    figure.supxlabel("density: share of tokens on which a feature fires (log10)")
    _legend(figure, panels.flat)
    return figure


@styled
def draw_concepts(rows: Sequence[Row]) -> Figure:
    """Draws a heatmap of the best F1 of each concept (row) and run (column)."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    best: dict[str, float] = {}
    for row in rows:
        best[row["concept"]] = max(best.get(row["concept"], 0.0), row["f1"] or 0.0)
    concepts = sorted(best, key=lambda concept: (-best[concept], concept))
    columns = ceil(len(concepts) / MAX_CONCEPTS)
    n_rows = ceil(len(concepts) / columns)
    size = (columns * (1.5 + 0.36 * len(runs)) + 0.8, 1.5 + 0.17 * n_rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    images = [
        _draw_cells(panel, rows, concepts[i * n_rows : (i + 1) * n_rows], runs)
        for i, panel in enumerate(panels)
    ]
    panels[0].set_ylabel("planted concept")
    figure.supxlabel("run")
    figure.colorbar(images[0], ax=panels, label="F1 (0 to 1)", shrink=0.6, pad=0.01)
    return figure


def _draw_cells(axes: Any, rows: Sequence[Row], concepts: Sequence[str], runs: Sequence[str]) -> Any:
    """Draws one panel of `draw_concepts` and returns its image. Cells without a score stay white."""
    values = np.full((len(concepts), len(runs)), np.nan)
    for row in rows:
        if row["concept"] in concepts and row["f1"] is not None:
            values[concepts.index(row["concept"]), runs.index(row["run"])] = row["f1"]
    axes.grid(False)
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < 0.55 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=6)
    axes.set_xticks(
        range(len(runs)),
        [escape_mathtext(run) for run in runs],
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(concepts)), [escape_mathtext(concept) for concept in concepts])
    return image


@styled
def draw_effects(rows: Sequence[Row]) -> Figure:
    """Plots measured against predicted effects of edges: frozen ablations (left) and free ablations (right)."""
    figure = Figure(figsize=(6.4, 3.1), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, column, name, colour, marker in (
        (panels[0], "effect_frozen", "all else frozen", BLUE, "o"),
        (panels[1], "effect_free", "nothing frozen", VERMILION, "x"),
    ):
        pairs = [(row["effect"], row[column]) for row in rows if row[column] is not None]
        predicted, measured = np.array(pairs, float).reshape(-1, 2).T
        low, high = (f(np.r_[0.0, predicted]) for f in (np.min, np.max))
        panel.plot([low, high], [low, high], color="0.4", linewidth=0.8, linestyle="--", label="equal")
        panel.scatter(predicted, measured, s=12, color=colour, marker=marker, linewidths=0.8, alpha=0.7)
        panel.set(xlabel="predicted effect (target's units)", ylabel="measured effect (target's units)")
        panel.set_title(f"source ablated, {name}", loc="left")
        panel.legend(loc="upper left")
    return figure


@styled
def draw_faithfulness(rows: Sequence[Row]) -> Figure:
    """Plots the faithfulness of the top k components against k.

    There is one panel per pair of ablation and ranking, and one line per basis.
    """
    panels_of = list(dict.fromkeys((row["ablation"], row["ranking"]) for row in rows))
    bases = list(dict.fromkeys(row["basis"] for row in rows))
    n_rows = ceil(len(panels_of) / 2)
    figure = Figure(figsize=(6.8, 2.9 * n_rows + 0.4), layout="constrained")
    panels = figure.subplots(n_rows, 2, squeeze=False, sharey=True).flatten()
    for panel, (ablation, ranking) in zip(panels, panels_of, strict=False):
        for i, basis in enumerate(bases):
            own = [r for r in rows if (r["basis"], r["ablation"], r["ranking"]) == (basis, ablation, ranking)]
            own = [row for row in own if row["faithfulness"] is not None]
            panel.plot(
                [row["n_kept"] for row in own], [row["faithfulness"] for row in own], color=SERIES[i % len(SERIES)],
                marker=_MARKERS[i % len(_MARKERS)], linestyle=_LINES[i % len(_LINES)], label=escape_mathtext(basis),
            )  # fmt: skip
        panel.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xlim(left=0)
        # if few components are kept, the share may lie far outside the range 0 to 1
        panel.set_ylim(*FAITHFULNESS_LIMITS)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set_title(f"by {ranking}; the others set to {ablation.replace('_', ' ')}", loc="left")
        panel.set_xlabel("components kept, k")
    for panel in panels[len(panels_of) :]:
        panel.remove()
    panels[0].set_ylabel("share of the behaviour recovered")
    _legend(figure, panels[: len(panels_of)])
    return figure


def _size(columns: int, rows: int, lines: int) -> tuple[float, float]:
    """Returns (width, height) in inches. `columns` and `rows` count panels, and `lines` counts legend entries."""
    return max(5.0, PANEL * columns + 0.6), 1.75 * rows + 0.6 + 0.18 * ceil(lines / 3)


def _by_run(rows: Iterable[Row]) -> Iterable[tuple[str, list[Row]]]:
    """Groups rows by run. Rows of one run must be consecutive."""
    return ((run, list(own)) for run, own in groupby(rows, key=lambda row: row["run"]))


def _line_style(line: Line) -> dict[str, Any]:
    return {"color": line.colour, "linestyle": line.style, "marker": line.marker, "markersize": 3}


def _legend(figure: Figure, panels: Iterable[Any]) -> None:
    """Adds one legend above all panels."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=3)
