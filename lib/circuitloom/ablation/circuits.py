"""Test circuits by ablation: circuit alone, model without the circuit, completeness, and random circuits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..language_model.model import LanguageModel
from .causal_effects import (
    ablated_logits,
    ablated_metrics,
    chunks,
    mean_attribution,
    original_logits,
    passes_per_chunk,
)
from .components import Ablation, Basis, ReplacementValues
from .metrics import PromptMetric

Components = Int[Tensor, " _"]
"""Distinct component numbers within a basis."""


@dataclass(frozen=True)
class CircuitExperiment:
    """Ablation experiments on sets of components of one basis."""

    model: LanguageModel
    basis: Basis
    values: ReplacementValues
    """Values that ablated components are set to."""

    def alone(
        self, prompts: Sequence[PromptMetric], sets: Sequence[Components]
    ) -> Float[Tensor, "prompt set"]:
        """Returns the metric when only the components of a set are kept, as float64."""
        return self._measure(prompts, sets, alone=True)

    def without(
        self, prompts: Sequence[PromptMetric], sets: Sequence[Components]
    ) -> Float[Tensor, "prompt set"]:
        """Returns the metric when only the components of a set are ablated, as float64."""
        return self._measure(prompts, sets, alone=False)

    def _measure(self, prompts: Sequence[PromptMetric], sets: Sequence[Components], alone: bool) -> Tensor:
        unembedding = self.model.module.get_submodule(self.model.anatomy.unembedding)
        vocabulary = len(next(unembedding.parameters()))
        rows = []
        for prompt in prompts:
            ablations = self._ablations(prompt, sets, alone, passes_per_chunk(self.basis, prompt, vocabulary))
            logits = ablated_logits(self.model, self.basis, prompt, ablations, self.values)
            rows.append(torch.cat([prompt.metric(each).double().cpu() for each in logits]))
        return torch.stack(rows)

    def _ablations(
        self, prompt: PromptMetric, sets: Sequence[Components], alone: bool, size: int
    ) -> Iterator[Ablation]:
        for part in chunks(len(sets), size):
            ablated = torch.full((len(part), len(self.basis)), alone)
            for row, place in zip(ablated, part.tolist(), strict=True):
                row[sets[place]] = not alone
            yield Ablation(ablated, prompt.where.cpu().expand(len(part), -1))


def component_worth(
    experiment: CircuitExperiment,
    prompts: Sequence[PromptMetric],
    circuit: Components,
    place: Int[Tensor, " place"],
) -> Float[Tensor, "prompt place"]:
    """Returns the drop of the metric when one component of the circuit is ablated.

    Components outside the circuit are always ablated. `place` holds the index of each ablated component in `circuit`.
    """
    metric = experiment.alone(prompts, [circuit, *(without_places(circuit, each) for each in place[:, None])])
    return metric[:, :1] - metric[:, 1:]


def attributed_worth(
    experiment: CircuitExperiment, prompts: Sequence[PromptMetric], circuit: Components
) -> Float[Tensor, " component"]:
    """Returns a first-order estimate of `component_worth` for each component of the circuit, averaged over prompts.

    The gradient is taken with all components outside the circuit ablated. The cost does not depend on the number of
    components: one forward and one backward pass per prompt.
    """
    outside = torch.ones(len(experiment.basis), dtype=torch.bool)
    outside[circuit] = False
    return mean_attribution(experiment.model, experiment.basis, prompts, experiment.values, outside)[circuit]


def draw_subsets(circuit: Components, subsets: int, seed: int) -> list[Components]:
    """Draw random subsets of a circuit. Sizes grow geometrically from 1 to half the size of the circuit."""
    generator = torch.Generator().manual_seed(seed)
    largest = max(1.0, len(circuit) / 2)
    sizes = [round(largest ** (i / max(1, subsets - 1))) for i in range(subsets)]
    return [circuit[torch.randperm(len(circuit), generator=generator)[:size]] for size in sizes]


def measure_completeness(
    experiment: CircuitExperiment,
    prompts: Sequence[PromptMetric],
    circuit: Components,
    subsets: Sequence[Components],
) -> tuple[Float[Tensor, "prompt subset"], Float[Tensor, "prompt subset"]]:
    """Ablate each subset of a circuit. Returns the metric of the circuit alone, and the metric of the full model.

    If the circuit is complete, the two metrics are equal. Source: Wang et al. 2022 (arXiv 2211.00593).
    """
    alone = experiment.alone(prompts, [circuit[~torch.isin(circuit, each)] for each in subsets])
    return alone, experiment.without(prompts, subsets)


def without_places(circuit: Components, places: Int[Tensor, " place"]) -> Components:
    """Returns the circuit without the components circuit[places]."""
    kept = torch.ones(len(circuit), dtype=torch.bool)
    kept[places] = False
    return circuit[kept]


@dataclass(frozen=True)
class CircuitAblations:
    """Metric and KL of each prompt under several ablations."""

    circuit: Float[Tensor, " prompt"]
    """Metric with only the circuit kept."""
    random: Float[Tensor, " prompt"]
    """Metric with only the random circuit kept."""
    without: Float[Tensor, " prompt"]
    """Metric with the circuit ablated."""
    without_features: Float[Tensor, " prompt"]
    """Metric with the circuit's features ablated."""
    none: Float[Tensor, " prompt"]
    """Metric with all components ablated."""
    all: Float[Tensor, " prompt"]
    """Metric with no component ablated. Dictionary errors are missing if the basis leaves them out."""
    untouched: Float[Tensor, " prompt"]
    """Metric in the unmodified model."""
    kl: Float[Tensor, " prompt"]
    """KL(unmodified model || only the circuit kept), in nats."""
    kl_none: Float[Tensor, " prompt"]
    """KL(unmodified model || all components ablated), in nats."""


