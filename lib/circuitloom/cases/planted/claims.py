"""What is claimed of the planted concepts, and said of them."""

from collections.abc import Iterator
from functools import partial

from ...config.cases.planted import PlantedCase
from ...evaluation.names import NEURONS
from ..case_report import number
from ..claims import Bootstrap, Claim, measured
from .results import SAE, PlantedResults
from .sources import mean_of


def claims(results: PlantedResults, best: str, case: PlantedCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """The claims about the best transcoders, and about them beside the best SAEs and the neurons."""
    kinds = {"saes": SAE, "neurons": NEURONS}
    others = {name: run for name, kind in kinds.items() if (run := results.best(kind, case.found))}
    claim = partial(measured, bootstrap=bootstrap, of="concepts")
    mine = results.runs[best]
    yield claim(
        "found",
        f"the share of planted concepts that a single feature of the best transcoders ({best}) says with an F1 of at "
        f"least {number(case.found)}",
        [float(mine[concept].is_found) for concept in results.concepts],
        case.discovered,
    )
    yield claim(
        "found_together",
        f"the same share for sets of up to {case.together} features of a layer",
        [float(mine[concept].found.f1_together >= case.found) for concept in results.concepts],
        case.discovered,
    )
    for name, other in others.items():
        theirs = results.runs[other]
        yield claim(
            f"found_above_{name}",
            f"the share found by {best} less that found by {other}",
            [float(mine[c].is_found) - float(theirs[c].is_found) for c in results.concepts],
            0.0,
        )
    yield from _source_claims(results, best, others, case, bootstrap)


def _source_claims(
    results: PlantedResults, best: str, others: dict[str, str], case: PlantedCase, bootstrap: Bootstrap
) -> Iterator[Claim]:
    claim = partial(measured, bootstrap=bootstrap, of="concepts")
    mine = results.runs[best]
    told = {concept: outcome.circuit for concept, outcome in mine.items() if outcome.circuit}
    yield claim(
        "sources_precision",
        f"the precision of the sources of {best}'s circuits, mean over the concepts found",
        [each.precision for each in told.values() if each.precision is not None],
        case.told,
    )
    yield claim(
        "sources_recall", "the recall of the same sources", [each.recall for each in told.values()], case.told
    )
    less = f"the F1 of the sources of {best}'s circuits less that of the sources of"
    for name, other in others.items():
        theirs = {concept: outcome.told for concept, outcome in results.runs[other].items()}
        yield claim(
            f"sources_above_{name}",
            f"{less} {other} by gradient, on concepts that both found",
            [told[c].f1 - their.f1 for c in told if (their := theirs.get(c))],
            0.0,
        )
    yield claim(
        "sources_above_gradients",
        f"{less} the same features by gradient",
        [told[c].f1 - own.f1 for c in told if (own := mine[c].gradient)],
        0.0,
    )


def remarks(results: PlantedResults, best: str, case: PlantedCase) -> Iterator[str]:
    """What was found and what was not, in sentences."""
    mine = results.runs[best]
    shares = "; ".join(
        f"{run} {number(sum(o.is_found for o in outcomes.values()) / len(outcomes))} by single features, "
        f"{number(sum(o.found.f1_together >= case.found for o in outcomes.values()) / len(outcomes))} by sets"
        for run, outcomes in results.runs.items()
    )
    yield f"Share of the concepts found: {shares}."
    missed = sorted(
        (c for c in results.concepts if not mine[c].is_found), key=lambda c: -(mine[c].found.f1 or 0.0)
    )
    if missed:
        listed = ", ".join(f"{concept} ({number(mine[concept].found.f1)})" for concept in missed)
        yield f"No single feature of {best} says these concepts well enough (F1): {listed}."
        apart = [c for c in missed if mine[c].found.f1_together < case.found]
        if apart:
            yield f"Nor does a set of its features say these: {', '.join(apart)}."
    told = [outcome.circuit for outcome in mine.values() if outcome.circuit]
    needing = [outcome.circuit for outcome in mine.values() if outcome.circuit and outcome.contextual]
    if needing:
        precision, recall, strict = (
            number(mean_of(each, needing)) for each in ("precision", "recall", "strict")
        )
        yield (
            f"Of the {len(told)} concepts found, {len(needing)} need more than the word itself to be told; over these "
            f"the sources of {best}'s circuits have a precision of {precision} and a recall of {recall}. Were optional "
            f"words counted as wrong, the precision would be {strict}, over all concepts found "
            f"{number(mean_of('strict', told))}."
        )
    held = {
        f"{run}, {method}": next((o.shares[at] for o in outcomes.values() if o.shares[at]), None)
        for run, outcomes in results.runs.items()
        for at, method in enumerate(("through circuits", "by gradient"))
    }
    listed = "; ".join(f"{key}: {number(value)}" for key, value in held.items() if value)
    yield (
        "Sources are the fewest tokens that hold a certain share of what all tokens contribute, a share chosen on the "
        f"other half of the documents: {listed}."
    )
