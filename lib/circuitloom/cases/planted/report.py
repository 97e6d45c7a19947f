"""Results of the benchmark of planted concepts, and their report: claims, text, table and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...config.cases.planted import PlantedCase
from ...core.layout import NEURONS
from ...core.plotting import BLUE, GREEN, ORANGE, PURPLE, VERMILION, styled
from ..case_report import CaseReport, number
from ..claims import Bootstrap, Claim, make_claim
from .concept_features import MATCH_COLUMNS, SAE, TRANSCODER, ConceptFeature
from .sources import SourceScore, mean_of

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class ConceptOutcome:
    """Measurements of one concept in one run."""

    kind: str
    feature: ConceptFeature
    is_found: bool
    circuit: SourceScore | None
    """Score of the sources found through circuits. None if the run has no transcoders, or if the concept was not
    found."""
    gradient: SourceScore | None
    """Score of the sources found by gradient. None if the concept was not found."""
    shares: tuple[float | None, float | None]
    """Share of all contributions that the sources hold: (through circuits, by gradient)."""
    contextual: bool
    """Whether, at some place, the cues are not only the token where the feature fires."""

    @property
    def source_score(self) -> SourceScore | None:
        """`circuit` for transcoders, `gradient` for other kinds."""
        return self.circuit if self.kind == TRANSCODER else self.gradient


@dataclass(frozen=True)
class PlantedResults:
    """Outcomes of all concepts in all runs."""

    runs: dict[str, dict[str, ConceptOutcome]]
    """Outcomes by run, then by concept."""

    @cached_property
    def concepts(self) -> list[str]:
        """Names of the concepts, sorted."""
        return sorted({concept for outcomes in self.runs.values() for concept in outcomes})

    def best(self, kind: str, bound: float) -> str | None:
        """Returns the run of the given kind that finds the most concepts on the choosing half, or None if no run has
        this kind."""

        def quality(run: str) -> tuple[int, float]:
            f1 = [outcome.feature.f1_choosing for outcome in self.runs[run].values()]
            return sum(value >= bound for value in f1), sum(f1)

        own = [run for run, outcomes in self.runs.items() if next(iter(outcomes.values())).kind == kind]
        return max(own, key=quality) if own else None


def make_report(name: str, results: PlantedResults, case: PlantedCase) -> CaseReport:
    """Returns the report of the benchmark. Without a run of transcoders, the report has no claims."""
    best = results.best(TRANSCODER, case.found)
    shown = [run for kind in (TRANSCODER, SAE, NEURONS) if (run := results.best(kind, case.found))]
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    return CaseReport(
        case=name,
        title=f"{len(results.concepts)} planted concepts",
        question=(
            f"Which of the {len(results.concepts)} planted concepts have a feature, and do these features come from "
            "the cues of the concept?"
        ),
        answer=_answer(results, best, case)
        if best
        else ["There is no run of transcoders to make claims about."],
        claims=list(planted_claims(results, best, case, bootstrap)) if best else [],
        tables={"planted": list(_rows(name, results))},
        figures={
            "concepts": (
                draw_concepts(results, shown, case.found),
                f"F1 of the best single feature of each concept on held-out documents. The line is the bound of "
                f"{number(case.found)} at which a concept counts as found.",
            ),
            "sources": (
                draw_sources(results, bootstrap),
                "Precision and recall of the source tokens of features against the cues of their concepts, mean over "
                "the concepts found, with intervals.",
            ),
        },
        method=list(_method(results, best, case)) if best else [],
    )


# Claims


def planted_claims(
    results: PlantedResults, best: str, case: PlantedCase, bootstrap: Bootstrap
) -> Iterator[Claim]:
    """Yields claims about the best run of transcoders. Further claims compare this run with the best run of SAEs and
    with the neurons."""
    kinds = {"saes": SAE, "neurons": NEURONS}
    others = {name: run for name, kind in kinds.items() if (run := results.best(kind, case.found))}
    claim = partial(make_claim, bootstrap=bootstrap, of="concepts")
    own = results.runs[best]
    yield claim(
        "found",
        f"share of concepts for which a single feature of the best transcoders ({best}) has an F1 of at least "
        f"{number(case.found)}",
        [float(own[concept].is_found) for concept in results.concepts],
        case.discovered,
    )
    yield claim(
        "found_together",
        f"the same share for sets of up to {case.together} features of one layer",
        [float(own[concept].feature.f1_together >= case.found) for concept in results.concepts],
        case.discovered,
    )
    for name, other in others.items():
        theirs = results.runs[other]
        yield claim(
            f"found_above_{name}",
            f"share found by {best} minus share found by {other}",
            [float(own[c].is_found) - float(theirs[c].is_found) for c in results.concepts],
            0.0,
        )
    yield from _source_claims(results, best, others, case, bootstrap)


def _source_claims(
    results: PlantedResults, best: str, others: dict[str, str], case: PlantedCase, bootstrap: Bootstrap
) -> Iterator[Claim]:
    claim = partial(make_claim, bootstrap=bootstrap, of="concepts")
    own = results.runs[best]
    scores = {concept: outcome.circuit for concept, outcome in own.items() if outcome.circuit}
    yield claim(
        "sources_precision",
        f"precision of the sources of {best}'s circuits, mean over the concepts found",
        [each.precision for each in scores.values() if each.precision is not None],
        case.told,
    )
    yield claim(
        "sources_recall",
        f"recall of the sources of {best}'s circuits, mean over the concepts found",
        [each.recall for each in scores.values()],
        case.told,
    )
    difference = f"F1 of the sources of {best}'s circuits minus F1 of the sources"
    for name, other in others.items():
        theirs = {concept: outcome.source_score for concept, outcome in results.runs[other].items()}
        yield claim(
            f"sources_above_{name}",
            f"{difference} of {other} by gradient, on concepts that both found",
            [scores[c].f1 - their.f1 for c in scores if (their := theirs.get(c))],
            0.0,
        )
    yield claim(
        "sources_above_gradients",
        f"{difference} of the same features by gradient",
        [scores[c].f1 - gradient.f1 for c in scores if (gradient := own[c].gradient)],
        0.0,
    )


# Text


def _answer(results: PlantedResults, best: str, case: PlantedCase) -> list[str]:
    own = results.runs[best]
    found = sum(outcome.is_found for outcome in own.values())
    scores = [outcome.circuit for outcome in own.values() if outcome.circuit]
    first = (
        f"The best transcoders ({best}) have a feature for {found} of {len(results.concepts)} concepts (F1 of at least "
        f"{number(case.found)} on held-out documents)."
    )
    if not scores:
        return [first]
    precision, recall = (number(mean_of(each, scores)) or "undefined" for each in ("precision", "recall"))
    return [first, f"The sources of their circuits are cues with precision {precision} and recall {recall}."]


def _method(results: PlantedResults, best: str, case: PlantedCase) -> Iterator[str]:
    yield (
        "Features and thresholds are chosen on one half of the documents and scored on the other. Sources are the "
        "fewest tokens that hold a certain share of what all tokens contribute; the share is chosen on the first half."
    )
    held = {
        f"{run}, {method}": next((o.shares[at] for o in outcomes.values() if o.shares[at]), None)
        for run, outcomes in results.runs.items()
        for at, method in enumerate(("through circuits", "by gradient"))
    }
    listed = "; ".join(f"{key}: {number(value)}" for key, value in held.items() if value)
    if listed:
        yield f"Shares chosen: {listed}."
    by_run = "; ".join(
        f"{run}: {number(sum(o.is_found for o in outcomes.values()) / len(outcomes))} by single features, "
        f"{number(sum(o.feature.f1_together >= case.found for o in outcomes.values()) / len(outcomes))} by sets"
        for run, outcomes in results.runs.items()
    )
    yield f"Share of the concepts found, by run: {by_run}."
    own = results.runs[best]
    missed = sorted(
        (c for c in results.concepts if not own[c].is_found), key=lambda c: -(own[c].feature.f1 or 0.0)
    )
    if missed:
        listed = ", ".join(f"{concept} ({number(own[concept].feature.f1)})" for concept in missed)
        yield f"Concepts without a single feature of {best} (F1 of the best one): {listed}."
        split = [c for c in missed if own[c].feature.f1_together >= case.found]
        if split:
            yield f"Of these, a set of features of one layer finds: {', '.join(split)}."
    scores = [outcome.circuit for outcome in own.values() if outcome.circuit]
    contextual = [outcome.circuit for outcome in own.values() if outcome.circuit and outcome.contextual]
    if contextual:
        precision, recall, strict = (
            number(mean_of(each, contextual)) for each in ("precision", "recall", "strict")
        )
        yield (
            f"Of the {len(scores)} concepts found, {len(contextual)} need cues other than the word itself. On these "
            f"the sources of {best}'s circuits have precision {precision} and recall {recall}. With optional words "
            f"counted as wrong, the precision is {strict}, and {number(mean_of('strict', scores))} over all concepts "
            "found."
        )


# Table


def _rows(name: str, results: PlantedResults) -> Iterator[dict[str, Any]]:
    for run, outcomes in results.runs.items():
        for concept, outcome in outcomes.items():
            feature = outcome.feature
            row = {
                "case_study": name,
                "run": run,
                "kind": outcome.kind,
                "concept": concept,
                "found": outcome.is_found,
            }
            row |= {
                column: getattr(feature, column)
                for column in (*MATCH_COLUMNS, "together_layer", "n_together")
            }
            row |= {"f1_together": None if np.isnan(feature.f1_together) else feature.f1_together}
            row |= {"n_traced": outcome.gradient.n if outcome.gradient else None}
            both = ((outcome.circuit, "circuit"), (outcome.gradient, "gradient"))
            for (score, method), share in zip(both, outcome.shares, strict=True):
                row |= {f"{method}_share": share}
                row |= {
                    f"{method}_{field}": getattr(score, field, None)
                    for field in ("precision", "strict", "recall")
                }
            yield row


# Pictures


@styled
def draw_concepts(results: PlantedResults, runs: Sequence[str], bound: float) -> Figure:
    """Draw the F1 of each concept in some runs. Concepts are sorted by their F1 in the first run."""

    def f1(run: str, concept: str) -> float:
        return results.runs[run][concept].feature.f1 or 0.0

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
    """Draw the mean precision and recall of the sources in each run, with intervals over concepts."""
    rows = [
        (f"{run}, {method}", [score for o in outcomes.values() if (score := getattr(o, kind))])
        for run, outcomes in results.runs.items()
        for kind, method in (("circuit", "circuits"), ("gradient", "gradients"))
    ]
    rows = [(label, scores) for label, scores in rows if scores][::-1]
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(rows))
    for name, colour, marker, shift in (
        ("precision", COLOURS[0], "o", 0.12),
        ("recall", COLOURS[1], "s", -0.12),
    ):
        values = [[v for each in scores if (v := getattr(each, name)) is not None] for _, scores in rows]
        middle, low, high = bootstrap.means(values)
        axes.errorbar(
            middle,
            place + shift,
            xerr=[middle - low, high - middle],
            fmt=marker,
            color=colour,
            capsize=3,
            label=name,
        )
    axes.set_yticks(place, [f"{label} ({len(scores)} concepts)" for label, scores in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share (0 to 1), mean over the concepts found")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
