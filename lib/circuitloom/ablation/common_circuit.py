"""Find the circuit that prompts of a template have in common, and ablate it on single prompts of the template.

1. The attribution graphs of prompts of the finding half are aggregated per template.
2. The common circuit of a template is the set of features, each at a role, that are in the graphs of at least a share
   of these prompts.
3. On each prompt of the template, the common circuit is ablated, and all features but the common circuit. Attention
   heads and errors of transcoders are intact.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.aggregate_graph import (
    AggregateGraph,
    PromptGraph,
    RoleFeature,
    aggregate_graphs,
    firing_counts,
)
from ..attribution.graph import Roots, trace_graph
from ..attribution.linearized_model import LinearizedModel
from ..attribution.targets import find_roots, read_answers
from ..attribution.tracer import Tracer
from ..config.circuits import parse_target
from ..config.templates import Slots
from ..corpus.templates import DrawnPrompt, TemplatePrompts, align_positions, align_template
from ..language_model.hooks import edited
from ..language_model.model import LanguageModel
from .components import Basis, ReplacementValues, UnitComponents
from .feature_sets import FeaturePlaces, MeanActivations, set_edits, sets_per_pass
from .metrics import PromptMetric, last_logits

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
RoleSet = Sequence[RoleFeature]
FindRoots = Callable[[int, LinearizedModel], Roots]
"""Returns the roots of the graph of a prompt, whose number and linearized model are given."""


@dataclass(frozen=True)
class TemplateCircuit:
    """The aggregate graph of a template, and its common circuit."""

    prompts: TemplatePrompts
    graph: AggregateGraph
    circuit: list[RoleFeature]


@dataclass(frozen=True)
class CommonCircuit:
    """The common circuits of all templates."""

    run: str
    """Run of the dictionaries."""
    share: float
    """Smallest share of a template's aggregated graphs that have a common node or edge."""
    templates: list[TemplateCircuit]
    metric: Float[Tensor, "drawn condition"]
    """Metric of each prompt under `COMMON_CONDITIONS`, with the circuit of its template. NaN for prompts of templates
    without a graph."""

    @property
    def measured(self) -> list[int]:
        """Numbers of the prompts whose template has a graph."""
        return (~self.metric.isnan().any(1)).nonzero()[:, 0].tolist()


# Finding and measuring


