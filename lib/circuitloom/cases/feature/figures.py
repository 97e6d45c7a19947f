"""Pictures of a feature's case: how it tells texts from their edits, and what it reads."""

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ...core.plotting import BLUE, VERMILION, styled
from .reading import Reading

SHOWN = 12
"""Sources shown."""


@styled
def draw_activations(on: Float[Tensor, " pair"], off: Float[Tensor, " pair"], threshold: float) -> Figure:
    """Activations at the last tokens of texts and of their edits, and the threshold between them."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    spread = torch.linspace(-0.3, 0.3, len(on))
    rows = (("texts", on, BLUE, "o"), ("edits", off, VERMILION, "x"))
    for place, (_, values, colour, marker) in enumerate(rows):
        axes.scatter(values, place + spread, c=colour, marker=marker, s=18, alpha=0.8)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axes.set_yticks([0, 1], [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("activation at the last token (units of the MLP's output)")
    return figure


@styled
def draw_sources(reading: Reading) -> Figure:
    """Shares of tokens by how far before they stand, and of what is read in one step."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = reading.shares
    n = max(1, int((shares > 0.005).nonzero()[:, 0].max()) + 1) if bool((shares > 0.005).any()) else 1
    signs = reading.tokens[:, :n].mean(0)
    colours = [BLUE if sign >= 0 else VERMILION for sign in signs.tolist()]
    left.bar(range(n), shares[:n].tolist(), color=colours)
    left.set_xlabel("tokens before the one at which it fires")
    left.set_ylabel("share of what tokens add")
    left.set_title("by token, through everything", loc="left", fontsize="medium")
    direct = direct_shares(reading)[:SHOWN]
    right.barh(
        [name for name, _, _ in direct],
        [share for _, share, _ in direct],
        color=[BLUE if mean >= 0 else VERMILION for _, _, mean in direct],
    )
    right.invert_yaxis()
    right.set_xlabel("share of what it reads in one step")
    right.set_title("in one step (blue raises it, vermilion lowers it)", loc="left", fontsize="medium")
    return figure


def direct_shares(reading: Reading) -> list[tuple[str, float, float]]:
    """What is read in one step, positions put together: name, share, mean effect; the largest first."""
    sums: dict[str, list[float]] = {}
    for step in reading.steps:
        own: dict[str, float] = {}
        for (kind, layer, number, _), value in step.items():
            name = kind if layer is None else f"{kind} {layer}{'/' if kind == 'feature' else '.'}{number}"
            own[name] = own.get(name, 0.0) + value
        for name, value in own.items():
            sums.setdefault(name, []).append(value)
    size = sum(abs(value) for values in sums.values() for value in values) or 1.0
    n = len(reading.steps)
    rows = [(name, sum(map(abs, v)) / size, sum(v) / n) for name, v in sums.items()]
    return sorted(rows, key=lambda row: -row[1])
