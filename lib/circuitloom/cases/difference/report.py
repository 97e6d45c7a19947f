"""What is told of a circuit for a logit difference: rows, pictures and sentences, all from what was measured."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.behaviour import curve_rows
from ...ablation.components import Basis
from ...ablation.faithfulness import Curve
from ...attribution.drawing import graph_figure
from ...attribution.trace_tables import TraceRows
from ...config.cases.difference import DifferenceCase
from ..case_report import CaseReport, number
from ..claims import Bootstrap
from ..context import FINDING, TESTING
from .circuit import CircuitExperiment, Components, Ranking
from .claims import Tested, make_claims, worth_share
from .drawn import DrawnPrompt
from .figures import SHOWN, component_name, draw_components, draw_curves

CONDITIONS = (
    "untouched",
    "nothing kept",
    "circuit alone",
    "without circuit",
    "without its features",
    "without errors",
)
"""What was done to the model, in `outcome`."""
NAMED = 10
"""Components that the result names."""
Row = dict[str, Any]


@dataclass(frozen=True)
class FoundCircuit:
    """What the finding half says."""

    bench: CircuitExperiment
    ranking: Ranking
    top: Components
    """The fewest top components that recover the share asked for."""
    circuit: Components
    """Those of them that pruning leaves."""
    recovered: float
    """Share of the difference that it recovers there."""

    @property
    def features(self) -> Components:
        """The circuit's features, its heads left out."""
        kinds = [part.kind for part in self.bench.basis.parts]
        part, _ = self.bench.basis.locate(self.circuit)
        return self.circuit[torch.tensor([kinds[i] == "feature" for i in part], dtype=torch.bool)]


@dataclass(frozen=True)
class TopComponents:
    """The top components of a basis on the testing half."""

    name: str
    basis: Basis
    ranking: Ranking
    curve: Curve


@dataclass(frozen=True)
class DifferenceResults:
    """All that a case study of a logit difference has measured."""

    name: str
    case: DifferenceCase
    drawn: Sequence[DrawnPrompt]
    found: FoundCircuit
    metric: Float[Tensor, "drawn condition"]
    """On each prompt under each of `CONDITIONS`."""
    tested: Tested
    measured: Sequence[TopComponents]
    """Features and heads first."""
    traced: Sequence[TraceRows]


def report(results: DifferenceResults) -> CaseReport:
    """Claims, tables, pictures and remarks."""
    case = results.case
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    claims = make_claims(results.tested, case, bootstrap)
    by_name = {claim.name: claim for claim in claims}
    components = component_rows(results, bootstrap)
    size = len(results.found.circuit)
    pruned = (size, by_name["faithful"].value, by_name["necessary"].value)
    curves = {each.name: each.curve for each in results.measured}
    halves = Counter(prompt.half for prompt in results.drawn)
    tables = {
        "outcome": outcome_rows(results),
        "component": components,
        "faithfulness": [row for each in results.measured for row in _curve_rows(results, each)],
    }
    figures = {
        "curve": (
            draw_curves(curves, pruned, case.share),
            f"Share of the logit difference that is kept by the top k components alone, and that is left without "
            f"them, against k. Components were ranked on the {halves[FINDING]} prompts of the finding half and are "
            f"measured here on the {halves[TESTING]} of the testing half.",
        ),
        "components": (
            draw_components(components),
            f"What the circuit alone loses without each of its components, on the testing half, with intervals over "
            f"prompts: heads as LAYER.NUMBER, features as LAYER/NUMBER. Shown are the {min(size, SHOWN)} of {size} "
            "that are worth most.",
        ),
        "graph": (
            graph_figure(results.traced),
            "Pruned attribution graphs of prompts of the finding half: direct effects between features, through any "
            "number of heads.",
        ),
    }
    title = f"the logit difference behind {results.drawn[0].text!r}, and the like"
    return CaseReport(results.name, title, claims, tables, figures, remarks(results, components))


