"""Benchmark of planted concepts: does each concept have a feature, and does the feature read the concept's cues?"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ...config.cases.planted import PlantedCase
from ...core.layout import NEURONS
from ...evaluation.concepts import concept_annotations
from ...evaluation.held_out import HeldOut
from ..case_report import CaseReport
from ..context import CaseContext
from .concept_features import SAE, TRANSCODER, ConceptFeature, activations_by_layer, find_features
from .report import ConceptOutcome, PlantedResults, make_report
from .sources import (
    Contributions,
    SourceScore,
    choose_share,
    score_sources,
    trace_circuits,
    trace_gradients,
)

BATCH = 32
"""Number of sequences per forward pass."""


def study_planted(
    name: str,
    context: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    matched: pa.Table,
    case: PlantedCase,
) -> CaseReport:
    """Returns the report of the case study `name`. The other arguments are those of `measure_planted`."""
    return make_report(name, measure_planted(context, held_out, concepts, matched, case), case)


def measure_planted(
    context: CaseContext, held_out: HeldOut, concepts: pa.Table, matched: pa.Table, case: PlantedCase
) -> PlantedResults:
    """Returns the outcomes of all concepts in the runs of `context`, and in the neurons if `case` asks for them.

    `concepts` is the table `concept`. `matched` is the table `feature_concept` of all dictionaries and of the neurons.
    Raises ValueError if `matched` has no row of a run.
    """
    # 1. The feature of each concept in each run
    runs = [*context.runs, *[NEURONS] * case.neurons]
    matched = matched.filter(pc.field("run").isin(runs))
    missing = set(runs) - set(matched["run"].to_pylist())
    if missing:
        raise ValueError(
            f"no feature of {sorted(missing)[0]} was matched with a concept; add its feature_concept table"
        )
    annotations = concept_annotations(concepts, held_out)
    activations = activations_by_layer(context, held_out, BATCH, case.neurons)
    features = find_features(matched, activations, held_out, annotations, case)
    # 2. Source tokens of the features of found concepts, once through circuits and once by gradient
    found = [each for each in features if _is_found(each, case)]
    kinds = {run: _kind(context, run) for run in [*context.runs, NEURONS]}
    in_circuits = [each for each in found if kinds[each.run] == TRANSCODER]
    circuits = _score_features(trace_circuits(context, held_out, concepts, in_circuits), in_circuits, case)
    contributions = trace_gradients(context, held_out, concepts, found)
    gradients = _score_features(contributions, found, case)
    contextual = {
        found[number].concept
        for (number, _), places in contributions.items()
        if any(place.cues != [[place.position]] for place in places)
    }
    # 3. Outcomes by run and concept
    outcomes: dict[str, dict[str, ConceptOutcome]] = {}
    for each in features:
        key = (each.run, each.concept)
        circuit, circuit_share = circuits.get(key, (None, None))
        gradient, gradient_share = gradients.get(key, (None, None))
        outcomes.setdefault(each.run, {})[each.concept] = ConceptOutcome(
            kinds[each.run],
            each,
            _is_found(each, case),
            circuit,
            gradient,
            (circuit_share, gradient_share),
            each.concept in contextual,
        )
    return PlantedResults(outcomes)


def _is_found(feature: ConceptFeature, case: PlantedCase) -> bool:
    return (feature.f1 or 0.0) >= case.found


def _kind(context: CaseContext, run: str) -> str:
    if run == NEURONS:
        return NEURONS
    return TRANSCODER if next(iter(context.runs[run].values())).is_transcoder else SAE


def _score_features(
    contributions: Contributions, features: Sequence[ConceptFeature], case: PlantedCase
) -> dict[tuple[str, str], tuple[SourceScore | None, float]]:
    """Maps (run, concept) to (score of the sources, share of all contributions). `choose_share` chooses one share per
    run."""
    result = {}
    for run in {each.run for each in features}:
        numbers = [number for number, each in enumerate(features) if each.run == run]
        share = choose_share(contributions, numbers, case.shares)
        for number in numbers:
            score = score_sources(contributions.get((number, "scoring"), []), share)
            result[run, features[number].concept] = score, share
    return result
