"""Pictures of a circuit for a logit difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...ablation.faithfulness import Curve
from ...core.plotting import BLUE, GREEN, VERMILION, styled

SHOWN = 25
"""Components of a circuit that are drawn, at most."""


@styled
def draw_curves(
    curves: Mapping[str, Curve], circuit: tuple[int, float | None, float | None], wanted: float
) -> Figure:
    """Share of the difference with the top k components alone, and without them, for each basis.

    `circuit` is the pruned circuit: its number of components, its share alone, and the share without it.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour, style in zip(curves.items(), (BLUE, VERMILION), ("--", ":"), strict=False):
        # a logarithmic axis has no place for 0
        k = curve.n_kept.numpy()[1:]
        axes.plot(
            k, curve.faithfulness.numpy()[1:], color=colour, marker="o", markersize=3, label=f"{name}, alone"
        )
        axes.plot(
            k, curve.remaining.numpy()[1:], color=colour, linestyle=style, label=f"all but these {name}"
        )
    size, alone, without = circuit
    if alone is not None and without is not None:
        axes.plot([size], [alone], "*", color=GREEN, markersize=13, zorder=3, label="pruned circuit, alone")
        axes.plot(
            [size], [without], "X", color=GREEN, markersize=9, zorder=3, label="all but the pruned circuit"
        )
    axes.axhline(wanted, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_ylim(-0.3, 1.5)
    axes.set_xlabel("components kept (or taken away), k, the strongest first")
    axes.set_ylabel("share of the logit difference")
    axes.legend(fontsize=8, loc="best")
    return figure


@styled
def draw_components(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What the circuit loses without each of its components, the most valuable first: rows of `component`."""
    own = [row for row in rows if row["worth_low"] is not None]
    own = sorted(own, key=lambda row: -row["worth"])[:SHOWN]
    figure = Figure(figsize=(6.5, max(2.0, 0.24 * len(own) + 1)), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(own))
    worth = np.array([row["worth"] for row in own])
    for kind, colour in (("head", VERMILION), ("feature", BLUE)):
        chosen = [i for i, row in enumerate(own) if row["kind"] == kind]
        ends = [[own[i]["worth"] - own[i]["worth_low"] for i in chosen],
                [own[i]["worth_high"] - own[i]["worth"] for i in chosen]]  # fmt: skip
        if chosen:
            axes.errorbar(
                worth[chosen], place[chosen], xerr=np.maximum(ends, 0), fmt="o", color=colour, markersize=4,
                linewidth=1.2, label=kind,
            )  # fmt: skip
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(place, [component_name(row) for row in own], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of the logit difference that the circuit loses without it")
    if own:
        axes.legend(fontsize=8, loc="lower right")
    return figure


def component_name(row: Mapping[str, Any]) -> str:
    """A head as LAYER.NUMBER, a feature as LAYER/NUMBER."""
    return f"{row['layer']}{'.' if row['kind'] == 'head' else '/'}{row['component']}"
