"""Draws Pareto plots of transcoders and SAEs.

A plot shows L0 and the cross-entropy of the spliced model. In the spliced model, reconstructions replace the MLP
output.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ..config.activations import MLP_OUTPUTS
from ..core.layout import ALL_LAYERS
from ..core.plotting import BLUE, GREEN, VERMILION, styled
from ..core.tables import PARETO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"transcoder": BLUE, "sae": VERMILION, "clt": GREEN}
MARKERS = {"topk": "o", "batchtopk": "s", "relu": "^", "jumprelu": "D"}
NAMES = {"transcoder": "transcoder", "sae": "SAE on MLP output", "clt": "cross-layer transcoder"}
LINES: dict[tuple[str, bool], Any] = {
    ("mlp_out", False): "-", ("mlp_out", True): ":", ("mlp_added", False): (0, (5, 1)), ("mlp_added", True): "-.",
}  # fmt: skip
"""Line style by (reconstructed site, whether the run has a skip connection)."""


def pareto_table(metrics: pa.Table, runs: pa.Table) -> pa.Table:
    """Returns the PARETO rows of all runs that reconstruct mlp_out or mlp_added.

    The rows are sorted by layer, kind, site, activation function and L0.
    """
    # transcoders with a skip connection are a separate series
    skips = [bool(json.loads(config or "{}").get("skip")) for config in runs["config"].to_pylist()]
    acts = [f"{act}, skip" if skip else act for act, skip in zip(runs["act"].to_pylist(), skips, strict=True)]
    runs = runs.set_column(runs.column_names.index("act"), "act", pa.array(acts, pa.string()))
    joined = metrics.join(runs, keys="run", join_type="inner")
    order = [
        ("layer", "ascending"), ("kind", "descending"), ("site_out", "descending"), ("act", "ascending"),
        ("l0", "ascending"),
    ]  # fmt: skip
    of_mlp = pc.field("site_out").isin(list(MLP_OUTPUTS))
    return joined.filter(of_mlp).sort_by(order).select(list(PARETO.columns))


def series_suffix(site: str) -> str:
    """Returns the end of a series' name: it names the reconstructed site, unless that is mlp_out."""
    return "" if site == "mlp_out" else f", {site}"


def draw_pareto(table: pa.Table, path: Path | str) -> None:
    """Draw the Pareto plot of `table` and write it to the PNG file `path`. The plot has one panel per layer.

    The horizontal axis is L0. The vertical axis is cross-entropy. Lower left is better. The plot follows figure 3 of
    Dunefsky et al. 2024. Raises ValueError if `table` is empty.
    """
    if not len(table):
        raise ValueError(
            "pareto: no run reconstructs mlp_out or mlp_added; add a transcoder, or an SAE on one of them, to "
            "dictionaries"
        )
    pareto_figure(table.to_pylist()).savefig(path, dpi=150)


@styled
def pareto_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Returns a plot of PARETO rows. `rows` must be sorted by layer, kind, site, activation function and L0."""
    from matplotlib.figure import Figure

    # the panel of ALL_LAYERS comes last
    layers = sorted({row["layer"] for row in rows}, key=lambda layer: (layer == ALL_LAYERS, layer))
    across = ceil(sqrt(len(layers)))
    down = ceil(len(layers) / across)
    figure = Figure(figsize=(4.2 * across, 3.6 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for panel, layer in zip(panels, layers, strict=False):
        handles |= _draw_layer(panel, [row for row in rows if row["layer"] == layer])
        panel.set_title("all layers" if layer == ALL_LAYERS else f"layer {layer}", loc="left")
    for panel in panels[len(layers) :]:
        panel.remove()
    figure.supxlabel("L0 (active features per token)")
    figure.supylabel("cross-entropy (nats per token)")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=across)
    return figure


def _draw_layer(panel: "Axes", rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Draw the rows of one layer into `panel`. Returns a dict from legend label to line."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    drawn: dict[str, Any] = {}
    for (kind, site, act), group in groupby(rows, key=lambda row: (row["kind"], row["site_out"], row["act"])):
        points = list(group)
        x, y = [row["l0"] for row in points], [row["ce"] for row in points]
        base, _, skip = act.partition(", ")
        style: dict[str, Any] = {
            "linestyle": LINES[site, bool(skip)],
            "markerfacecolor": "white" if skip else COLOURS[kind],
        }
        (line,) = panel.plot(
            x, y, color=COLOURS[kind], marker=MARKERS[base], markersize=5, linewidth=1, **style
        )
        drawn[f"{NAMES[kind]}, {act}{series_suffix(site)}"] = line
    first = {row["site_out"]: row for row in reversed(rows)}
    drawn["original model"] = panel.axhline(
        rows[0]["ce_original"], color="black", linestyle="--", linewidth=1
    )
    ablated = [
        f"zero-ablated {row['ce_zero']:.3f}, mean-ablated {row['ce_mean']:.3f}{series_suffix(site)}"
        for site, row in sorted(first.items(), reverse=True)
    ]
    panel.set_title("\n".join(ablated), loc="right", fontsize="small")
    panel.ticklabel_format(axis="y", useOffset=False)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(0.12)
    return drawn
