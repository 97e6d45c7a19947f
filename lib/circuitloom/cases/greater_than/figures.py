"""Pictures of greater-than: the metric, how few components keep it, features year by year."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...core.plotting import BLUE, GREEN, ORANGE, VERMILION, styled
from ..claims import Bootstrap, mean
from .keeping import FEATURES, NEURONS, Kept
from .measured import YearMeasurements
from .passes import ALL, UNTOUCHED, ablating, replacing

METRIC_LABEL = "P(later years) - P(other years)"


@styled
def draw_metric(found: YearMeasurements, bootstrap: Bootstrap, bound: float) -> Figure:
    """The metric of the untouched model and of each condition, layer by layer, with intervals."""
    layers = range(len(found.layer_effect))
    styles = {
        "replaced by transcoder": (BLUE, replacing),
        "set to zero": (VERMILION, lambda layer: ablating(layer, "zero")),
        "set to its mean": (ORANGE, lambda layer: ablating(layer, "mean")),
    }
    figure = Figure(figsize=(max(6.0, 1.0 * len(layers) + 2.5), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (label, (colour, condition)) in enumerate(styles.items()):
        names = {layer: condition(layer) for layer in layers if condition(layer) in found.conditions}
        x = [layer + 0.27 * (place - 1) for layer in names]
        if place == 0 and ALL in found.conditions:
            names, x = {**names, -1: ALL}, [*x, len(layers)]
        rows = [bootstrap.interval(found.conditions[name].numpy()[:, None], mean) for name in names.values()]
        value, low, high = (np.array(column, float) for column in zip(*rows, strict=True))
        axes.bar(x, value, 0.25, color=colour, label=label)
        axes.errorbar(
            x, value, [value - low, high - value], fmt="none", ecolor="black", capsize=2, linewidth=1
        )
    untouched = float(found.conditions[UNTOUCHED].mean())
    axes.axhline(untouched, color="black", linestyle="--", linewidth=1, label=f"untouched: {untouched:.3f}")
    axes.axhline(bound, color="grey", linestyle=":", linewidth=1, label=f"claimed when replaced: {bound:g}")
    ticks = [*layers, *([len(layers)] if ALL in found.conditions else [])]
    axes.set_xticks(ticks, [str(layer) if layer in layers else "all" for layer in ticks])
    axes.set(xlabel="layer of the MLP", ylabel=METRIC_LABEL)
    axes.axhline(0, color="black", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


@styled
def draw_kept(found: YearMeasurements, bootstrap: Bootstrap, small: int) -> Figure:
    """The metric with k features, or neurons, of the layer alone; a panel for each ablation."""
    kinds = list(dict.fromkeys(each.ablation for each in found.kept))
    figure = Figure(figsize=(4.4 * len(kinds), 4.0), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for each in found.kept:
            if each.ablation == kind:
                _draw_curve(panel, each, bootstrap)
        untouched = float(found.kept[0].curve.untouched.mean())
        panel.axhline(untouched, color="black", linestyle="--", linewidth=1, label="untouched model")
        panel.axvspan(1, small, color="grey", alpha=0.12, linewidth=0, label=f"compared: 1 to {small}")
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xlim(left=0)
        panel.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
        panel.set_title(f"the others set to {'zero' if kind == 'zero' else 'their mean'}")
        panel.set_xlabel("components kept, k")
    panels[0].set_ylabel(METRIC_LABEL)
    panels[-1].legend(fontsize="small", loc="lower right")
    return figure


def _draw_curve(panel: Any, kept: Kept, bootstrap: Bootstrap) -> None:
    colour, marker, name = {
        FEATURES: (BLUE, "o", "transcoder features"),
        NEURONS: (VERMILION, "s", "neurons"),
    }[kept.units]
    columns = kept.curve.kept.double().numpy().T
    rows = [bootstrap.interval(column[:, None], mean) for column in columns]
    value, low, high = (np.array(each, float) for each in zip(*rows, strict=True))
    k = kept.curve.n_kept.numpy()
    panel.plot(k, value, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=name)
    panel.fill_between(k, low, high, color=colour, alpha=0.2, linewidth=0)


@styled
def draw_years(found: YearMeasurements) -> Figure:
    """Activation, de-embedding score and direct logit attribution of the layer's features by year."""
    years = found.years
    rows: list[tuple[str, str, str, Any]] = [
        ("activation", "start year", BLUE, years.activation),
        ("logit attribution (per unit)", "year as the answer", GREEN, years.attribution),
    ]
    if years.score is not None:
        rows.insert(1, ("de-embedding score", "start year", VERMILION, years.score))
    across = len(years.feature)
    figure = Figure(figsize=(3.4 * across + 0.6, 2.3 * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), across, squeeze=False, sharex=True)
    for line, (name, what, colour, values) in zip(panels, rows, strict=True):
        for panel, own in zip(line, values.numpy(), strict=True):
            panel.plot(years.year.numpy(), own, color=colour, linewidth=1.3)
            panel.axhline(0, color="black", linewidth=0.6)
            panel.set_xlabel(f"{what} (last two digits)", fontsize="small")
        line[0].set_ylabel(name)
    for panel, feature in zip(panels[0], years.feature.tolist(), strict=True):
        panel.set_title(f"feature {found.layer}/{feature}", fontsize="medium")
    return figure