def ablate_circuit(
    model: LanguageModel,
    basis: Basis,
    circuit: Bool[Tensor, " component"],
    random: Bool[Tensor, " component"],
    values: ReplacementValues,
    prompts: Sequence[PromptMetric],
) -> CircuitAblations:
    """Measure the ablations in `CircuitAblations`.

    `circuit` and `random` are masks of the circuit and of a random circuit (see `draw_random_features`). Ablated
    components are set to `values`.
    """
    feature = torch.zeros_like(circuit)
    for part, own in zip(basis.parts, basis.slices, strict=True):
        feature[own] = part.kind == "feature"
    nothing = torch.zeros_like(circuit)
    ablated = torch.stack([~circuit, ~random, circuit, circuit & feature, ~nothing, nothing])
    rows = []
    for prompt in prompts:
        reference = original_logits(model, prompt)
        ablation = Ablation(ablated, prompt.where.cpu().expand(len(ablated), -1))
        after = ablated_metrics(model, basis, prompt, [ablation], values, reference)
        before = prompt.metric(reference[None])
        rows.append(torch.cat([after.metric, before, after.kl[[0, 4]]]).cpu())
    return CircuitAblations(*torch.stack(rows, 1))


def draw_random_features(
    basis: Basis, circuit: Bool[Tensor, " component"], mean: ReplacementValues, seed: int
) -> Bool[Tensor, " component"]:
    """Returns a mask of a random circuit.

    The random circuit has the same heads and the same number of features per layer as `circuit`. A feature can be drawn
    if its value in `mean` is not 0.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = circuit.clone()
    for part, own, value in zip(basis.parts, basis.slices, mean, strict=True):
        if part.kind == "feature":
            assert value is not None
            live = value[0].cpu().nonzero()[:, 0]
            drawn[own] = False
            chosen = torch.randperm(len(live), generator=generator)[: int(circuit[own].sum())]
            drawn[own.start + live[chosen]] = True
    return drawn
