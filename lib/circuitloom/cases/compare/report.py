"""Results of a comparison of dictionaries, and their report: claims, text, tables and a picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ...attribution.graph import GraphScores
from ...config.cases.compare import CompareCase, ComparedPrompt
from ...core.plotting import SERIES, styled
from ..case_report import CaseReport, number
from ..claims import Bootstrap, Claim, fraction_of, make_claim
from ..planted.report import ConceptOutcome, PlantedResults
from ..planted.sources import mean_of
from .measurements import EffectAgreement, PatchOutcome, StepOutcome


@dataclass(frozen=True)
class RunOutcome:
    """Size and scores of one run, as columns of the table `compared_run`."""

    group: str
    run: str
    parameters: int
    features: int
    l0: float
    fvu: float
    delta_ce: float | None
    kl: float | None
    dead: float
    concepts: dict[str, ConceptOutcome] | None
    """Outcome of each planted concept. None if they were not scored."""


@dataclass(frozen=True)
class PromptOutcome:
    """Measurements of one prompt in one run."""

    group: str
    run: str
    number: int
    prompt: ComparedPrompt
    n_active: int
    scores: GraphScores
    effects: EffectAgreement
    step: StepOutcome | None
    """None without a known step."""
    patch: PatchOutcome | None = None
    """None without another text."""


@dataclass(frozen=True)
class CompareResults:
    """All measurements of a comparison."""

    name: str
    case: CompareCase
    runs: Sequence[RunOutcome]
    prompts: Sequence[PromptOutcome]
    concepts: PlantedResults | None

    def by_prompt(self, group: str, value: Callable[[PromptOutcome], float | None]) -> dict[int, float]:
        """Returns a value of each prompt, averaged over the runs of a group. Prompts without it in some run are left
        out."""
        found: dict[int, list[float | None]] = {}
        for each in self.prompts:
            if each.group == group:
                found.setdefault(each.number, []).append(value(each))
        return {
            prompt: fmean(value for value in values if value is not None)
            for prompt, values in found.items()
            if None not in values
        }

    def by_concept(self, group: str, value: Callable[[ConceptOutcome], float | None]) -> dict[str, float]:
        """Returns a value of each concept, averaged over the runs of a group that have it."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for concept, outcome in (run.concepts or {}).items() if run.group == group else ():
                if (own := value(outcome)) is not None:
                    found.setdefault(concept, []).append(own)
        return {concept: fmean(values) for concept, values in found.items()}


SCORES: dict[str, tuple[str, Callable[[PromptOutcome], float | None]]] = {
    "replacement": ("replacement score", lambda each: each.scores.replacement),
    "completeness": ("completeness score", lambda each: each.scores.completeness),
    "edges": (
        "correlation of edges with free ablations",
        lambda each: each.effects.edge_correlation,
    ),
    "effects": (
        "correlation of predicted and measured drops of the roots",
        lambda each: each.effects.correlation,
    ),
}
"""Maps the name of each compared score of a prompt to (what it is, its value). Higher is better."""
CONCEPT_SCORES: dict[str, tuple[str, Callable[[ConceptOutcome], float | None]]] = {
    "concepts": ("F1 of the best feature of each concept", lambda each: each.feature.f1),
    "sources": (
        "F1 of the sources of circuits against the concepts' cues",
        lambda each: each.circuit.f1 if each.circuit else None,
    ),
}
"""The same for scores of a planted concept."""


def make_report(results: CompareResults) -> CaseReport:
    """Returns the report of the comparison."""
    case = results.case
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    number_of_prompts = len({each.number for each in results.prompts})
    return CaseReport(
        case=results.name,
        title=f"{len(results.runs)} runs on {number_of_prompts} prompts",
        question="Which dictionaries give the better circuits, on the same prompts?",
        answer=list(_answer(results)),
        claims=[*_pair_claims(results, bootstrap), *_step_claims(results, bootstrap)],
        tables={
            "compared_run": [_run_row(results.name, each) for each in results.runs],
            "compared_prompt": [_prompt_row(results.name, each) for each in results.prompts],
        },
        figures={
            "scores": (
                draw_scores(results, bootstrap),
                "Scores of each group, mean over the prompts and over the runs of the group, with intervals over "
                "prompts.",
            )
        },
        method=list(_method(results)),
    )