def component_rows(results: DifferenceResults, bootstrap: Bootstrap) -> list[Row]:
    """Rows of `component`: what was taken for the circuit before it was pruned, in the order of the ranking."""
    found, tested = results.found, results.tested
    places = {component: i for i, component in enumerate(found.circuit.tolist())}
    part, inner = (column.tolist() for column in found.bench.basis.locate(found.top))
    ends = np.stack([tested.none.numpy(), tested.untouched.numpy()], 1)
    rows = []
    for rank, component in enumerate(found.top.tolist()):
        own = found.bench.basis.parts[part[rank]]
        worth = low = high = None
        if component in places:
            lost = tested.worth[:, places[component]].numpy()
            worth, low, high = bootstrap.interval(np.column_stack([lost, ends]), worth_share)
        rows.append(
            {
                "case_study": results.name,
                "rank": rank,
                "kind": own.kind,
                "run": own.run,
                "layer": own.site.layer,
                "component": inner[rank],
                "attribution": float(found.ranking.attribution[component]),
                "worth": worth,
                "worth_low": low,
                "worth_high": high,
                "in_circuit": component in places,
                "helps": None if low is None else low > 0,
            }
        )
    return rows


def outcome_rows(results: DifferenceResults) -> list[Row]:
    """Rows of `outcome`."""
    return [
        {
            "case_study": results.name,
            "measure": "logit difference",
            "condition": condition,
            "prompt": i,
            "text": prompt.text,
            "half": prompt.half,
            "value": float(value),
        }
        for condition, column in zip(CONDITIONS, results.metric.T, strict=True)
        for i, (prompt, value) in enumerate(zip(results.drawn, column, strict=True))
    ]


def _curve_rows(results: DifferenceResults, measured: TopComponents) -> list[Row]:
    names = {
        "behaviour": results.name,
        "basis": measured.basis.name,
        "ablation": results.case.ablation,
        "ranking": measured.ranking.name,
    }
    return curve_rows(names, len(measured.basis), measured.curve)


def remarks(results: DifferenceResults, components: Sequence[Row]) -> list[str]:
    """What the circuit is made of, how it was found, and what the attribution graphs share with it."""
    found, halves = results.found, Counter(prompt.half for prompt in results.drawn)
    if not len(found.top):
        return [
            f"On the {halves[FINDING]} prompts of the finding half, ablating every component lowers the logit "
            "difference by nothing: there is no circuit to find."
        ]
    own = [row for row in components if row["in_circuit"]]
    features = Counter(row["layer"] for row in own if row["kind"] == "feature")
    layers = ", ".join(f"{n} of layer {layer}" for layer, n in sorted(features.items()))
    heads = sorted(component_name(row) for row in own if row["kind"] == "head")
    named = f" ({', '.join(heads)})" if heads else ""
    best = sorted((row for row in own if row["worth"] is not None), key=lambda row: -row["worth"])[:NAMED]
    told = [
        f"On the {halves[FINDING]} prompts of the finding half, the first {len(found.top)} of "
        f"{len(found.bench.basis)} features and heads, ranked by {found.ranking.name}, recover at "
        f"least {(1 + results.case.recovered) / 2:g} of the logit difference. Pruning leaves {len(own)}, which recover "
        f"{number(found.recovered)} there: {features.total()} features{f' ({layers})' if layers else ''} and "
        f"{len(heads)} heads{named}.",
        "On the testing half the circuit loses most without "
        + ", ".join(f"{row['kind']} {component_name(row)} ({number(row['worth'])})" for row in best)
        + ".",
        _needed(results),
        _shared_with_graphs(
            results, {(row["layer"], row["component"]) for row in own if row["kind"] == "feature"}
        ),
    ]
    return [sentence for sentence in told if sentence]


def _needed(results: DifferenceResults) -> str:
    share = results.case.share
    counts = [
        f"{needed} {each.name} (ranked by {each.ranking.name})"
        for each in results.measured
        if (needed := each.curve.needed(share)) is not None
    ]
    if not counts:
        return ""
    return f"Of the numbers tried on the testing half, the fewest that recover {share:g} of it alone are " + (
        " and ".join(counts) + "."
    )


def _shared_with_graphs(results: DifferenceResults, circuit: set[tuple[int, int]]) -> str:
    sentences = []
    for rows in results.traced:
        nodes = {
            (row["layer"], row["feature"])
            for row in rows.nodes()
            if row["in_graph"] and row["kind"] == "feature"
        }
        score = rows.trace.graph.scores.replacement
        sentences.append(
            f"The attribution graph of {rows.trace.prompt.text!r} has {len(nodes)} features, of which "
            f"{len(nodes & circuit)} are in the circuit; its replacement score is {number(score)}."
        )
    return " ".join(sentences)
