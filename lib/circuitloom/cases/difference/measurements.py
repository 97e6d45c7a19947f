"""Measurements of a logit difference: prompts, the search for a circuit on some of them, and its test on others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...ablation.behaviour import parse_metric
from ...ablation.causal_effects import mean_attribution
from ...ablation.circuits import CircuitExperiment, Components, component_worth, without_places
from ...ablation.components import Basis
from ...ablation.faithfulness import FaithfulnessCurve, faithfulness_curve, rank, size_grid
from ...ablation.metrics import PromptMetric, make_prompt_metrics
from ...attribution.targets import tokenize_prompt
from ...config.cases.base import Slots, slots_of
from ...config.circuits import BehaviourPrompt
from ...corpus.tokenizer import Tokenizer
from ..context import FINDING, TESTING, fill_templates

MIN_PRUNED = 0.02
"""Pruning ends after the first round that removes at most this share of the circuit."""


# Prompts


@dataclass(frozen=True)
class DrawnPrompt:
    """A filled template, with its target."""

    text: str
    target: str
    """`logit TOKEN vs TOKEN`, filled with the same words."""
    half: str
    """finding or testing."""


def draw_prompts(
    templates: Sequence[BehaviourPrompt], slots: Slots, count: int, seed: int
) -> list[DrawnPrompt]:
    """About `count` prompts, the templates in turn, no text twice; the first half of each template is for finding.

    Templates with the same slots get the same words in the same half. Raises ValueError if a template has too few
    fillings for both halves.
    """
    per_template = -(-count // len(templates))
    filled: list[list[tuple[str, str]]] = []
    slot_sets = [set(slots_of(template.text) + slots_of(template.target)) for template in templates]
    for template, own in zip(templates, slot_sets, strict=True):
        texts: dict[str, str] = {}
        # a slot of the target alone gives the same text with several targets: keep the first
        for text, target in fill_templates(
            (template.text, template.target), slots, 4 * per_template, seed + slot_sets.index(own)
        ):
            texts.setdefault(text, target)
        if len(texts) < 2:
            raise ValueError(f"{template.text!r}: can be filled in one way only; add words to its slots")
        filled.append(list(texts.items())[:per_template])
    prompts: dict[str, DrawnPrompt] = {}
    for turn in range(per_template):
        for own_texts in filled:
            if turn < len(own_texts):
                text, target = own_texts[turn]
                half = FINDING if turn < len(own_texts) // 2 else TESTING
                prompts.setdefault(text, DrawnPrompt(text, target, half))
    return list(prompts.values())


def read_prompts(
    prompts: Sequence[DrawnPrompt], tokenizer: Tokenizer, context_length: int
) -> list[PromptMetric]:
    """Tokens and metric of each prompt. Raises ValueError if a text or token cannot be read."""
    strings = tokenizer.strings()
    tokens = [tokenize_prompt(prompt.text, tokenizer, context_length) for prompt in prompts]
    metrics = [parse_metric(prompt.target, strings) for prompt in prompts]
    return make_prompt_metrics(tokens, metrics, tokenizer.bos_id)


# Search, on the finding half


@dataclass(frozen=True)
class Ranking:
    """Components in the order in which they are kept."""

    name: str
    order: Components
    attribution: Float[Tensor, " component"]
    """First-order effect, mean over the finding prompts."""
    curve: FaithfulnessCurve
    """Faithfulness on the finding prompts."""


def choose_ranking(experiment: CircuitExperiment, prompts: Sequence[PromptMetric], share: float) -> Ranking:
    """The ranking that needs fewer components to recover `share`: by magnitude of attribution, or by signed value."""
    score = mean_attribution(experiment.model, experiment.basis, prompts, experiment.values)
    rankings = []
    for name, signed in (("attribution", False), ("signed attribution", True)):
        order = rank(score, signed)
        # a coarse grid of sizes: the search bisects between them
        curve = faithfulness_curve(
            experiment.model, experiment.basis, prompts, order, experiment.values, per_octave=1
        )
        rankings.append(Ranking(name, order, score, curve))
    return min(rankings, key=lambda each: each.curve.needed(share) or len(experiment.basis))


class CircuitSearch:
    """Finds a small set of components that recovers a share of the behaviour on some prompts."""

    def __init__(self, experiment: CircuitExperiment, prompts: Sequence[PromptMetric]) -> None:
        self.experiment, self.prompts = experiment, prompts
        nothing = torch.empty(0, dtype=torch.int64)
        self.none = float(experiment.alone(prompts, [nothing]).mean())
        """Mean metric with all components ablated."""
        self.untouched = float(experiment.without(prompts, [nothing]).mean())
        """Mean metric of the untouched model."""

    def shares(self, sets: Sequence[Components]) -> Float[Tensor, " set"]:
        """Share of the behaviour that each set of components recovers alone."""
        return (self.experiment.alone(self.prompts, sets).mean(0) - self.none) / (self.untouched - self.none)

    def worth(self, circuit: Components, place: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
        """Share of the behaviour that the circuit alone loses without the component at each place."""
        return component_worth(self.experiment, self.prompts, circuit, place).mean(0) / (
            self.untouched - self.none
        )

    def find(self, ranking: Ranking, share: float) -> Components:
        """The fewest top components that recover `share`, by bisection; empty if ablation does not lower the metric."""
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
        """The circuit without components worth less than `least`, as long as it recovers `share`.

        Each round removes as many of the components with the least worth as possible, then measures the worth of the
        lower half of the others again.
        """
        worth = self.worth(circuit, torch.arange(len(circuit)))
        while n_useless := int((worth < least).sum()):
            order, tried = worth.argsort(stable=True), size_grid(n_useless, per_octave=4)[1:]
            enough = self.shares([without_places(circuit, order[:n]) for n in tried]) >= share
            removed = max((n for n, ok in zip(tried, enough, strict=True) if ok), default=0)
            kept = order[removed:].sort().values
            circuit, worth = circuit[kept], worth[kept]
            if removed <= MIN_PRUNED * len(circuit):
                break
            again = worth.argsort(stable=True)[: -(-len(circuit) // 2)]
            worth[again] = self.worth(circuit, again)
        return circuit


@dataclass(frozen=True)
class FoundCircuit:
    """The circuit found on the finding half."""

    experiment: CircuitExperiment
    ranking: Ranking
    top: Components
    """The fewest top-ranked components that recover the share required before pruning."""
    circuit: Components
    """The components of `top` that pruning keeps."""
    recovered: float
    """Share of the difference that the circuit recovers on the finding half."""

    @property
    def features(self) -> Components:
        """The circuit's features, without its heads."""
        kinds = [part.kind for part in self.experiment.basis.parts]
        part, _ = self.experiment.basis.locate(self.circuit)
        return self.circuit[torch.tensor([kinds[i] == "feature" for i in part], dtype=torch.bool)]


