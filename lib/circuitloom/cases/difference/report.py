"""Report of the case study of a logit difference: claims, text, tables and pictures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ...ablation.behaviour import faithfulness_rows
from ...ablation.common_circuit import CommonCircuit, common_outcomes, edge_rows, node_rows
from ...ablation.faithfulness import FaithfulnessCurve
from ...attribution.drawing import GraphDrawing, graph_figure
from ...attribution.trace_tables import TraceRows
from ...config.cases.difference import DifferenceCase
from ...core.plotting import BLUE, GREEN, VERMILION, styled
from ...corpus.templates import FINDING, TESTING, DrawnPrompt
from ..case_report import CaseReport, number, outcome_rows
from ..claims import Bootstrap, Claim, Statistic, fraction_of, make_claim
from ..common_circuit import (
    CommonResults,
    common_claims,
    common_figure,
    common_sentences,
    metric_rows,
    recovered_share,
    worth_share,
)
from .attention import AnswerAttention, attention_claims, attention_sentences
from .measurements import BasisCurve, CircuitMetrics, FoundCircuit

CONDITIONS = (
    "untouched",
    "nothing kept",
    "circuit alone",
    "without circuit",
    "without its features",
    "without errors",
)
"""Values of the column `condition` in the table `outcome`."""
MAX_NAMED = 10
"""Maximum number of components that the text names."""
COMPONENTS_SHOWN = 25
"""Maximum number of components in the picture."""
Row = dict[str, Any]


@dataclass(frozen=True)
class DifferenceResults:
    """All measurements of the case study."""

    name: str
    case: DifferenceCase
    drawn: Sequence[DrawnPrompt]
    notes: Sequence[str]
    """Lines that say how texts and answers were read, where a reader may think otherwise."""
    circuit: FoundCircuit
    metric: Float[Tensor, "drawn condition"]
    """Metric of each prompt under each condition of `CONDITIONS`."""
    metrics: CircuitMetrics
    curves: Sequence[BasisCurve]
    """Curve of features and heads. If neurons were measured, a curve of neurons and heads follows."""
    traces: Sequence[TraceRows]
    attention: AnswerAttention | None = None
    """Why a head reads the right token's place; None if it was not asked for."""
    common: CommonCircuit | None = None
    """Common circuits of the templates. None if no graphs are aggregated."""

    @property
    def common_results(self) -> CommonResults | None:
        """The common circuits, next to the metric of the untouched model."""
        if self.common is None:
            return None
        untouched = self.metric[:, CONDITIONS.index("untouched")]
        halves = [prompt.half for prompt in self.drawn]
        return CommonResults(self.common, self.case, "logit difference", halves, untouched)


def make_report(results: DifferenceResults) -> CaseReport:
    """Returns the report of the case study."""
    case = results.case
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    size = len(results.circuit.circuit)
    claims = difference_claims(results.metrics, case, bootstrap, size)
    if results.attention is not None:
        bounds = (case.attends, case.attention_share, case.attention_remaining)
        claims += attention_claims(results.attention, *bounds, bootstrap)
    if results.common_results is not None:
        claims += common_claims(results.common_results, bootstrap)
    by_name = {claim.name: claim for claim in claims}
    components = component_rows(results, bootstrap)
    pruned = (size, by_name["faithful"].value, by_name["necessary"].value)
    curves = {each.name: each.curve for each in results.curves}
    halves = Counter(prompt.half for prompt in results.drawn)
    first, common = results.drawn[0], results.common
    return CaseReport(
        case=results.name,
        title=f"{first.target} at the end of {first.text!r}",
        question=(
            f"Which features of the transcoders and which attention heads make the logit difference on prompts such as "
            f"{first.text!r} ({first.target})?"
        ),
        answer=_answer(results, components, by_name),
        claims=claims,
        tables={
            "outcome": _outcome_rows(results),
            "component": components,
            "faithfulness": [row for each in results.curves for row in _curve_rows(results, each)],
            "aggregate_node": [] if common is None else list(node_rows(results.name, common)),
            "aggregate_edge": [] if common is None else list(edge_rows(results.name, common)),
        },
        figures={
            "curve": (
                draw_curves(curves, pruned, case.share),
                f"Share of the logit difference with the top k components alone, and without them. Components are "
                f"ranked on the {halves[FINDING]} finding prompts and measured on the {halves[TESTING]} testing "
                "prompts.",
            ),
            "components": (
                draw_components(components),
                f"Share of the logit difference that the circuit alone loses without each component, testing half, "
                f"with intervals over prompts; the {min(size, COMPONENTS_SHOWN)} of {size} components with the "
                "largest share. Heads are LAYER.NUMBER, features LAYER/NUMBER.",
            ),
            "graph": (
                graph_figure(list(map(GraphDrawing.of, results.traces))),
                "Pruned attribution graphs of finding prompts. Edges are direct effects between features, through any "
                "number of heads.",
            ),
            "common": common_figure(common, results.circuit.experiment.model.layers, case.traced),
        },
        method=_method(results, components),
    )


