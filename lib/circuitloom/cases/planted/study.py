"""The benchmark of planted concepts: a feature for each, and a circuit that comes from the words that tell it."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...config.cases.planted import PlantedCase
from ...evaluation.concepts import concept_annotations
from ...evaluation.held_out import HeldOut
from ...evaluation.names import NEURONS
from ..case_report import CaseReport, number
from ..claims import Bootstrap
from ..context import CaseContext
from .activations import by_layer
from .claims import claims, remarks
from .figures import draw_concepts, draw_sources
from .found import ConceptFeature, find_features
from .results import SAE, TRANSCODER, ConceptOutcome, PlantedResults
from .sources import SourceScore, Traced, choose_share, judge, trace_circuits, trace_gradients

BATCH = 32
"""Sequences that go through the model at once."""
CONCEPTS_SHOWN = "F1 of the best single feature of each concept on held-out documents; the line is at {}."
SOURCES_SHOWN = (
    "Precision and recall of the tokens that features come from, against the words that tell their concepts."
)


def study_planted(
    name: str,
    opened: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    matched: pa.Table,
    case: PlantedCase,
) -> CaseReport:
    """Score `opened.runs`, and neurons, against the planted concepts.

    `concepts` are the labels with their cues; `matched` the features that say each concept best, as `evaluation`
    writes them for dictionaries and for the model's own bases. Raises ValueError where a run was not matched.
    """
    runs = [*opened.runs, *[NEURONS] * case.neurons]
    matched = matched.filter(pc.field("run").isin(runs))
    missing = set(runs) - set(matched["run"].to_pylist())
    if missing:
        raise ValueError(
            f"no feature of {sorted(missing)[0]} was matched with a concept; add its feature_concept table"
        )
    labels = concept_annotations(concepts, held_out)
    activations = by_layer(opened, held_out, BATCH, case.neurons)
    found = find_features(matched, activations, held_out, labels, case)
    results = _trace(opened, held_out, concepts, found, case)
    transcoders = results.best(TRANSCODER, case.found)
    shown = [run for kind in (TRANSCODER, SAE, NEURONS) if (run := results.best(kind, case.found))]
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    return CaseReport(
        case=name,
        title=f"which of {len(results.concepts)} planted concepts were found, and where their features come from",
        claims=list(claims(results, transcoders, case, bootstrap)) if transcoders else [],
        tables={"planted": list(_rows(name, results))},
        figures={
            "concepts": (
                draw_concepts(results, shown, case.found),
                CONCEPTS_SHOWN.format(number(case.found)),
            ),
            "sources": (draw_sources(results, bootstrap), SOURCES_SHOWN),
        },
        remarks=list(remarks(results, transcoders, case)) if transcoders else [],
    )


def _kind(opened: CaseContext, run: str) -> str:
    if run == NEURONS:
        return NEURONS
    first = next(iter(opened.runs[run].values()))
    return TRANSCODER if first.is_transcoder else SAE


def _trace(
    opened: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    found: Sequence[ConceptFeature],
    case: PlantedCase,
) -> PlantedResults:
    kinds = {run: _kind(opened, run) for run in [*opened.runs, NEURONS]}
    good = [(each.f1 or 0.0) >= case.found for each in found]
    traced = [each for each, is_found in zip(found, good, strict=True) if is_found]
    in_circuits = [each for each in traced if kinds[each.run] == TRANSCODER]
    circuits = _judged(trace_circuits(opened, held_out, concepts, in_circuits), in_circuits, case)
    gradient_effects = trace_gradients(opened, held_out, concepts, traced)
    gradients = _judged(gradient_effects, traced, case)
    contextual = {
        traced[at].concept
        for (at, _), places in gradient_effects.items()
        if any(place.cues != [[place.position]] for place in places)
    }
    runs: dict[str, dict[str, ConceptOutcome]] = {}
    for each, is_found in zip(found, good, strict=True):
        key = (each.run, each.concept)
        (circuit, share), (gradient, other) = (told.get(key, (None, None)) for told in (circuits, gradients))
        runs.setdefault(each.run, {})[each.concept] = ConceptOutcome(
            kinds[each.run], each, is_found, circuit, gradient, (share, other), each.concept in contextual
        )
    return PlantedResults(runs)


def _judged(
    traced: Traced, found: Sequence[ConceptFeature], case: PlantedCase
) -> dict[tuple[str, str], tuple[SourceScore | None, float]]:
    """Of each run and concept how well its sources tell it, and the share that the run's sources hold."""
    result = {}
    for run in {each.run for each in found}:
        numbers = [at for at, each in enumerate(found) if each.run == run]
        share = choose_share(traced, numbers, case.shares)
        for at in numbers:
            result[run, found[at].concept] = judge(traced.get((at, "scoring"), []), share), share
    return result


def _rows(name: str, results: PlantedResults) -> Iterator[dict[str, Any]]:
    columns = ("layer", "feature", "threshold", "precision", "recall", "f1", "f1_choosing")
    for run, outcomes in results.runs.items():
        for concept, outcome in outcomes.items():
            found = outcome.found
            row = {
                "case_study": name,
                "run": run,
                "kind": outcome.kind,
                "concept": concept,
                "found": outcome.is_found,
            }
            row |= {column: getattr(found, column) for column in (*columns, "together_layer", "n_together")}
            row |= {"f1_together": found.f1_together if found.f1_together == found.f1_together else None}
            row |= {"n_traced": outcome.gradient.n if outcome.gradient else None}
            both = ((outcome.circuit, "circuit"), (outcome.gradient, "gradient"))
            for (told, method), share in zip(both, outcome.shares, strict=True):
                row |= {f"{method}_share": share}
                row |= {
                    f"{method}_{figure}": getattr(told, figure, None)
                    for figure in ("precision", "strict", "recall")
                }
            yield row
