"""What the graphs of a template's prompts have in common, and what it does on other prompts of the template.

The graphs of the finding prompts are aggregated per template. The common circuit of a template is the set of features,
each at a role, that are in the graphs of at least `case.common` of these prompts.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.circuits import CircuitExperiment
from ...ablation.common_circuit import draw_controls, means_by_layer, measure_role_sets
from ...ablation.components import UnitComponents
from ...ablation.metrics import PromptMetric
from ...attribution.aggregate_graph import (
    AggregateEdge,
    AggregateGraph,
    AggregateNode,
    PromptGraph,
    RoleFeature,
    aggregate_graphs,
    firing_counts,
    slot_roles,
)
from ...attribution.drawing import GraphDrawing
from ...attribution.graph import trace_graph
from ...attribution.linearized_model import LinearizedModel
from ...attribution.targets import find_roots, read_answers
from ...attribution.tracer import Tracer
from ...config.cases.base import Slots, slots_of
from ...config.cases.difference import DifferenceCase
from ...config.circuits import parse_target
from ...corpus.prompt_text import PromptText
from ..context import FINDING, TESTING, CaseContext
from .measurements import DrawnPrompt

RANDOM_SETS = 10
"""Number of random sets of features that a common circuit is compared with. Their metrics are averaged."""
COMMON_CONDITIONS = (
    "features ablated",
    "common circuit alone",
    "without common circuit",
    "random features alone",
    "without random features",
    "all aggregated features alone",
    "without all aggregated features",
)
"""Values of the column `condition` in the table `outcome`, for a common circuit. All heads are intact."""
Row = dict[str, Any]


@dataclass(frozen=True)
class TemplateCircuit:
    """The aggregate graph of a template, and its common circuit."""

    text: str
    target: str
    roles: list[str]
    """Name of each role: its token, or the slot in braces where the token differs between prompts."""
    graph: AggregateGraph
    circuit: list[RoleFeature]


@dataclass(frozen=True)
class CommonCircuit:
    """The common circuits of all templates."""

    templates: list[TemplateCircuit]
    metric: Float[Tensor, "drawn condition"]
    """Metric of each prompt under `COMMON_CONDITIONS`, with the circuit of its template. NaN for prompts of templates
    without a graph."""

    @property
    def n_features(self) -> float:
        """Mean number of features of a common circuit."""
        sizes = [len(each.circuit) for each in self.templates]
        return sum(sizes) / len(sizes)


def find_common(
    context: CaseContext,
    case: DifferenceCase,
    drawn: Sequence[DrawnPrompt],
    prompts: Sequence[PromptMetric],
    experiment: CircuitExperiment,
) -> CommonCircuit | None:
    """Find the common circuit of each template on finding prompts, and measure it on all prompts.

    `experiment` gives the values of ablated features. At most `case.aggregated` graphs are made. Returns None if there
    are none.
    """
    tracer = context.tracer()
    chosen = [i for i, prompt in enumerate(drawn) if prompt.half == FINDING][: case.aggregated]
    if not chosen:
        return None
    parts = zip(experiment.basis.parts, experiment.values, strict=True)
    means = means_by_layer(
        {part.dictionary.layer: value for part, value in parts if not isinstance(part, UnitComponents)}
    )
    metric = torch.full((len(drawn), len(COMMON_CONDITIONS)), torch.nan, dtype=torch.float64)
    templates = []
    for number, template in enumerate(case.prompts):
        own = [i for i, prompt in enumerate(drawn) if prompt.template == number]
        finding = [i for i in own if i in chosen]
        if not finding:
            continue
        texts = {i: tracer.read(drawn[i].text, drawn[i].special_tokens) for i in own}
        places = {i: template_roles(texts[i], template.text, case.slots) for i in own}
        order = sorted({place for each in places.values() for place in each})
        roles = {i: [order.index(place) for place in each] for i, each in places.items()}
        models = {i: tracer.linearize(texts[i]) for i in own}
        graphs = [
            PromptGraph(models[i], _graph(tracer, models[i], texts[i], drawn[i]), roles[i]) for i in finding
        ]
        graph = aggregate_graphs(graphs)
        circuit = graph.common_features(case.common)
        every = graph.common_features(0.0)
        counts = firing_counts([(models[i], roles[i]) for i in finding])
        # rounded up; hundredths are cut off first, because a product can lie in its last bits above a whole number
        least = math.ceil(int(100 * case.common * len(finding)) / 100)
        controls = draw_controls(circuit, counts, least, RANDOM_SETS, case.seed)
        for i in own:
            alone, without = measure_role_sets(
                context.model, models[i], prompts[i], roles[i], [[], circuit, every, *controls], means
            )
            measured = [
                alone[0],
                alone[1],
                without[1],
                alone[3:].mean(),
                without[3:].mean(),
                alone[2],
                without[2],
            ]
            metric[i] = torch.stack(measured)
        tokens = [
            dict(zip(roles[i], (tracer.strings[t] for t in texts[i].token.tolist()), strict=True))
            for i in own
        ]
        names = [_role_name(role, order[role], tokens, template.text) for role in range(len(order))]
        templates.append(TemplateCircuit(template.text, template.target, names, graph, circuit))
    return CommonCircuit(templates, metric)


def _graph(tracer: Tracer, model: LinearizedModel, text: PromptText, prompt: DrawnPrompt):
    target = parse_target(prompt.target)
    roots, _ = find_roots(model, target, tracer.strings, read_answers(target, text))
    return trace_graph(model, roots)


def template_roles(text: PromptText, template: str, slots: Slots) -> list[tuple[int, int]]:
    """Returns the role of each token of a filled template (see `slot_roles`). A BOS has the role (-1, 0).

    Raises ValueError if `text` is not a filling of the template.
    """
    pieces, groups, seen = re.split(r"(\{[a-z_0-9]+\})", template), [], set()
    for piece in filter(None, pieces):
        name = piece[1:-1] if piece in [f"{{{each}}}" for each in slots_of(template)] else None
        if name is None or name not in slots:
            groups.append((re.escape(piece), False))
        elif name in seen:
            groups.append((f"(?P={name})", True))
        else:
            seen.add(name)
            groups.append((f"(?P<{name}>{'|'.join(map(re.escape, slots[name]))})", True))
    # a name in a group is counted as a group too, so that the group of a part is found by its place
    places, expression, group = [], "", 0
    for pattern, _ in groups:
        expression += f"({pattern})"
        group += 1
        places.append(group)
        group += pattern.startswith("(?P<")
    found = re.fullmatch(expression, text.text, re.DOTALL)
    if found is None:
        raise ValueError(f"{text.text!r} is no filling of {template!r}; check the slots")
    parts = [(*found.span(place), is_slot) for place, (_, is_slot) in zip(places, groups, strict=True)]
    roles = slot_roles(parts, text.tokenizer.offsets(text.text, text.special))
    return [(-1, 0)] * (len(text.token) - len(roles)) + roles


def _role_name(role: int, place: tuple[int, int], tokens: Sequence[dict[int, str]], template: str) -> str:
    names = {each[role] for each in tokens if role in each}
    if len(names) == 1:
        return names.pop()
    pieces = [piece for piece in re.split(r"(\{[a-z_0-9]+\})", template) if piece]
    slot = pieces[place[0]] if 0 <= place[0] < len(pieces) else "?"
    return slot if place[1] in (-1, 0) else f"{slot} {place[1]}"


# Tables and pictures


def node_rows(name: str, run: str, common: CommonCircuit, case: DifferenceCase) -> Iterator[Row]:
    """Yields the rows of the table `aggregate_node`."""
    for number, template in enumerate(common.templates):
        circuit = template.graph
        for i, each in enumerate(circuit.nodes):
            yield {
                "behaviour": name,
                "template": number,
                "node": i,
                "text": template.text,
                "kind": each.node.kind,
                "run": run if each.node.kind in ("feature", "error") else None,
                "layer": each.node.layer,
                "feature": each.node.feature if each.node.kind == "feature" else None,
                "role": each.node.role,
                "token": template.roles[each.node.role],
                "n_prompts": each.n_prompts,
                "share": circuit.share(each),
                "is_common": circuit.share(each) >= case.common,
                "influence": each.influence,
                "activation": each.activation,
            }


def edge_rows(name: str, common: CommonCircuit, case: DifferenceCase) -> Iterator[Row]:
    """Yields the rows of the table `aggregate_edge`."""
    for number, template in enumerate(common.templates):
        for each in template.graph.edges:
            half = each.half_width
            yield {
                "behaviour": name,
                "template": number,
                "source": each.source,
                "target": each.target,
                "n_prompts": each.n_prompts,
                "share": template.graph.share(each),
                "is_common": template.graph.share(each) >= case.common,
                "effect": each.effect,
                "effect_deviation": each.deviation,
                "effect_low": None if half is None else each.effect - half,
                "effect_high": None if half is None else each.effect + half,
            }


def common_drawing(template: TemplateCircuit, run: str, layers: int, share: float) -> GraphDrawing:
    """Returns the drawing of the nodes and edges that are common to the prompts of a template."""
    graph = template.graph

    def is_common(part: AggregateNode | AggregateEdge) -> bool:
        return graph.share(part) >= share

    nodes = [
        {
            "node": i,
            "kind": "difference" if each.node.kind == "root" else each.node.kind,
            "is_root": each.node.kind == "root",
            "in_graph": True,
            "layer": each.node.layer,
            "feature": each.node.feature,
            "position": each.node.role,
            "token": template.target.removeprefix("logit ") if each.node.kind == "root" else None,
            "influence": each.influence,
        }
        for i, each in enumerate(graph.nodes)
        if is_common(each)
    ]
    kept = {row["node"] for row in nodes}
    edges = [
        {"source": each.source, "target": each.target, "effect": each.effect}
        for each in graph.edges
        if is_common(each) and each.source in kept and each.target in kept
    ]
    title = f"common to {share:.0%} of {graph.n_prompts} prompts"
    return GraphDrawing(title, run, template.target, template.roles, layers, nodes, edges)


def testing_metric(common: CommonCircuit, drawn: Sequence[DrawnPrompt]) -> tuple[Tensor, list[int]]:
    """Returns the rows of `CommonCircuit.metric` on testing prompts, and their numbers."""
    rows = [
        i for i, prompt in enumerate(drawn) if prompt.half == TESTING and not common.metric[i].isnan().any()
    ]
    return common.metric[rows], rows


def dropped(common: CommonCircuit, drawn: Sequence[DrawnPrompt]) -> Counter[str]:
    """Returns the number of prompts of each half whose template has no graph."""
    return Counter(prompt.half for prompt, row in zip(drawn, common.metric, strict=True) if row.isnan().any())
