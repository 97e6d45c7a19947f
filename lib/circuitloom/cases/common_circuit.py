"""What case studies say of the common circuits of their templates: claims, sentences and a picture."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ..ablation.common_circuit import COMMON_CONDITIONS, CommonCircuit, edge_rows, node_rows
from ..attribution.drawing import GraphDrawing, graph_figure
from ..config.cases.base import CommonCircuitCase
from ..core.plotting import styled
from ..corpus.templates import TESTING
from .case_report import code_span, number
from .claims import Bootstrap, Claim, fraction_of, make_claim

MAX_SHOWN = 5
"""Maximum number of features of a template's common circuit that the text names."""


@dataclass(frozen=True)
class CommonResults:
    """The common circuits of a case study, and what they are compared with."""

    common: CommonCircuit
    case: CommonCircuitCase
    quantity: str
    """What the features add to, such as `logit difference`."""
    half: Sequence[str]
    """Half of each prompt: `finding` or `testing`."""
    untouched: Float[Tensor, " drawn"]
    """Metric of each prompt in the untouched model."""

    def testing(self) -> tuple[Float[Tensor, "prompt condition"], Float[Tensor, " prompt"]]:
        """Returns the metric of each testing prompt under `COMMON_CONDITIONS`, and of the untouched model. Prompts of
        templates without a graph are left out."""
        rows = [i for i in self.common.measured if self.half[i] == TESTING]
        return self.common.metric[rows], self.untouched[rows].double()


def common_claims(results: CommonResults, bootstrap: Bootstrap) -> Iterator[Claim]:
    """Yields the claims about the common circuits on the testing half, each prompt with that of its template."""
    case, common = results.case, results.common
    metric, untouched = results.testing()
    none, alone, without, random = metric[:, :4].T
    ends = [none, untouched]
    sizes = sorted({len(each.circuit) for each in common.templates})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    features = f"{size} features in at least {case.common:.0%} of the template's graphs"
    short = results.quantity.removeprefix("logit ")
    statement = f"share of the {short} that the common circuit ({features}) recovers alone, all heads intact"
    yield make_claim(
        "common_sufficient",
        statement,
        metric_rows([alone, *ends]),
        case.common_alone,
        bootstrap,
        recovered_share,
    )
    statement = f"share of the {short} that remains without the common circuit, all heads intact"
    yield make_claim(
        "common_necessary", statement, metric_rows([without, *ends]), case.common_without, bootstrap,
        recovered_share, relation="below",
    )  # fmt: skip
    statement = (
        f"share of the {short} that the common circuit recovers alone, minus that of as many random active features "
        "per layer"
    )
    rows = metric_rows([alone - random, *ends])
    yield make_claim("common_over_random", statement, rows, case.over_random, bootstrap, worth_share)


def common_sentences(results: CommonResults) -> list[str]:
    """Returns what the common circuits are, and what they and random features do on the testing half."""
    common, case = results.common, results.case
    metric, untouched = results.testing()
    if not len(metric):
        return []
    ends = [metric[:, 0], untouched]
    measured = [
        recovered_share(metric_rows([metric[:, i], *ends])[None])[0] for i in range(1, len(COMMON_CONDITIONS))
    ]
    shares = ["an unknown share" if math.isnan(share) else number(float(share)) for share in measured]
    n_graphs = sum(each.graph.n_prompts for each in common.templates)
    features = [node for each in common.templates for node in each.graph.nodes if node.node.kind == "feature"]
    n_common = sum(len(each.circuit) for each in common.templates)
    sentences = [
        f"**Common circuit.** The attribution graphs of {n_graphs} finding prompts are aggregated per template "
        f"({len(common.templates)}); nodes are matched by role, the place of the token in the template. "
        f"{n_common} of the {len(features)} features at roles are in the graphs of at least {case.common:.0%} of the "
        "template's prompts: they are the common circuits.",
        f"On the testing half, all heads and errors intact, a template's common circuit alone recovers {shares[0]} of "
        f"what the features add to the {results.quantity}, and {shares[1]} remains without it. With as many random "
        f"features per layer, which fire at their roles equally often, these are {shares[2]} and {shares[3]}. "
        f"With the features of any finding prompt's graph, they are {shares[4]} and {shares[5]}.",
    ]
    for each in common.templates:
        best = sorted(
            (
                node
                for node in each.graph.nodes
                if node.node.kind == "feature" and each.graph.share(node) >= case.common
            ),
            key=lambda node: -node.influence,
        )[:MAX_SHOWN]
        named = ", ".join(
            f"{node.node.layer}/{node.node.feature} at "
            f"{code_span(each.prompts.names[node.node.role].strip() or ' ')}"
            for node in best
        )
        sentences.append(
            f"{code_span(each.prompts.text)}: {len(each.circuit)} common features{f', first {named}' if named else ''}."
        )
    left = Counter(half for half, row in zip(results.half, common.metric, strict=True) if row.isnan().any())
    if left:
        sentences.append(f"Prompts on which no common circuit was measured: {left.total()}.")
    return sentences


@styled
def common_figure(common: CommonCircuit | None, layers: int, shown: int) -> tuple[Figure, str]:
    """Returns the picture of what is common to the graphs of the first `shown` templates, and its caption. `layers` is
    the number of layers of the model."""
    if common is None:
        figure = Figure(figsize=(5, 1))
        figure.text(0.5, 0.5, "no graphs were aggregated", ha="center")
        return figure, "No graphs were aggregated (`aggregated: 0`)."
    nodes, edges = list(node_rows("", common)), list(edge_rows("", common))
    numbers = range(len(common.templates))[:shown]
    drawings = [
        GraphDrawing.common(
            [row for row in nodes if row["template"] == number],
            [row for row in edges if row["template"] == number],
            layers,
        )
        for number in numbers
    ]
    return (
        graph_figure(drawings),
        f"Nodes and edges that are in the attribution graphs of at least {common.share:.0%} of a template's finding "
        f"prompts, for {len(numbers)} of {len(common.templates)} templates. A position is a role: a token, or a slot "
        "in braces. Widths are mean effects.",
    )


def recovered_share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns (metric - none) / (untouched - none) of column means. The columns are metric, none, untouched."""
    metric, none, untouched = rows[:, :, :3].mean(1).T
    return fraction_of(metric - none, untouched - none)


def worth_share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Returns loss / (untouched - none) of column means. The columns are loss, none, untouched."""
    loss, none, untouched = rows[:, :, :3].mean(1).T
    return fraction_of(loss, untouched - none)


def metric_rows(columns: Sequence[Tensor]) -> Float[np.ndarray, "row column"]:
    """Returns the columns side by side, as float64."""
    return torch.stack([column.double() for column in columns], 1).numpy() if columns else np.empty((0, 0))