# Claims


def _pair_claims(results: CompareResults, bootstrap: Bootstrap) -> Iterator[Claim]:
    """Yields claims that the first group of a pair is at least as good as the second."""
    for first, second in results.case.compared:
        claim = partial(make_claim, bound=0.0, bootstrap=bootstrap)
        for name, (what, value) in SCORES.items():
            rows = _differences(results.by_prompt(first, value), results.by_prompt(second, value))
            yield claim(f"{first}_above_{second}_{name}", f"{what}, {first} minus {second}", rows)
        if results.concepts is None:
            continue
        for name, (what, value) in CONCEPT_SCORES.items():
            rows = _differences(results.by_concept(first, value), results.by_concept(second, value))
            statement = f"{what}, {first} minus {second}, mean over concepts that both have it for"
            yield claim(f"{first}_above_{second}_{name}", statement, rows, of="concepts")


def _differences(first: dict[Any, float], second: dict[Any, float]) -> list[float]:
    return [first[key] - second[key] for key in first if key in second]


def _step_claims(results: CompareResults, bootstrap: Bootstrap) -> Iterator[Claim]:
    """Yields claims about prompts whose computation is known to pass through a concept."""
    case = results.case
    if not any(each.step for each in results.prompts):
        return
    for group in case.groups:
        yield make_claim(
            f"{group}_names_the_step",
            f"share of the influence on the roots that passes through features of the concept, {group}",
            list(
                results.by_prompt(group, lambda each: each.step.flow.through if each.step else None).values()
            ),
            case.passed,
            bootstrap,
        )
        measured = results.by_prompt(group, lambda each: abs(each.step.measured) if each.step else None)
        missed = results.by_prompt(
            group, lambda each: abs(each.step.predicted - each.step.measured) if each.step else None
        )
        yield make_claim(
            f"{group}_predicts_the_step",
            f"sum of |predicted - measured| over the sum of |measured| drops of the roots if these features are "
            f"ablated, {group}",
            np.array([[missed[key], measured[key]] for key in measured]).reshape(-1, 2),
            case.predicted,
            bootstrap,
            statistic=_ratio,
            relation="below",
        )

        if not any(each.patch for each in results.prompts):
            continue
        yield make_claim(
            f"{group}_replaces_the_step",
            f"drop of the roots if these features are patched from the other text, over the difference between the two "
            f"texts, {group}",
            _pairs(results, group, lambda each: (each.measured, each.difference)),
            case.patched,
            bootstrap,
            statistic=_ratio,
        )
        yield make_claim(
            f"{group}_predicts_the_replacement",
            f"sum of |predicted - measured| over the sum of |measured| drops of the roots if these features are "
            f"patched, {group}",
            _pairs(results, group, lambda each: (abs(each.predicted - each.measured), abs(each.measured))),
            case.predicted,
            bootstrap,
            statistic=_ratio,
            relation="below",
        )


def _pairs(
    results: CompareResults, group: str, value: Callable[[PatchOutcome], tuple[float, float]]
) -> Float[np.ndarray, "prompt 2"]:
    """Returns two values of each prompt whose step was patched, averaged over the runs of a group."""
    columns = [
        results.by_prompt(group, lambda each, i=i: value(each.patch)[i] if each.patch else None)
        for i in (0, 1)
    ]
    return np.array([[column[key] for column in columns] for key in columns[0]]).reshape(-1, 2)