# Results of the tests, on the testing half


@dataclass(frozen=True)
class CircuitMetrics:
    """Metrics on the prompts of the testing half."""

    preferred: Float[Tensor, " drawn"]
    """Of the untouched model, on the prompts of both halves."""
    untouched: Float[Tensor, " prompt"]
    none: Float[Tensor, " prompt"]
    """With all components ablated."""
    alone: Float[Tensor, " prompt"]
    """Of the circuit, all other components ablated."""
    without: Float[Tensor, " prompt"]
    """Of the model without the circuit."""
    without_features: Float[Tensor, " prompt"]
    """Of the model without the circuit's features, all heads intact."""
    transcoded: Float[Tensor, " prompt"]
    """With every MLP that has a transcoder replaced by it, without error terms."""
    worth: Float[Tensor, "prompt component"]
    """What the circuit loses without each of its components."""
    subset_circuit: Float[Tensor, "prompt subset"]
    """Of the circuit without each random subset."""
    subset_model: Float[Tensor, "prompt subset"]
    """Of the model without each random subset."""
    curve: FaithfulnessCurve
    neuron_curve: FaithfulnessCurve | None
    """With neurons instead of features."""


@dataclass(frozen=True)
class BasisCurve:
    """Faithfulness of the top components of a basis on the testing half."""

    name: str
    basis: Basis
    ranking: Ranking
    curve: FaithfulnessCurve
