"""A circuit among a basis' components: ranked and pruned on some prompts, and put to the test on any."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...ablation.causal_effects import ablated_logits, chunks, mean_attribution, passes_at_once
from ...ablation.components import Ablation, Basis, Fill
from ...ablation.faithfulness import Curve, keep_top, rank, sizes
from ...ablation.metrics import PromptMetric
from ...language_model.model import LanguageModel

FEW = 0.02
"""Share of a circuit: pruning ends with the round in which no more of it go."""
Components = Int[Tensor, " _"]
"""Numbers of components within their basis, each once."""


@dataclass(frozen=True)
class CircuitExperiment:
    """A basis of a model, and what its components are set to where they are ablated."""

    model: LanguageModel
    basis: Basis
    fill: Fill

    def alone(self, probes: Sequence[PromptMetric], sets: Sequence[Components]) -> Float[Tensor, "probe set"]:
        """The metric with each set of components alone, all others ablated; float64."""
        return self._measure(probes, sets, alone=True)

    def without(
        self, probes: Sequence[PromptMetric], sets: Sequence[Components]
    ) -> Float[Tensor, "probe set"]:
        """The metric with each set of components ablated; float64."""
        return self._measure(probes, sets, alone=False)

    def _measure(self, probes: Sequence[PromptMetric], sets: Sequence[Components], alone: bool) -> Tensor:
        unembedding = self.model.module.get_submodule(self.model.anatomy.unembedding)
        vocabulary = len(next(unembedding.parameters()))
        rows = []
        for probe in probes:
            ablations = self._ablations(probe, sets, alone, passes_at_once(self.basis, probe, vocabulary))
            logits = ablated_logits(self.model, self.basis, probe, ablations, self.fill)
            rows.append(torch.cat([probe.metric(each).double().cpu() for each in logits]))
        return torch.stack(rows)

    def _ablations(
        self, probe: PromptMetric, sets: Sequence[Components], alone: bool, at_once: int
    ) -> Iterator[Ablation]:
        for part in chunks(len(sets), at_once):
            gone = torch.full((len(part), len(self.basis)), alone)
            for row, place in zip(gone, part.tolist(), strict=True):
                row[sets[place]] = not alone
            yield Ablation(gone, probe.where.cpu().expand(len(part), -1))


@dataclass(frozen=True)
class Ranking:
    """Components in the order in which they are kept."""

    name: str
    order: Components
    attribution: Float[Tensor, " component"]
    """First-order effect of each, mean over the prompts that it was chosen on."""
    curve: Curve
    """On those prompts."""


def choose_ranking(bench: CircuitExperiment, probes: Sequence[PromptMetric], share: float) -> Ranking:
    """By magnitude of attribution, or those first that raise the metric: what takes fewer components for `share`."""
    score = mean_attribution(bench.model, bench.basis, probes, bench.fill)
    found = []
    for name, signed in (("attribution", False), ("signed attribution", True)):
        order = rank(score, signed)
        # what lies between the sizes of this grid is looked for by bisection
        curve = keep_top(bench.model, bench.basis, probes, order, bench.fill, per_octave=1)
        found.append(Ranking(name, order, score, curve))
    return min(found, key=lambda each: each.curve.needed(share) or len(bench.basis))


class CircuitSearch:
    """Looks, on some prompts, for few components that recover a share of the behaviour."""

    def __init__(self, bench: CircuitExperiment, probes: Sequence[PromptMetric]) -> None:
        self.bench, self.probes = bench, probes
        nothing = torch.empty(0, dtype=torch.int64)
        self.none = float(bench.alone(probes, [nothing]).mean())
        """Mean metric with everything ablated."""
        self.untouched = float(bench.without(probes, [nothing]).mean())
        """Mean metric of the untouched model."""

    def shares(self, sets: Sequence[Components]) -> Float[Tensor, " set"]:
        """Share of the behaviour that each set of components recovers alone."""
        return (self.bench.alone(self.probes, sets).mean(0) - self.none) / (self.untouched - self.none)

    def worth(self, circuit: Components, place: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
        """Share of the behaviour that the circuit alone loses without each of the components at some of its places."""
        return worth(self.bench, self.probes, circuit, place).mean(0) / (self.untouched - self.none)

    def find(self, ranking: Ranking, share: float) -> Components:
        """The fewest top components that recover `share`; none where components make no difference to recover.

        Between two numbers of the ranking's curve they are found by bisection.
        """
        needed = ranking.curve.needed(share)
        if needed is None or self.untouched <= self.none:
            return ranking.order[:0]
        low, high = int(ranking.curve.n_kept[ranking.curve.n_kept < needed].max()), needed
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.shares([ranking.order[:middle]])[0] >= share
            low, high = (low, middle) if enough else (middle, high)
        return ranking.order[:high]

    def prune(self, circuit: Components, share: float, least: float) -> Components:
        """The circuit without components of which it loses less than `least`, as long as it recovers `share`.

        Those of the least worth go first, as many at once as may; what the less valuable half of the others is worth
        is then measured anew, until next to none go any more.
        """
        worth = self.worth(circuit, torch.arange(len(circuit)))
        while useless := int((worth < least).sum()):
            order, tried = worth.argsort(stable=True), sizes(useless, per_octave=4)[1:]
            enough = self.shares([_rest(circuit, order[:n]) for n in tried]) >= share
            gone = max((n for n, may in zip(tried, enough, strict=True) if may), default=0)
            left = order[gone:].sort().values
            circuit, worth = circuit[left], worth[left]
            if gone <= FEW * len(circuit):
                break
            again = worth.argsort(stable=True)[: -(-len(circuit) // 2)]
            worth[again] = self.worth(circuit, again)
        return circuit


def worth(
    bench: CircuitExperiment,
    probes: Sequence[PromptMetric],
    circuit: Components,
    place: Int[Tensor, " place"],
) -> Float[Tensor, "probe place"]:
    """What the circuit alone loses of the metric without each of the components at some of its places."""
    found = bench.alone(probes, [circuit, *(_rest(circuit, each) for each in place[:, None])])
    return found[:, :1] - found[:, 1:]


def draw_subsets(circuit: Components, subsets: int, seed: int) -> list[Components]:
    """Random subsets of a circuit, their sizes even on a logarithmic scale from 1 to half of it."""
    generator = torch.Generator().manual_seed(seed)
    largest = max(1.0, len(circuit) / 2)
    sizes = [round(largest ** (i / max(1, subsets - 1))) for i in range(subsets)]
    return [circuit[torch.randperm(len(circuit), generator=generator)[:size]] for size in sizes]


def split_circuit(
    bench: CircuitExperiment,
    probes: Sequence[PromptMetric],
    circuit: Components,
    subsets: Sequence[Components],
) -> tuple[Float[Tensor, "probe subset"], Float[Tensor, "probe subset"]]:
    """The metric of the circuit without subsets of it, and of the model without the same.

    Of a complete circuit both are alike (Wang et al. 2022, arXiv 2211.00593).
    """
    alone = bench.alone(probes, [circuit[~torch.isin(circuit, each)] for each in subsets])
    return alone, bench.without(probes, subsets)


def _rest(circuit: Components, gone: Components) -> Components:
    """The circuit without what lies at some of its places."""
    kept = torch.ones(len(circuit), dtype=torch.bool)
    kept[gone] = False
    return circuit[kept]
