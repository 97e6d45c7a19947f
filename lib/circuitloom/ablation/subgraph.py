"""Search for the smallest subgraph of a traced prompt: few features that keep a share of the target, all other features
ablated in the original model.

1. A unit is an active feature at a position, or a supernode of several. Only units that can reach the target count.
2. `influence` and `total_effect` rank the units by attribution. The first units of the ranking that keep the share are
   the subgraph (`SetSearch.first`).
3. `greedy` starts from all units and removes those whose loss is smallest, in rounds (`SetSearch.eliminate`).
4. Each subgraph is measured free and frozen, and gets the scores of its graph (`subgraph_scores`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.direct_effects import total_effects
from ..attribution.graph import GraphScores, Roots, full_influence, subgraph_scores
from ..attribution.linearized_model import LinearizedModel
from ..config.circuits import SubgraphConfig, SubgraphMethod
from ..language_model.model import LanguageModel
from .circuits import Components, without_places
from .faithfulness import rank
from .feature_sets import FeaturePlaces, free_values, frozen_values, set_edits, set_weights
from .interventions import run_free
from .set_search import SetSearch


@dataclass(frozen=True)
class Subgraph:
    """A set of active features of a prompt, and how well it keeps the target."""

    method: SubgraphMethod
    unit: Components
    """Units of the subgraph, the most important first: in the order of the ranking, or from the largest to the smallest
    loss. Empty if no set of units was found that keeps the share."""
    active: Int[Tensor, " node"]
    """Features of the units, as indices into `LinearizedModel.features`, in the order of `unit`."""
    unit_of_active: Int[Tensor, " node"]
    """Place of each feature's unit in `unit`."""
    kept: float
    """Share of the target that is kept when all other features are ablated in the original model."""
    kept_frozen: float
    """The same share in the linearized model, with the kept features held at their activations on the prompt."""
    minimal: bool
    """Whether it was measured that no single unit can be left out."""
    scores: GraphScores
    """Scores of the graph in which all other features count as errors."""
    seconds: float
    """Duration of the search in seconds, with the ranking and without the scores."""


@dataclass(frozen=True)
class SubgraphSearchResult:
    """The subgraphs that several methods find for one prompt."""

    config: SubgraphConfig
    """What was asked for."""
    untouched: float
    """Target of the original model: the value of the roots, weighted by `Roots.weight`."""
    none: float
    """Target with all features ablated."""
    n_units: int
    """Number of units that can reach the target."""
    subgraphs: list[Subgraph]

    @property
    def smallest(self) -> Subgraph | None:
        """The subgraph of fewest units. None if no method found one."""
        found = [each for each in self.subgraphs if len(each.unit)]
        return min(found, key=lambda each: (len(each.unit), len(each.active)), default=None)


