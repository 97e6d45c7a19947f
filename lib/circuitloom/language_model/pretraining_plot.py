"""Plots the loss of pretraining. The plot's job needs neither torch nor transformers, which `pretraining` imports."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from matplotlib.figure import Figure

from ..core.plotting import BLUE, VERMILION, styled


@styled
def plot_pretraining(table: pa.Table, figures: Mapping[str, float], step_tokens: int, file: Path) -> None:
    """Plot the training loss against the number of training tokens.

    `table` is table `pretraining`. `figures` contains values of table `language_model`. Held-out loss and grammar
    entropy become horizontal lines. `step_tokens` is the number of tokens per step.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        table["step"].to_numpy() * (step_tokens / 1e6),
        table["loss"].to_numpy(),
        color=BLUE,
        label="training batches",
    )
    lines = {
        "cross_entropy_every": ("held-out text, packed", VERMILION, ":"),
        "grammar_entropy": ("entropy of the grammar", "black", "--"),
    }
    for name, (label, colour, style) in lines.items():
        if name in figures:
            axes.axhline(figures[name], color=colour, linestyle=style, label=f"{label}: {figures[name]:.3f}")
    axes.set(xlabel="training tokens (millions)", ylabel="cross-entropy (nats per token)")
    axes.set_title("Pretraining of the language model")
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
