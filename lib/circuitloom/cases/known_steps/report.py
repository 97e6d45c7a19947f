"""Results of the case study of known steps, and their report: claims, text, table and a picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ...config.cases.known_steps import KnownStepsCase
from ...core.plotting import SERIES, styled
from ..case_report import CaseReport, number, outcome_rows
from ..claims import Bootstrap, Claim, make_claim
from ..compare.measurements import StepOutcome

STEP_NAMES = ("first", "second")
"""Names of the steps, by layer."""


@dataclass(frozen=True)
class TrainedGroup:
    """Fit of one trained transcoder."""

    group: str
    seed: int
    fvu: tuple[float, ...]
    """Fraction of variance unexplained, by layer."""
    l0: tuple[float, ...]
    """Active features per token, by layer."""


@dataclass(frozen=True)
class StepRow:
    """One step of one text, traced through one transcoder."""

    group: str
    seed: int
    text: int
    layer: int
    values: str
    """Names of the step's values."""
    through: float
    """Share of the influence that passes through features of the values in the layer that computes them."""
    early: float
    """Share of the influence that passes through features of the values in earlier layers."""
    skipped: float
    """Share of the influence that passes through no feature of the step's layer on its way to tokens."""
    outcome: StepOutcome
    """What ablating the features of the first value does."""
    true_drop: float
    """Drop of the logit if the neurons that compute the first value are ablated in the model."""


@dataclass(frozen=True)
class KnownStepsResults:
    """All measurements of the case study."""

    name: str
    case: KnownStepsCase
    trained: Sequence[TrainedGroup]
    rows: Sequence[StepRow]

    def by_text(self, group: str, layer: int, value: Callable[[StepRow], float]) -> list[float]:
        """Returns a value of each text, averaged over the seeds of a group."""
        found: dict[int, list[float]] = {}
        for row in self.rows:
            if (row.group, row.layer) == (group, layer):
                found.setdefault(row.text, []).append(value(row))
        return [fmean(found[text]) for text in sorted(found)]


MEASURES: dict[str, tuple[str, Callable[[StepRow], float]]] = {
    "through": ("share of the influence through features of the step's values", lambda row: row.through),
    "early": (
        "share of the influence through features of these values in earlier layers",
        lambda row: row.early,
    ),
    "skipped": (
        "share of the influence that reaches tokens through no feature of the step's layer",
        lambda row: row.skipped,
    ),
    "predicted": (
        "predicted drop if the features of the first value are ablated, over the true drop",
        lambda row: row.outcome.predicted / row.true_drop,
    ),
    "measured": (
        "measured drop if the features of the first value are ablated, over the true drop",
        lambda row: row.outcome.measured / row.true_drop,
    ),
}
"""Maps the name of each measure of a step to (what it is, its value)."""


def make_report(results: KnownStepsResults) -> CaseReport:
    """Returns the report of the case study."""
    case = results.case
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    return CaseReport(
        case=results.name,
        title="two steps across tokens" if case.across else "two steps within a token",
        question=(
            "The model computes r = q_0 or q_1 in layer 2, q_j = p_2j and p_2j+1 in layer 1, and p_i = a_i and b_i in "
            "layer 0. Do the circuits of r name p and q, and do their features act as p and q do?"
        ),
        answer=list(_answer(results)),
        claims=list(_claims(results, bootstrap)),
        tables={"outcome": list(_outcomes(results))},
        figures={
            "steps": (
                draw_steps(results, bootstrap),
                "Mean of each measure over the texts on which one q is true, with intervals. The model's own circuit "
                "has 0 for early and skipped, and 1 for the others.",
            )
        },
        method=list(_method(results)),
    )


def _claims(results: KnownStepsResults, bootstrap: Bootstrap) -> Iterator[Claim]:
    case = results.case
    claim = partial(make_claim, bootstrap=bootstrap, of="texts")
    for group in case.groups:
        for layer, step in enumerate(STEP_NAMES):
            values = partial(results.by_text, group, layer)
            yield claim(
                f"{group}_names_the_{step}_step",
                f"{MEASURES['through'][0]}, {group}, layer {layer}",
                values(MEASURES["through"][1]),
                case.named,
            )
            yield claim(
                f"{group}_predicts_the_{step}_step",
                f"|predicted - true drop| over the true drop if the step is ablated, {group}, layer {layer}",
                values(lambda row: abs(row.outcome.predicted / row.true_drop - 1)),
                case.wrong,
                relation="below",
            )


def _answer(results: KnownStepsResults) -> Iterator[str]:
    for layer, step in enumerate(STEP_NAMES):
        parts = [
            f"{group} {number(fmean(results.by_text(group, layer, MEASURES['through'][1])))}"
            for group in results.case.groups
        ]
        yield f"Share of the influence through the {step} step's values: {', '.join(parts)}."


def _method(results: KnownStepsResults) -> Iterator[str]:
    yield (
        "All texts of the model on which exactly one q is true are traced to the logit of r, through transcoders that "
        "are trained on the activations on all texts, in equal shares. Features of a step are those of the layer that "
        "computes the step's values which tell one of them with an F1 of at least "
        f"{number(results.case.matching)}. The features of the first value (p_2j or q_j) are ablated; the true drop is "
        "that of the logit if the neurons that compute this value are set to 0 instead."
    )
    for each in results.trained:
        fvu, l0 = (", ".join(f"{value:.3f}" for value in values) for values in (each.fvu, each.l0))
        yield f"{each.group}, seed {each.seed}: FVU by layer {fvu}; L0 by layer {l0}."
    for layer, step in enumerate(STEP_NAMES):
        for group in results.case.groups:
            parts = [
                f"{name} {number(fmean(results.by_text(group, layer, value)))}"
                for name, (_, value) in MEASURES.items()
            ]
            yield f"{step} step, {group}: {', '.join(parts)}."


def _outcomes(results: KnownStepsResults) -> Iterator[dict[str, Any]]:
    for row in results.rows:
        step = STEP_NAMES[row.layer]
        values = {name: value(row) for name, (_, value) in MEASURES.items()} | {"true_drop": row.true_drop}
        for name, value in values.items():
            yield from outcome_rows(
                results.name,
                f"{step}_{name}",
                f"{row.group}, seed {row.seed}",
                [(row.text, row.values, "testing")],
                [value],
            )


@styled
def draw_steps(results: KnownStepsResults, bootstrap: Bootstrap) -> Figure:
    """Draw the mean of each measure in each group, one panel per step."""
    groups = list(results.case.groups)
    figure = Figure(figsize=(7, 1.2 + 0.25 * len(groups) * len(MEASURES)), layout="constrained")
    panels = figure.subplots(1, len(STEP_NAMES), sharey=True)
    place: Float[np.ndarray, " measure"] = np.arange(len(MEASURES))[::-1].astype(float)
    for layer, (step, axes) in enumerate(zip(STEP_NAMES, panels, strict=True)):
        for i, group in enumerate(groups):
            columns = [results.by_text(group, layer, value) for _, value in MEASURES.values()]
            middle, low, high = bootstrap.means(columns)
            shift = 0.7 * (0.5 - (i + 0.5) / len(groups))
            axes.errorbar(
                middle,
                place + shift,
                xerr=[middle - low, high - middle],
                fmt="o",
                color=SERIES[i % len(SERIES)],
                label=group if layer == 0 else None,
            )
        axes.set_title(f"{step} step")
        axes.set_yticks(place, list(MEASURES))
        axes.set_xlabel("share, or drop over the true drop")
    figure.legend(loc="outside upper center", ncols=len(groups))
    return figure