class SubgraphSearch(SetSearch):
    """Finds sets of units of one prompt. A component is a unit."""

    def __init__(
        self,
        language_model: LanguageModel,
        model: LinearizedModel,
        roots: Roots,
        unit: Int[Tensor, " active"],
        keep_errors: bool = True,
        measured: int | None = 128,
    ) -> None:
        """`unit` has the number of the unit of each active feature, from 0, or -1 for features that are always
        ablated. `measured` is the largest number of units whose loss is measured by ablating each of them."""
        self.language_model, self.model, self.roots = language_model, model, roots
        self.keep_errors, self.measured = keep_errors, measured
        self.unit, self.counted = unit, (unit >= 0).nonzero()[:, 0]
        self.places = FeaturePlaces.of(model.features)[self.counted]
        self.n_units = int(unit.max()) + 1 if len(unit) else 0
        nothing = torch.empty(0, dtype=torch.int64)
        self.none = float(self.alone([nothing])[0])
        clean = run_free(language_model, model, 1, {}, [roots.targets])[0]
        self.untouched = float((clean.double() @ roots.weight.double())[0])

    def enough(self, shares: Float[Tensor, " set"], share: float) -> Bool[Tensor, " set"]:
        """Returns whether sets keep at least `share`, and at most 2 - `share`.

        Without what lowers the target, a few features can raise it far above its value in the model. They do not
        explain this value.
        """
        return (shares >= share) & (shares <= 2 - share)

    def alone(self, sets: Sequence[Components]) -> Float[Tensor, " set"]:
        """Returns the target when only the features of a set of units are kept, as float64."""
        of_unit = set_weights(sets, self.n_units, like=self.roots.weight)
        values = free_values(
            self.language_model,
            self.model,
            self.places,
            of_unit[:, self.unit[self.counted]],
            self.roots.targets,
            keep_errors=self.keep_errors,
        )
        return (values.double() @ self.roots.weight.double()).cpu()

    def measured_loss(self, circuit: Components, place: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
        """Returns the drop of the target without circuit[place]."""
        values = self.alone([circuit, *(without_places(circuit, each) for each in place[:, None])])
        return values[0] - values[1:]

    def estimated_loss(self, circuit: Components) -> Float[Tensor, " component"]:
        """Returns the gradient of the target with respect to a factor on the activations of each unit."""
        with torch.inference_mode(False), torch.enable_grad():
            targets, weight = self.roots.targets, self.roots.weight.clone()
            # autograd refuses tensors that were made in inference mode
            targets = replace(targets, **{k: v.clone() for k, v in vars(targets).items() if k != "layer"})
            factor = set_weights([circuit], self.n_units, like=weight)[0].requires_grad_()
            edits = set_edits(
                self.model,
                self.places,
                factor[self.unit[self.counted]][None],
                keep_errors=self.keep_errors,
            )
            value = run_free(self.language_model, self.model, 1, edits, [targets])[0] @ weight
            [gradient] = torch.autograd.grad(value.sum(), factor)
        return gradient[circuit].double().cpu()

    def by_unit(self, score: Float[Tensor, " active"]) -> Float[Tensor, " unit"]:
        """Returns the sum of the scores of each unit's features."""
        totals = score.new_zeros(self.n_units)
        return totals.index_add_(0, self.unit[self.counted], score[self.counted]).cpu()

    def kept_frozen(self, active: Int[Tensor, " node"]) -> float:
        """Returns the share of the target that the features keep in the linearized model."""
        weight = set_weights(
            [active, active[:0], torch.arange(len(self.unit))], len(self.unit), like=self.roots.weight
        )
        every = FeaturePlaces.of(self.model.features)
        values = frozen_values(self.model, every, weight[:2], self.roots.targets, self.keep_errors)
        values = torch.cat([values, frozen_values(self.model, every, weight[2:], self.roots.targets)])
        kept, none, all_ = (values.double() @ self.roots.weight.double()).tolist()
        return (kept - none) / (all_ - none) if all_ != none else float("nan")


def find_subgraphs(
    language_model: LanguageModel,
    model: LinearizedModel,
    roots: Roots,
    config: SubgraphConfig,
    groups: Sequence[Sequence[int]] = (),
) -> SubgraphSearchResult:
    """Search for small subgraphs that keep a share of the target, by each of `config.methods`.

    The share of a subgraph S is (target of S alone - target with all features ablated) / (target of the original model
    - target with all features ablated). It must be at least `config.share` and at most 2 - `config.share`. The errors
    of each pass stay, or are ablated with the features. Ablated features and errors are set to zero. `groups` are
    supernodes: lists of indices in `model.features`, which are kept or ablated together. Features in none are units of
    their own.

    All subgraphs are empty if ablating all features does not lower the target.
    """
    unit = make_units(model, roots, groups)
    search = SubgraphSearch(language_model, model, roots, unit, config.errors == "keep", config.measured)
    found = [_find(search, method, config.share) for method in config.methods]
    return SubgraphSearchResult(config, search.untouched, search.none, search.n_units, found)


def make_units(
    model: LinearizedModel, roots: Roots, groups: Sequence[Sequence[int]] = ()
) -> Int[Tensor, " active"]:
    """Returns the number of each active feature's unit, or -1 if it cannot reach the target.

    A feature reaches the target from earlier layers, at the target's position or before. A feature in two groups
    belongs to the later one.
    """
    features = model.features
    reaches = features.layer < roots.targets.layer
    if len(roots.targets):
        reaches &= features.position <= roots.targets.position.max()
    owner = torch.arange(len(features), device=features.layer.device)
    for number, group in enumerate(groups):
        owner[list(group)] = len(features) + number
    unit = torch.full_like(owner, -1)
    unit[reaches] = owner[reaches].unique(return_inverse=True)[1]
    return unit


def _find(search: SubgraphSearch, method: SubgraphMethod, share: float) -> Subgraph:
    started = time.perf_counter()
    unit, minimal = torch.empty(0, dtype=torch.int64), False
    if search.untouched > search.none:
        if method == "greedy":
            start = torch.arange(search.n_units)
            if not search.enough(search.shares([start]), share):
                # without errors, all features together can keep less than some of them
                start = search.first(rank(_ranking(search, "total_effect")), share)
            if len(start):
                result = search.eliminate(start, share)
                unit, minimal = result.kept.flip(0), result.minimal
        else:
            unit = search.first(rank(_ranking(search, method)), share)
    seconds = time.perf_counter() - started
    where = [(search.unit == each).nonzero()[:, 0] for each in unit.tolist()]
    active = torch.cat(where) if where else search.counted[:0]
    owner = torch.repeat_interleave(torch.tensor([len(each) for each in where], dtype=torch.int64))
    mask = torch.zeros(len(search.unit), dtype=torch.bool, device=search.unit.device)
    mask[active] = True
    kept = float(search.shares([unit])[0]) if search.untouched != search.none else float("nan")
    return Subgraph(
        method, unit, active, owner, kept, search.kept_frozen(active), minimal,
        subgraph_scores(search.model, search.roots, mask), seconds,
    )  # fmt: skip


def _ranking(search: SubgraphSearch, method: SubgraphMethod) -> Float[Tensor, " unit"]:
    """Returns the score by which a method ranks the units."""
    if method == "influence":
        return search.by_unit(full_influence(search.model, search.roots))
    effects = total_effects(search.model, search.roots.targets)[:, : len(search.unit)]
    return search.by_unit(search.roots.weight @ effects)
