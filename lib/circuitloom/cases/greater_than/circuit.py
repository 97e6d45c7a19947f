"""The circuit from the answer back to the start year, and what of the behaviour it keeps alone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...ablation.causal_effects import measure, untouched
from ...ablation.components import Ablation, Basis, Fill
from ...ablation.metrics import PromptMetric
from ...attribution.direct_effects import AttributionTargets, logit_targets, sources, total_effects
from ...attribution.linearized_model import LinearizedModel
from ...attribution.paths import FEATURE, HEAD, PathSearch, find_paths, paths_to_graph, target_reader
from ...attribution.tracer import Tracer
from ...language_model.model import LanguageModel
from .prompts import Answers, YearPrompts

Node = tuple[int, int, int, int]
"""Kind as in `circuits.step`, layer, number, position."""


@dataclass(frozen=True)
class YearCircuit:
    """What greedy paths from the answer back go through, over some prompts."""

    contribution: dict[Node, list[float]] = field(default_factory=lambda: defaultdict(list))
    """What the paths that end in a node contribute to the target, for each prompt on which there are any."""
    prompts: int = 0

    def parts(self, kind: int) -> list[tuple[int, int]]:
        """Layer and number of the features, or heads, of the circuit."""
        return sorted({(layer, number) for own, layer, number, _ in self.contribution if own == kind})

    def components(self, basis: Basis) -> Bool[Tensor, " component"]:
        """Which components of a basis of features and heads are of the circuit."""
        kept = torch.zeros(len(basis), dtype=torch.bool)
        kinds = {"feature": FEATURE, "head": HEAD}
        for part, own in zip(basis.parts, basis.slices, strict=True):
            numbers = [number for layer, number in self.parts(kinds[part.kind]) if layer == part.site.layer]
            kept[own.start + torch.tensor(numbers, dtype=torch.int64)] = True
        return kept


def later_target(model: LinearizedModel, answers: Answers, start: int) -> AttributionTargets:
    """The mean logit of years later than `start` less that of the other years, at the last token."""
    unembedding = model.frozen.unembedding.weight
    later = answers.year > start
    weights = unembedding.new_zeros(1, len(unembedding))
    weights[0, answers.token[later]] = 1 / int(later.sum())
    weights[0, answers.token[~later]] = -1 / int((~later).sum())
    return logit_targets(model, torch.tensor([len(model.frozen) - 1], device=weights.device), weights)


def find_circuit(tracer: Tracer, prompts: YearPrompts, answers: Answers, search: PathSearch) -> YearCircuit:
    """The union of the greedy paths of all prompts."""
    circuit = YearCircuit(prompts=len(prompts))
    for text, start in zip(prompts.text, prompts.start.tolist(), strict=True):
        model = tracer.local_model(text)
        root = target_reader(model, later_target(model, answers, start))
        graph = paths_to_graph(find_paths(model, root, search))
        columns = (graph.kind, graph.layer, graph.index, graph.position, graph.value)
        for kind, layer, index, position, value in zip(*(each.tolist() for each in columns), strict=True):
            if kind >= 0:
                circuit.contribution[kind, layer, index, position].append(value)
    return circuit


@dataclass(frozen=True)
class Leaves:
    """What flows to the target from what nothing flows into, through all features, on each prompt."""

    token: Float[Tensor, "prompt position"]
    error: Float[Tensor, "prompt layer position"]
    position: Float[Tensor, "prompt position"]
    """0 where the model learns no positions."""
    constant: Float[Tensor, " prompt"]

    @property
    def size(self) -> Float[Tensor, " prompt"]:
        """The sum of all magnitudes."""
        parts = (self.token, self.error.flatten(1), self.position, self.constant[:, None])
        return torch.cat(parts, 1).abs().sum(1)


def find_leaves(tracer: Tracer, prompts: YearPrompts, answers: Answers) -> Leaves:
    """What flows to the target on each prompt; with it, nothing is left out."""
    rows = []
    for text, start in zip(prompts.text, prompts.start.tolist(), strict=True):
        model = tracer.local_model(text)
        targets = later_target(model, answers, start)
        flow = total_effects(model, targets)[0].cpu()
        columns = sources(model)
        errors = flow[columns.errors].view(columns.layers, columns.positions)
        rows.append(
            (flow[columns.embeddings], errors, flow[columns.learned_positions], flow[columns.constant])
        )
    return Leaves(*(torch.stack(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Alone:
    """The metric with little but some components."""

    kept: Float[Tensor, " prompt"]
    """With these alone."""
    drawn: Float[Tensor, " prompt"]
    """With as many drawn features of each layer, of those that fire on these prompts, and the same heads."""
    removed: Float[Tensor, " prompt"]
    """With all others alone."""
    featureless: Float[Tensor, " prompt"]
    """With all but the features among them."""
    none: Float[Tensor, " prompt"]
    """With nothing."""
    all: Float[Tensor, " prompt"]
    """With all: what transcoders miss is gone."""
    untouched: Float[Tensor, " prompt"]
    kl: Float[Tensor, " prompt"]
    """KL(untouched || kept), nats."""
    kl_none: Float[Tensor, " prompt"]
    """KL(untouched || none), nats."""


def keep_alone(
    model: LanguageModel,
    basis: Basis,
    kept: Bool[Tensor, " component"],
    drawn: Bool[Tensor, " component"],
    fill: Fill,
    probes: Sequence[PromptMetric],
) -> Alone:
    """What prompts keep where all components but some are set to `fill`; `drawn` are others to compare with."""
    feature = torch.zeros_like(kept)
    for part, own in zip(basis.parts, basis.slices, strict=True):
        feature[own] = part.kind == "feature"
    nothing = torch.zeros_like(kept)
    gone = torch.stack([~kept, ~drawn, kept, kept & feature, ~nothing, nothing])
    rows = []
    for probe in probes:
        reference = untouched(model, probe)
        ablation = Ablation(gone, probe.where.cpu().expand(len(gone), -1))
        found = measure(model, basis, probe, [ablation], fill, reference)
        before = probe.metric(reference[None])
        rows.append(torch.cat([found.metric, before, found.kl[[0, 4]]]).cpu())
    return Alone(*torch.stack(rows, 1))


def draw_like(
    basis: Basis, kept: Bool[Tensor, " component"], mean: Fill, seed: int
) -> Bool[Tensor, " component"]:
    """The same heads, and as many features of each layer, drawn from those whose mean is not zero."""
    generator = torch.Generator().manual_seed(seed)
    drawn = kept.clone()
    for part, own, filled in zip(basis.parts, basis.slices, mean, strict=True):
        if part.kind == "feature":
            assert filled is not None
            live = filled[0].cpu().nonzero()[:, 0]
            drawn[own] = False
            chosen = torch.randperm(len(live), generator=generator)[: int(kept[own].sum())]
            drawn[own.start + live[chosen]] = True
    return drawn