# Claims


def difference_claims(
    metrics: CircuitMetrics, case: DifferenceCase, bootstrap: Bootstrap, size: int
) -> list[Claim]:
    """Returns all claims about a circuit of `size` components. If neurons were measured, the last claim compares
    features with neurons."""
    claims = [*_model_claims(metrics, case, bootstrap), *_circuit_claims(metrics, case, bootstrap, size)]
    if metrics.neuron_curve is None:
        return claims
    return [*claims, _fewer_claim(metrics.curve, metrics.neuron_curve, case, bootstrap)]


def _model_claims(metrics: CircuitMetrics, case: DifferenceCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    right = (metrics.preferred > 0).double().tolist()
    statement = "share of prompts on which the model prefers the right token"
    yield make_claim("behaves", statement, right, case.positive, bootstrap)
    statement = "mean logit difference of the model, nats"
    yield make_claim("prefers", statement, metrics.preferred.tolist(), case.difference, bootstrap)
    rows = metric_rows([metrics.transcoded, metrics.none, metrics.untouched])
    statement = "share of the difference with transcoders instead of MLPs, without error terms"
    yield make_claim("explained", statement, rows, case.explained, bootstrap, recovered_share)


def _circuit_claims(
    metrics: CircuitMetrics, case: DifferenceCase, bootstrap: Bootstrap, size: int
) -> Iterator[Claim]:
    ends = [metrics.none, metrics.untouched]
    statement = f"share of the difference that the circuit of {size} components recovers alone"
    rows = metric_rows([metrics.alone, *ends])
    yield make_claim("faithful", statement, rows, case.share, bootstrap, recovered_share)
    remaining = (
        ("necessary", "without the circuit", metrics.without, case.remaining),
        (
            "through_features",
            "without the circuit's features, all heads intact",
            metrics.without_features,
            case.remaining_features,
        ),
    )
    for name, how, metric, bound in remaining:
        statement = f"share of the difference that remains {how}"
        rows = metric_rows([metric, *ends])
        yield make_claim(name, statement, rows, bound, bootstrap, recovered_share, relation="below")
    statement = (
        "mean distance between circuit and model, both without the same random subset of the circuit, as a share of "
        "the difference"
    )
    rows = metric_rows([*ends, *(metrics.subset_circuit - metrics.subset_model).T])
    yield make_claim("complete", statement, rows, case.gap, bootstrap, mean_gap, relation="below")
    measured = metrics.worth.shape[1]
    which = (
        "the circuit's components"
        if measured == size
        else f"{measured} components of the circuit, drawn at random,"
    )
    statement = f"share of {which} whose removal lowers the circuit's metric"
    rows = metric_rows(list(metrics.worth.T))
    yield make_claim("minimal", statement, rows, case.minimal, bootstrap, positive_share)


def _fewer_claim(
    curve: FaithfulnessCurve, neurons: FaithfulnessCurve, case: DifferenceCase, bootstrap: Bootstrap
) -> Claim:
    n_features, n_neurons = curve.n_kept.double().numpy(), neurons.n_kept.double().numpy()
    columns = [curve.untouched, *curve.kept.T, *neurons.kept.T]
    return make_claim(
        "fewer",
        f"number of features and heads that recover {case.share:g} of the difference alone, divided by the number of "
        "neurons and heads",
        metric_rows(columns),
        case.fewer,
        bootstrap,
        needed_ratio(n_features, n_neurons, case.share),
        relation="below",
    )


def mean_gap(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns the mean over k of |gap_k|, divided by (untouched - none). Every term is a column mean. The columns are
    none, untouched, gap_0, gap_1, and so on."""
    means = rows.mean(1)
    return fraction_of(np.abs(means[:, 2:]).mean(1), means[:, 1] - means[:, 0])


def positive_share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns the share of columns whose mean is above 0, or NaN if there are no columns."""
    if not rows.shape[2]:
        return np.full(len(rows), np.nan)
    return (rows.mean(1) > 0).mean(1)


def needed_ratio(
    n_first: Float[np.ndarray, " size"], n_second: Float[np.ndarray, " other"], wanted: float
) -> Statistic:
    """Returns a statistic: the number of components that the first basis needs, divided by the number that the second
    basis needs.

    A basis needs n components if its top n components alone reach the share `wanted`. The first column of the rows is
    the metric of the untouched model. Next come metrics with the top n components of the first basis alone, with one
    column per n in `n_first`. The columns of the second basis follow, with one column per n in `n_second`.
    """

    def statistic(rows: np.ndarray) -> np.ndarray:
        means = rows.mean(1)
        first, second = np.split(means[:, 1:], [len(n_first)], 1)
        counts = [
            needed(n, fraction_of(kept - kept[:, :1], means[:, :1] - kept[:, :1]), wanted)
            for n, kept in ((n_first, first), (n_second, second))
        ]
        return fraction_of(*counts)

    return statistic


def needed(
    n_kept: Float[np.ndarray, " size"], shares: Float[np.ndarray, "sample size"], wanted: float
) -> Float[np.ndarray, " sample"]:
    """Returns the number of components with which each curve first reaches `wanted`, or NaN if a curve stays below
    `wanted`. The number is interpolated linearly between measured points."""
    enough = shares >= wanted
    place = np.maximum(1, enough.argmax(1))
    sample = np.arange(len(shares))
    before, after = shares[sample, place - 1], shares[sample, place]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (wanted - before) / (after - before)
    reached = n_kept[place - 1] + part * (n_kept[place] - n_kept[place - 1])
    return np.where(enough.any(1), reached, np.nan)


# Text


def _answer(results: DifferenceResults, components: Sequence[Row], claims: Mapping[str, Claim]) -> list[str]:
    if not len(results.circuit.top):
        return [
            "Ablating all components does not lower the logit difference on the finding prompts: there is no circuit "
            "to find."
        ]
    own = [row for row in components if row["in_circuit"]]
    kinds = Counter(row["kind"] for row in own)
    best = max((row for row in own if row["worth"] is not None), key=lambda row: row["worth"], default=None)
    faithful = number(claims["faithful"].value) or "an unknown share"
    necessary = number(claims["necessary"].value) or "an unknown share"
    first = (
        f"A circuit of {kinds['feature']} features and {kinds['head']} heads recovers {faithful} of the logit "
        f"difference alone on unseen prompts, and {necessary} remains without it."
    )
    if best is None:
        return [first]
    return [
        first,
        f"Its most important component is {best['kind']} {component_name(best)}, without which it loses "
        f"{number(best['worth'])} of the difference.",
    ]


def _method(results: DifferenceResults, components: Sequence[Row]) -> list[str]:
    circuit, halves = results.circuit, Counter(prompt.half for prompt in results.drawn)
    prompts = (
        f"{len(results.drawn)} prompts: the circuit is found on the {halves[FINDING]} of the finding half and tested "
        f"on the {halves[TESTING]} of the testing half. Ablated components are set to "
        f"{'zero' if results.case.ablation == 'zero' else 'their mean over the finding half'}."
    )
    read = [f"How prompts and answers were read: {_listed(results.notes)}."] if results.notes else []
    common = [] if results.common_results is None else common_sentences(results.common_results)
    if not len(circuit.top):
        return [prompts, *common, *read]
    own = [row for row in components if row["in_circuit"]]
    features = Counter(row["layer"] for row in own if row["kind"] == "feature")
    layers = ", ".join(f"{n} of layer {layer}" for layer, n in sorted(features.items()))
    heads = sorted(component_name(row) for row in own if row["kind"] == "head")
    named = f" ({', '.join(heads)})" if heads else ""
    best = sorted((row for row in own if row["worth"] is not None), key=lambda row: -row["worth"])
    sentences = [
        f"{prompts} The first {len(circuit.top)} of {len(circuit.experiment.basis)} features and heads, ranked by "
        f"{circuit.ranking.name}, recover at least {(1 + results.case.recovered) / 2:g} of the logit difference on the "
        f"finding half. Pruning keeps {len(own)}, which recover {number(circuit.recovered)} there: "
        f"{features.total()} features{f' ({layers})' if layers else ''} and {len(heads)} heads{named}.",
        "On the testing half the circuit loses most without "
        + ", ".join(
            f"{row['kind']} {component_name(row)} ({number(row['worth'])})" for row in best[:MAX_NAMED]
        )
        + "."
        if best
        else "",
        _measured(results),
        _needed(results),
        _graph_overlap(
            results, {(row["layer"], row["component"]) for row in own if row["kind"] == "feature"}
        ),
        *(attention_sentences(results.attention) if results.attention is not None else ()),
        *common,
        *read,
    ]
    return [sentence for sentence in sentences if sentence]


def _measured(results: DifferenceResults) -> str:
    """Returns a sentence that says which worths were measured, if not all were."""
    size, measured = len(results.circuit.circuit), len(results.metrics.place)
    most = results.case.measured
    if most is None or len(results.circuit.top) <= most:
        return ""
    estimated = (
        f"In circuits of more than {most} components, pruning orders components by a first-order estimate of what the "
        "circuit loses."
    )
    if measured == size:
        return estimated
    return (
        f"{estimated} On the testing half, the loss without a component is measured for {measured} of {size}."
    )


def _listed(notes: Sequence[str]) -> str:
    more = f"; and {len(notes) - MAX_NAMED} more" if len(notes) > MAX_NAMED else ""
    return "; ".join(notes[:MAX_NAMED]) + more


def _needed(results: DifferenceResults) -> str:
    share = results.case.share
    counts = [
        f"{needed} {each.name} (ranked by {each.ranking.name})"
        for each in results.curves
        if (needed := each.curve.needed(share)) is not None
    ]
    if not counts:
        return ""
    return (
        f"Of the sizes tried on the testing half, the smallest that recover {share:g} of the difference alone are "
        f"{' and '.join(counts)}."
    )


def _graph_overlap(results: DifferenceResults, circuit: set[tuple[int, int]]) -> str:
    sentences = []
    for rows in results.traces:
        nodes = {
            (row["layer"], row["feature"])
            for row in rows.nodes()
            if row["in_graph"] and row["kind"] == "feature"
        }
        score = rows.trace.graph.scores.replacement
        sentences.append(
            f"The attribution graph of {rows.trace.prompt.text!r} has {len(nodes)} features, {len(nodes & circuit)} of "
            f"them in the circuit; its replacement score is {number(score)}."
        )
    return " ".join(sentences)


# Tables


def component_rows(results: DifferenceResults, bootstrap: Bootstrap) -> list[Row]:
    """Returns rows of the table `component`, in the order of the ranking. Each component of the circuit before pruning
    has one row."""
    circuit, metrics = results.circuit, results.metrics
    inside = set(circuit.circuit.tolist())
    columns = {component: i for i, component in enumerate(circuit.circuit[metrics.place].tolist())}
    part, inner = (column.tolist() for column in circuit.experiment.basis.locate(circuit.top))
    ends = np.stack([metrics.none.numpy(), metrics.untouched.numpy()], 1)
    rows = []
    for rank, component in enumerate(circuit.top.tolist()):
        own = circuit.experiment.basis.parts[part[rank]]
        worth = low = high = None
        if component in columns:
            loss = metrics.worth[:, columns[component]].numpy()
            worth, low, high = bootstrap.interval(np.column_stack([loss, ends]), worth_share)
        rows.append(
            {
                "case_study": results.name,
                "rank": rank,
                "kind": own.kind,
                "run": own.run,
                "layer": own.site.layer,
                "component": inner[rank],
                "attribution": float(circuit.ranking.attribution[component]),
                "worth": worth,
                "worth_low": low,
                "worth_high": high,
                "in_circuit": component in inside,
                "helps": None if low is None else low > 0,
            }
        )
    return rows


def _outcome_rows(results: DifferenceResults) -> list[Row]:
    prompts = [(i, prompt.text, prompt.half) for i, prompt in enumerate(results.drawn)]
    rows = [
        row
        for condition, values in zip(CONDITIONS, results.metric.T.tolist(), strict=True)
        for row in outcome_rows(results.name, "logit difference", condition, prompts, values)
    ]
    if results.common is not None:
        texts = [(prompt.text, prompt.half) for prompt in results.drawn]
        rows += common_outcomes(results.name, "logit difference", results.common, texts)
    return rows


def _curve_rows(results: DifferenceResults, curve: BasisCurve) -> list[Row]:
    names = {
        "behaviour": results.name,
        "basis": curve.basis.name,
        "ablation": results.case.ablation,
        "ranking": curve.ranking.name,
    }
    return faithfulness_rows(names, len(curve.basis), curve.curve)


# Pictures


@styled
def draw_curves(
    curves: Mapping[str, FaithfulnessCurve], circuit: tuple[int, float | None, float | None], wanted: float
) -> Figure:
    """Draw the share of the difference with the top k components alone, and with these components ablated.

    Each basis has two curves. `circuit` is (size, share alone, share without) of the pruned circuit.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour, style in zip(curves.items(), (BLUE, VERMILION), ("--", ":"), strict=False):
        # leave out k = 0, which a logarithmic axis cannot show
        k = curve.n_kept.numpy()[1:]
        axes.plot(
            k, curve.faithfulness.numpy()[1:], color=colour, marker="o", markersize=3, label=f"{name}, alone"
        )
        axes.plot(
            k, curve.remaining.numpy()[1:], color=colour, linestyle=style, label=f"all but these {name}"
        )
    size, alone, without = circuit
    if alone is not None and without is not None:
        axes.plot([size], [alone], "*", color=GREEN, markersize=13, zorder=3, label="pruned circuit, alone")
        axes.plot(
            [size], [without], "X", color=GREEN, markersize=9, zorder=3, label="all but the pruned circuit"
        )
    axes.axhline(wanted, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_ylim(-0.3, 1.5)
    axes.set_xlabel("number k of components kept (or ablated), top-ranked first")
    axes.set_ylabel("share of the logit difference")
    axes.legend(fontsize=8, loc="best")
    return figure


@styled
def draw_components(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the share of the difference that the circuit loses without each component, by descending share. `rows` are
    rows of the table `component`."""
    own = [row for row in rows if row["worth_low"] is not None]
    own = sorted(own, key=lambda row: -row["worth"])[:COMPONENTS_SHOWN]
    figure = Figure(figsize=(6.5, max(2.0, 0.24 * len(own) + 1)), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(own))
    worth = np.array([row["worth"] for row in own])
    for kind, colour in (("head", VERMILION), ("feature", BLUE)):
        chosen = [i for i, row in enumerate(own) if row["kind"] == kind]
        ends = [[own[i]["worth"] - own[i]["worth_low"] for i in chosen],
                [own[i]["worth_high"] - own[i]["worth"] for i in chosen]]  # fmt: skip
        if chosen:
            axes.errorbar(
                worth[chosen], place[chosen], xerr=np.maximum(ends, 0), fmt="o", color=colour, markersize=4,
                linewidth=1.2, label=kind,
            )  # fmt: skip
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(place, [component_name(row) for row in own], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of the logit difference that the circuit loses without it")
    if own:
        axes.legend(fontsize=8, loc="lower right")
    return figure


def component_name(row: Mapping[str, Any]) -> str:
    """Returns the name of a component: LAYER.NUMBER for a head, LAYER/NUMBER for a feature."""
    return f"{row['layer']}{'.' if row['kind'] == 'head' else '/'}{row['component']}"