def _ratio(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    return fraction_of(rows[:, :, 0].sum(1), rows[:, :, 1].sum(1))


# Text


def _answer(results: CompareResults) -> Iterator[str]:
    what, value = SCORES["replacement"]
    means = {group: results.by_prompt(group, value).values() for group in results.case.groups}
    listed = ", ".join(f"{group} {number(fmean(values))}" for group, values in means.items() if values)
    yield f"Mean {what}: {listed}."


def _method(results: CompareResults) -> Iterator[str]:
    case = results.case
    yield (
        "All runs trace the same prompts, with graphs of all active features. A value of a group is the mean over its "
        "runs; intervals are over prompts or concepts, not over training seeds. The table compared_run has each run."
    )
    for group in case.groups:
        own = [each for each in results.runs if each.group == group]
        parts = [
            f"{len(own)} run(s), {own[0].parameters:,} weights, L0 {number(fmean(each.l0 for each in own))}",
            f"FVU {number(fmean(each.fvu for each in own))}",
            f"dead {number(fmean(each.dead for each in own))}",
        ]
        if rises := [each.delta_ce for each in own if each.delta_ce is not None]:
            parts.append(f"rise of CE with all layers replaced {number(fmean(rises))} nats")
        yield f"{group}: {', '.join(parts)}."
    yield (
        f"Each of the {case.ablated} most influential features of a graph is ablated alone, with nothing held. The "
        "predicted drop of the roots is the feature's effect over all paths, through active features with slope 1."
    )
    if any(each.patch for each in results.prompts):
        yield (
            "Where another text is given, in which the step has another value, the features of both values get the "
            "activations that they have in it. The graphs predict that the roots lose what these features add to them "
            "in the text, and gain what they add in the other."
        )
    if any(each.step for each in results.prompts):
        yield (
            "Where the text is known to act through a concept, its features are those that predict it with an F1 of at "
            f"least {number(case.matching)} on the choosing half of the held-out documents, in any layer. Influence is "
            "followed from the roots to their sources. It passes through the concept if it reaches one of these "
            "features before tokens or errors; else it goes around."
        )


# Tables


def _run_row(case: str, each: RunOutcome) -> dict[str, Any]:
    row: dict[str, Any] = {"case_study": case, **vars(each)}
    row["group_name"] = row.pop("group")
    outcomes = list((row.pop("concepts") or {}).values())
    circuits = [outcome.circuit for outcome in outcomes if outcome.circuit]
    f1 = [outcome.feature.f1 or 0.0 for outcome in outcomes]
    return row | {
        "concepts_found": fmean(float(outcome.is_found) for outcome in outcomes) if outcomes else None,
        "concept_f1": fmean(f1) if f1 else None,
        "source_precision": mean_of("precision", circuits),
        "source_recall": mean_of("recall", circuits),
    }


def _prompt_row(case: str, each: PromptOutcome) -> dict[str, Any]:
    row = {
        "case_study": case,
        "group_name": each.group,
        "run": each.run,
        "prompt": each.number,
        "text": each.prompt.text,
        "target": each.prompt.target,
        "n_active": each.n_active,
        "replacement_score": each.scores.replacement,
        "completeness_score": each.scores.completeness,
        "edge_correlation": each.effects.edge_correlation,
        "effect_correlation": each.effects.correlation,
        "effect_error": each.effects.error,
        "effect_slope": each.effects.slope,
        "through_concept": ", ".join(each.prompt.through) or None,
    }
    step, patch = each.step, each.patch
    return row | {
        "n_through": step and step.n_features,
        "through": step and step.flow.through,
        "around": step and step.flow.around,
        "to_errors": step and step.flow.errors,
        "root": step and step.root,
        "drop_predicted": step and step.predicted,
        "drop_measured": step and step.measured,
        "other_text": each.prompt.other,
        "n_patched": patch and patch.n_features,
        "patch_difference": patch and patch.difference,
        "patch_predicted": patch and patch.predicted,
        "patch_measured": patch and patch.measured,
    }


# Picture


@styled
def draw_scores(results: CompareResults, bootstrap: Bootstrap) -> Figure:
    """Draw the mean of each score in each group, with intervals over prompts."""
    groups = list(results.case.groups)
    figure = Figure(figsize=(7, 0.9 + 0.22 * len(groups) * len(SCORES)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(SCORES))[::-1]
    for i, group in enumerate(groups):
        columns = [list(results.by_prompt(group, value).values()) for _, value in SCORES.values()]
        middle, low, high = bootstrap.means(columns)
        shift = 0.7 * (0.5 - (i + 0.5) / len(groups))
        axes.errorbar(
            middle,
            place + shift,
            xerr=[middle - low, high - middle],
            fmt="o",
            color=SERIES[i % len(SERIES)],
            label=group,
        )
    axes.set_yticks(place, [what for what, _ in SCORES.values()])
    axes.set_xlabel("score (at most 1), mean over prompts")
    figure.legend(loc="outside upper center", ncols=len(groups))
    return figure
