"""The feature of each planted concept, what a few of its layer say together, and places where it fires rightly."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...config.cases.planted import PlantedCase
from ...evaluation.concepts import ConceptAnnotations
from ...evaluation.held_out import HeldOut
from .activations import Columns
from .sets import grow_set

CHOSEN = ("layer", "feature", "threshold", "precision", "recall", "f1", "f1_choosing")
"""What a feature's row among those that match a concept says of it."""


@dataclass(frozen=True)
class ConceptFeature:
    """The feature of a run that says a concept best, chosen on the choosing half of the documents."""

    run: str
    concept: str
    layer: int
    feature: int
    threshold: float
    """It says the concept where its activation is above."""
    precision: float | None
    recall: float | None
    f1: float | None
    """On the scoring half; None where it says nothing there, or nothing has the concept."""
    f1_choosing: float
    f1_together: float
    """Of a set of features of one layer, on the scoring half."""
    together_choosing: float
    """Of that set, on the half that it was chosen on."""
    n_together: int
    together_layer: int
    fires: Mapping[str, Int[Tensor, "place 2"]]
    """Half of the documents, choosing or scoring, to (sequence, position) of labelled tokens on which it fires."""


def find_features(
    matched: pa.Table,
    activations: Iterable[tuple[str, int, Columns]],
    held_out: HeldOut,
    labels: ConceptAnnotations,
    case: PlantedCase,
) -> list[ConceptFeature]:
    """The feature of each concept in each run whose `activations` come, by run and then concept.

    `matched` are rows of feature_concept: of each run, layer and concept the features that say it best.
    """
    rows: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for row in matched.to_pylist():
        rows.setdefault((row["run"], row["layer"]), {}).setdefault(row["concept"], []).append(row)
    positive = _positives(labels)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for run, layer, columns in activations:
        for concept, unordered in rows.get((run, layer), {}).items():
            candidates = sorted(unordered, key=lambda row: row["rank"])
            values = columns([row["feature"] for row in candidates])
            fields = best.setdefault((run, concept), {"f1_choosing": -1.0, "together_choosing": -1.0})
            grown = grow_set(values, positive[concept], labels.choosing, case.together)
            if grown.f1_choosing > fields["together_choosing"]:
                fields |= {"together_choosing": grown.f1_choosing, "f1_together": grown.f1}
                fields |= {"n_together": len(grown.columns), "together_layer": layer}
            first = candidates[0]
            if first["f1_choosing"] > fields["f1_choosing"]:
                right = positive[concept] & (values[:, 0] > first["threshold"])
                fields |= {name: first[name] for name in CHOSEN}
                fields |= {"fires": _places(right, held_out, labels, case.occurrences)}
    return [ConceptFeature(run, concept, **fields) for (run, concept), fields in sorted(best.items())]


def _positives(labels: ConceptAnnotations) -> dict[str, Bool[Tensor, " token"]]:
    """Of each concept the tokens that have it."""
    token = torch.repeat_interleave(torch.arange(len(labels.choosing)), labels.start.diff())
    found = {}
    for number, name in enumerate(labels.names):
        found[name] = torch.zeros_like(labels.choosing)
        found[name][token[labels.concept == number]] = True
    return found


def _places(
    right: Bool[Tensor, " token"], held_out: HeldOut, labels: ConceptAnnotations, most: int
) -> dict[str, Int[Tensor, "place 2"]]:
    """The first place of each document, of the first `most` documents of each half."""
    where = held_out.scored.nonzero()
    document = held_out.document[held_out.scored]
    places = {}
    for half, mine in (("choosing", labels.choosing), ("scoring", ~labels.choosing)):
        token = (right & mine).nonzero()[:, 0]
        new = torch.ones_like(token, dtype=torch.bool)
        new[1:] = document[token[1:]] != document[token[:-1]]
        places[half] = where[token[new][:most]]
    return places