def find_common(
    tracer: Tracer,
    templates: Sequence[TemplatePrompts],
    prompts: Sequence[PromptMetric],
    roots: FindRoots,
    aggregated: Collection[int],
    share: float,
    seed: int,
    means: MeanActivations | None,
) -> CommonCircuit | None:
    """Find the common circuit of each template on the prompts whose numbers are `aggregated`, and measure it on all
    prompts.

    Ablated features are set to zero, or to `means`. `seed` is that of the random sets of features. Returns None if no
    prompt of the templates is to be aggregated.
    """
    metric = torch.full((len(prompts), len(COMMON_CONDITIONS)), torch.nan, dtype=torch.float64)
    found = []
    for template in templates:
        finding = [place for place, i in enumerate(template.prompts) if i in aggregated]
        if not finding:
            continue
        models = {place: tracer.linearize(template.read[place]) for place in finding}
        graph = aggregate_graphs(
            [
                PromptGraph(
                    model, trace_graph(model, roots(template.prompts[place], model)), template.roles[place]
                )
                for place, model in models.items()
            ]
        )
        circuit = graph.common_features(share)
        counts = firing_counts([(model, template.roles[place]) for place, model in models.items()])
        # rounded up; hundredths are cut off first, because a product can lie in its last bits above a whole number
        least = math.ceil(int(100 * share * len(finding)) / 100)
        controls = draw_controls(circuit, counts, least, RANDOM_SETS, seed)
        sets = [[], circuit, graph.common_features(0.0), *controls]
        for place, i in enumerate(template.prompts):
            model = models[place] if place in models else tracer.linearize(template.read[place])
            alone, without = measure_role_sets(
                tracer.language_model, model, prompts[i], template.roles[place], sets, means
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
        found.append(TemplateCircuit(template, graph, circuit))
    return CommonCircuit(tracer.run, share, found, metric) if found else None


def align_drawn(
    tracer: Tracer, drawn: Sequence[DrawnPrompt], texts: Sequence[tuple[str, str]], slots: Slots
) -> list[TemplatePrompts]:
    """Returns the prompts of each template, aligned by role. `texts` has the text and the target of each template. If
    there are no `slots`, the prompts of a template have the same number of tokens and are aligned by position."""
    aligned = []
    for number in range(len(texts) if slots else 1 + max(each.template for each in drawn)):
        own = [i for i, prompt in enumerate(drawn) if prompt.template == number]
        read = [tracer.read(drawn[i].text, drawn[i].special_tokens) for i in own]
        if slots:
            aligned.append(align_template(*texts[number], slots, own, read, tracer.strings))
        else:
            aligned.append(align_positions(drawn[own[0]].target, own, read, tracer.strings))
    return aligned


def target_roots(tracer: Tracer, drawn: Sequence[DrawnPrompt]) -> FindRoots:
    """Returns a function that finds the root of a drawn prompt: its target."""

    def find(number: int, model: LinearizedModel) -> Roots:
        target = parse_target(drawn[number].target)
        text = tracer.read(drawn[number].text, drawn[number].special_tokens)
        return find_roots(model, target, tracer.strings, read_answers(target, text))[0]

    return find


def draw_controls(
    circuit: RoleSet, counts: Counter[RoleFeature], least: int, sets: int, seed: int
) -> list[list[RoleFeature]]:
    """Returns random sets with the same number of features per layer as the circuit, and none of its features.

    A feature is drawn if it fires at its role on at least `least` prompts (`counts`). In a layer with too few of them,
    those that fire on fewer prompts are drawn too, the most frequent first.
    """
    generator, inside = torch.Generator().manual_seed(seed), set(circuit)
    needed = Counter(each.layer for each in circuit)
    controls: list[list[RoleFeature]] = [[] for _ in range(sets)]
    for layer, n in sorted(needed.items()):
        others = sorted(
            (each for each in counts if each.layer == layer and each not in inside),
            key=lambda each: (-counts[each], each),
        )
        often = sum(counts[each] >= least for each in others)
        pool = others[: max(n, often)]
        for drawn in controls:
            drawn += [pool[i] for i in torch.randperm(len(pool), generator=generator)[:n].tolist()]
    return controls


@torch.inference_mode()
def measure_role_sets(
    language_model: LanguageModel,
    model: LinearizedModel,
    prompt: PromptMetric,
    roles: Sequence[int],
    sets: Sequence[RoleSet],
    means: MeanActivations | None = None,
) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
    """Returns the metric of a prompt with only the features of each set, and with only these ablated, as float64.

    `roles` has the role of each position. Features at roles that the prompt does not have are left out. Ablated
    features are set to zero, or to `means`. Nothing is frozen.
    """
    position = {role: i for i, role in enumerate(roles)}
    found = sorted(
        {
            (each.layer, position[each.role], each.feature)
            for own in sets
            for each in own
            if each.role in position
        }
    )
    number = {place: i for i, place in enumerate(found)}
    columns = torch.tensor(found, dtype=torch.int64).view(-1, 3).T.to(model.replaced.device)
    places = FeaturePlaces(*(column.contiguous() for column in columns))
    inside = torch.zeros(len(sets), len(found), device=model.replaced.device)
    for row, own in zip(inside, sets, strict=True):
        for each in own:
            if each.role in position:
                row[number[each.layer, position[each.role], each.feature]] = 1.0
    results = []
    for weight, other in ((inside, 0.0), (1 - inside, 1.0)):
        metric = []
        for part in weight.split(sets_per_pass(model)):
            with edited(language_model, set_edits(model, places, part, other, means=means)):
                logits = last_logits(language_model, prompt.token.expand(len(part), -1))
            metric.append(prompt.metric(logits).double().cpu())
        results.append(torch.cat(metric))
    return results[0], results[1]


def means_by_layer(basis: Basis, values: ReplacementValues) -> MeanActivations | None:
    """Returns the rows of `replacement_values` of the basis' features by layer, or None if ablated features are set to
    zero."""
    rows = {
        part.dictionary.layer: value[0]
        for part, value in zip(basis.parts, values, strict=True)
        if not isinstance(part, UnitComponents) and value is not None
    }
    return rows or None


# Tables


def node_rows(name: str, common: CommonCircuit) -> Iterator[Row]:
    """Yields the rows of the table `aggregate_node`."""
    for number, template in enumerate(common.templates):
        graph = template.graph
        for i, each in enumerate(graph.nodes):
            yield {
                "behaviour": name,
                "template": number,
                "node": i,
                "text": template.prompts.text,
                "target": template.prompts.target,
                "kind": each.node.kind,
                "run": common.run if each.node.kind in ("feature", "error") else None,
                "layer": each.node.layer,
                "feature": each.node.feature if each.node.kind == "feature" else None,
                "role": each.node.role,
                "token": template.prompts.names[each.node.role],
                "n_prompts": each.n_prompts,
                "share": graph.share(each),
                "is_common": graph.share(each) >= common.share,
                "influence": each.influence,
                "activation": each.activation,
            }


def edge_rows(name: str, common: CommonCircuit) -> Iterator[Row]:
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
                "is_common": template.graph.share(each) >= common.share,
                "effect": each.effect,
                "effect_deviation": each.deviation,
                "effect_low": None if half is None else each.effect - half,
                "effect_high": None if half is None else each.effect + half,
            }


def common_outcomes(
    name: str, measure: str, common: CommonCircuit, prompts: Sequence[tuple[str, str]]
) -> Iterator[Row]:
    """Yields the rows of the table `outcome` with the metric under each condition of `COMMON_CONDITIONS`. `prompts` has
    the text and the half of each prompt."""
    for condition, values in zip(COMMON_CONDITIONS, common.metric.T.tolist(), strict=True):
        for number, ((text, half), value) in enumerate(zip(prompts, values, strict=True)):
            yield {
                "case_study": name,
                "measure": measure,
                "condition": condition,
                "prompt": number,
                "text": text,
                "half": half,
                "value": None if math.isnan(value) else value,
            }
