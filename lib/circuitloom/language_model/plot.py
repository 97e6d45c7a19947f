"""The curve of pretraining."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from ..colours import BLUE, VERMILION
from ..figures import styled


@styled
def plot_pretraining(table: pa.Table, figures: Mapping[str, float], step_tokens: int, file: Path) -> None:
    """Loss against tokens trained on, beside what was reached on held-out text and what the grammar allows.

    `table` is `pretraining`, `figures` are those of table `language_model` by name, `step_tokens` the tokens of a step.
    """
    from matplotlib.figure import Figure

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
    axes.set(xlabel="tokens trained on (millions)", ylabel="cross-entropy (nats a token)")
    axes.set_title("Pretraining of the language model")
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
