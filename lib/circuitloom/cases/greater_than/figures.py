"""Pictures of the case study of greater-than."""

from typing import Any

from matplotlib.figure import Figure

from ...config.cases.greater_than import Digits
from ...core.plotting import BLUE, GREEN, ORANGE, VERMILION, styled
from ..claims import Bootstrap
from .claims import metric_label, years_word
from .measurements import (
    ALL_REPLACED,
    FEATURES,
    NEURONS,
    UNTOUCHED,
    GreaterThanResults,
    LayerCurve,
    ablated_name,
    replaced_name,
)

DIGITS_WORDS: dict[Digits, str] = {"both": "last two digits", "tens": "tens digit", "units": "units digit"}


@styled
def draw_metric(results: GreaterThanResults, bootstrap: Bootstrap, bound: float) -> Figure:
    """Draw the mean metric, with intervals, when one MLP is replaced or ablated. A line marks `bound`, the claimed
    minimum of the metric with MLPs replaced."""
    layers = range(len(results.mlp_effect))
    styles = {
        "replaced by transcoder": (BLUE, replaced_name),
        "set to zero": (VERMILION, lambda layer: ablated_name(layer, "zero")),
        "set to its mean": (ORANGE, lambda layer: ablated_name(layer, "mean")),
    }
    figure = Figure(figsize=(max(6.0, 1.0 * len(layers) + 2.5), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (label, (colour, condition)) in enumerate(styles.items()):
        names = {layer: condition(layer) for layer in layers if condition(layer) in results.conditions}
        x = [layer + 0.27 * (place - 1) for layer in names]
        if place == 0 and ALL_REPLACED in results.conditions:
            names, x = {**names, -1: ALL_REPLACED}, [*x, len(layers)]
        value, low, high = bootstrap.means(results.conditions[name].numpy() for name in names.values())
        axes.bar(x, value, 0.25, color=colour, label=label)
        axes.errorbar(
            x, value, [value - low, high - value], fmt="none", ecolor="black", capsize=2, linewidth=1
        )
    untouched = float(results.conditions[UNTOUCHED].mean())
    axes.axhline(untouched, color="black", linestyle="--", linewidth=1, label=f"untouched: {untouched:.3f}")
    axes.axhline(bound, color="grey", linestyle=":", linewidth=1, label=f"claimed when replaced: {bound:g}")
    ticks = [*layers, *([len(layers)] if ALL_REPLACED in results.conditions else [])]
    axes.set_xticks(ticks, [str(layer) if layer in layers else "all" for layer in ticks])
    axes.set(xlabel="layer of the MLP", ylabel=metric_label(results))
    axes.axhline(0, color="black", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


@styled
def draw_layer_curves(results: GreaterThanResults, bootstrap: Bootstrap, small: int) -> Figure:
    """Draw the metric against k, for k features alone and k neurons alone. Each kind of ablation has one panel."""
    kinds = list(dict.fromkeys(each.ablation for each in results.curves))
    figure = Figure(figsize=(4.4 * len(kinds), 4.0), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for each in results.curves:
            if each.ablation == kind:
                _draw_curve(panel, each, bootstrap)
        untouched = float(results.curves[0].curve.untouched.mean())
        panel.axhline(untouched, color="black", linestyle="--", linewidth=1, label="untouched model")
        panel.axvspan(1, small, color="grey", alpha=0.12, linewidth=0, label=f"compared: 1 to {small}")
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xlim(left=0)
        panel.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
        panel.set_title(f"the others set to {'zero' if kind == 'zero' else 'their mean'}")
        panel.set_xlabel("components kept, k")
    panels[0].set_ylabel(metric_label(results))
    panels[-1].legend(fontsize="small", loc="lower right")
    return figure


def _draw_curve(panel: Any, layer_curve: LayerCurve, bootstrap: Bootstrap) -> None:
    colour, marker, name = {
        FEATURES: (BLUE, "o", "transcoder features"),
        NEURONS: (VERMILION, "s", "neurons"),
    }[layer_curve.units]
    value, low, high = bootstrap.means(layer_curve.curve.kept.double().numpy().T)
    k = layer_curve.curve.n_kept.numpy()
    panel.plot(k, value, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=name)
    panel.fill_between(k, low, high, color=colour, alpha=0.2, linewidth=0)


@styled
def draw_years(results: GreaterThanResults) -> Figure:
    """Draw activation, de-embedding score and direct logit attribution of each feature against the year."""
    years = results.years
    rows: list[tuple[str, str, str, Any]] = [
        ("activation", "start year", BLUE, years.activation),
        (
            "logit attribution (per unit)",
            f"{years_word(results)[:-1]} as the answer",
            GREEN,
            years.attribution,
        ),
    ]
    if years.score is not None:
        rows.insert(1, ("de-embedding score", "start year", VERMILION, years.score))
    across = len(years.feature)
    figure = Figure(figsize=(3.4 * across + 0.6, 2.3 * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), across, squeeze=False, sharex=True)
    for row, (name, what, colour, values) in zip(panels, rows, strict=True):
        for panel, own in zip(row, values.numpy(), strict=True):
            panel.plot(years.year.numpy(), own, color=colour, linewidth=1.3)
            panel.axhline(0, color="black", linewidth=0.6)
            panel.set_xlabel(f"{what} ({DIGITS_WORDS[results.answers.digits]})", fontsize="small")
        row[0].set_ylabel(name)
    for panel, feature in zip(panels[0], years.feature.tolist(), strict=True):
        panel.set_title(f"feature {results.layer}/{feature}", fontsize="medium")
    return figure
