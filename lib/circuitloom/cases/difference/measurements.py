"""Measurements of a logit difference: the search for a circuit, and tests of the circuit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...ablation.causal_effects import mean_attribution
from ...ablation.circuits import (
    CircuitExperiment,
    Components,
    attributed_worth,
    component_worth,
)
from ...ablation.components import Basis
from ...ablation.faithfulness import FaithfulnessCurve, faithfulness_curve, rank
from ...ablation.metrics import PromptMetric
from ...ablation.set_search import SetSearch

# Search, on the finding half


@dataclass(frozen=True)
class Ranking:
    """Order of the components, most important first."""

    name: str
    order: Components
    attribution: Float[Tensor, " component"]
    """Attribution of each component, averaged over the finding prompts."""
    curve: FaithfulnessCurve
    """Faithfulness curve of `order` on the finding prompts."""


def choose_ranking(experiment: CircuitExperiment, prompts: Sequence[PromptMetric], share: float) -> Ranking:
    """Rank components by |attribution| and by signed attribution. Returns the ranking that needs fewer components to
    recover `share`."""
    score = mean_attribution(experiment.model, experiment.basis, prompts, experiment.values)
    rankings = []
    for name, signed in (("attribution", False), ("signed attribution", True)):
        order = rank(score, signed)
        # a coarse grid of sizes is enough, because the search bisects between them
        curve = faithfulness_curve(
            experiment.model, experiment.basis, prompts, order, experiment.values, per_octave=1
        )
        rankings.append(Ranking(name, order, score, curve))
    return min(rankings, key=lambda each: each.curve.needed(share) or len(experiment.basis))


class CircuitSearch(SetSearch):
    """Finds a small set of components that recovers a share of the behaviour on some prompts."""

    def __init__(
        self, experiment: CircuitExperiment, prompts: Sequence[PromptMetric], measured: int | None = None
    ) -> None:
        """`measured` is the largest number of components whose worth is measured by ablation. None means all."""
        self.experiment, self.prompts, self.measured = experiment, prompts, measured
        nothing = torch.empty(0, dtype=torch.int64)
        self.none = float(experiment.alone(prompts, [nothing]).mean())
        self.untouched = float(experiment.without(prompts, [nothing]).mean())

    def alone(self, sets: Sequence[Components]) -> Float[Tensor, " set"]:
        """Returns the mean metric when only the components of a set are kept."""
        return self.experiment.alone(self.prompts, sets).mean(0)

    def measured_loss(self, circuit: Components, place: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
        """Returns the mean drop of the metric without circuit[place]."""
        return component_worth(self.experiment, self.prompts, circuit, place).mean(0)

    def estimated_loss(self, circuit: Components) -> Float[Tensor, " component"]:
        """Returns the estimate of `attributed_worth`."""
        return attributed_worth(self.experiment, self.prompts, circuit)

    def find(self, ranking: Ranking, share: float) -> Components:
        """Bisect for the fewest top-ranked components that recover `share` of the behaviour.

        The result is empty if no number of components recovers this share. The result is also empty if ablating all
        components does not lower the metric.
        """
        needed = ranking.curve.needed(share)
        if needed is None or self.untouched <= self.none:
            return ranking.order[:0]
        low = int(ranking.curve.n_kept[ranking.curve.n_kept < needed].max())
        return self.bisect(ranking.order, low, needed, share)


@dataclass(frozen=True)
class FoundCircuit:
    """Circuit found on the finding half."""

    experiment: CircuitExperiment
    ranking: Ranking
    top: Components
    """Circuit before pruning: the fewest top-ranked components that recover (1 + `case.recovered`) / 2."""
    circuit: Components
    """The components of `top` that pruning keeps."""
    recovered: float
    """Share of the difference that the circuit recovers on the finding half."""

    @property
    def features(self) -> Components:
        """Features of the circuit."""
        kinds = [part.kind for part in self.experiment.basis.parts]
        part, _ = self.experiment.basis.locate(self.circuit)
        return self.circuit[torch.tensor([kinds[i] == "feature" for i in part], dtype=torch.bool)]


# Results of the tests, on the testing half


@dataclass(frozen=True)
class CircuitMetrics:
    """Metrics on the testing half. Only `preferred` covers both halves."""

    preferred: Float[Tensor, " drawn"]
    """Metric of the untouched model on both halves."""
    untouched: Float[Tensor, " prompt"]
    none: Float[Tensor, " prompt"]
    """Metric with all components ablated."""
    alone: Float[Tensor, " prompt"]
    """Metric with all components outside the circuit ablated."""
    without: Float[Tensor, " prompt"]
    """Metric with the circuit ablated."""
    without_features: Float[Tensor, " prompt"]
    """Metric with the circuit's features ablated and all heads intact."""
    transcoded: Float[Tensor, " prompt"]
    """Metric with MLPs replaced by transcoders, without error terms."""
    place: Int[Tensor, " component"]
    """Index in the circuit of each component of `worth`, ascending."""
    worth: Float[Tensor, "prompt component"]
    """Decrease of the circuit's metric when one component is removed from the circuit."""
    subset_circuit: Float[Tensor, "prompt subset"]
    """Metric of the circuit without a random subset of its components."""
    subset_model: Float[Tensor, "prompt subset"]
    """Metric of the model without a random subset of the circuit's components."""
    curve: FaithfulnessCurve
    neuron_curve: FaithfulnessCurve | None
    """Faithfulness curve with neurons instead of features. None if neurons are not measured."""


@dataclass(frozen=True)
class BasisCurve:
    """Faithfulness curve of a basis on the testing half."""

    name: str
    basis: Basis
    ranking: Ranking
    curve: FaithfulnessCurve
