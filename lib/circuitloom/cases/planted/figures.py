"""Pictures of the benchmark of planted concepts."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ...core.plotting import BLUE, GREEN, ORANGE, PURPLE, VERMILION, styled
from ..claims import Bootstrap, mean
from .results import PlantedResults

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
MARKERS = ("o", "s", "^")


@styled
def draw_concepts(results: PlantedResults, runs: Sequence[str], bound: float) -> Figure:
    """F1 of each concept in some runs, concepts ordered by the first of them."""

    def f1(run: str, concept: str) -> float:
        return results.runs[run][concept].found.f1 or 0.0

    ordered = sorted(results.concepts, key=lambda concept: f1(runs[0], concept))
    figure = Figure(figsize=(7, 1.2 + 0.16 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(ordered))
    for run, colour, marker in zip(runs, COLOURS, MARKERS, strict=False):
        values = [f1(run, concept) for concept in ordered]
        axes.scatter(values, place, s=18, c=colour, marker=marker, label=run, zorder=3)
    axes.axvline(bound, color="0.4", linewidth=1, linestyle="--")
    axes.set_yticks(place, ordered, fontsize=7)
    axes.set_ylim(-1, len(ordered))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("F1 on held-out documents (0 to 1)")
    axes.set_ylabel("planted concept")
    figure.legend(loc="outside upper center", ncols=len(runs))
    return figure


@styled
def draw_sources(results: PlantedResults, bootstrap: Bootstrap) -> Figure:
    """Mean precision and recall of the sources of each run's found features, with intervals over concepts."""
    rows = [
        (f"{run}, {method}", [told for o in outcomes.values() if (told := getattr(o, kind))])
        for run, outcomes in results.runs.items()
        for kind, method in (("circuit", "circuits"), ("gradient", "gradients"))
    ]
    rows = [(label, told) for label, told in rows if told][::-1]
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(rows))
    for name, colour, marker, shift in (
        ("precision", COLOURS[0], "o", 0.12),
        ("recall", COLOURS[1], "s", -0.12),
    ):
        values = [[v for each in told if (v := getattr(each, name)) is not None] for _, told in rows]
        ends = [bootstrap.interval(np.array(v, float)[:, None], mean) for v in values]
        middle, low, high = np.array(ends, float).reshape(-1, 3).T
        axes.errorbar(
            middle,
            place + shift,
            xerr=[middle - low, high - middle],
            fmt=marker,
            color=colour,
            capsize=3,
            label=name,
        )
    axes.set_yticks(place, [f"{label} ({len(told)} concepts)" for label, told in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share (0 to 1), mean over the concepts found")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
