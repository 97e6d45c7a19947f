"""Searches for a small set of components that alone keeps a share of a metric.

More components need not keep more: a component can lower the metric. So no step assumes that the share grows with the
set. Each result is a set whose share was measured, and the docstrings say in which sense it is small.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .circuits import Components, without_places
from .faithfulness import size_grid

MIN_PRUNED = 0.02
"""Pruning stops after a round that removes at most this share of the circuit."""
MAX_REMOVED = 0.5
"""Largest share of the components that a round of `SetSearch.eliminate` removes. The losses of the others change."""
PER_OCTAVE = 4
"""Number of sizes that are tried per doubling of the number of components."""
ROUND_PER_OCTAVE = 2
"""The same number in a round of `SetSearch.eliminate`."""


@dataclass(frozen=True)
class EliminatedSet:
    """Result of `SetSearch.eliminate`."""

    kept: Components
    """The components that remain. The last ones would have been removed last."""
    removed: Components
    """The other components, in the order in which they were removed."""
    minimal: bool
    """Whether it was measured that without any one of the remaining components, too little is kept."""


class SetSearch(ABC):
    """Finds a small set of components that keeps a share of a metric when all other components are ablated."""

    none: float
    """Metric with all components ablated."""
    untouched: float
    """Metric of the untouched model."""
    measured: int | None
    """Largest number of components whose worth is measured by ablation. None means all."""

    @abstractmethod
    def alone(self, sets: Sequence[Components]) -> Float[Tensor, " set"]:
        """Returns the metric when only the components of a set are kept."""

    @abstractmethod
    def measured_loss(self, circuit: Components, place: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
        """Returns the drop of the metric when circuit[place] is ablated as well as all outside the circuit."""

    @abstractmethod
    def estimated_loss(self, circuit: Components) -> Float[Tensor, " component"]:
        """Returns a first-order estimate of `measured_loss` for each component of the circuit."""

    def enough(self, shares: Float[Tensor, " set"], share: float) -> Bool[Tensor, " set"]:
        """Returns whether sets that keep `shares` of the metric keep `share`."""
        return shares >= share

    def shares(self, sets: Sequence[Components]) -> Float[Tensor, " set"]:
        """Returns the share of the metric that each set of components keeps alone: (alone - none) / (untouched -
        none)."""
        return (self.alone(sets) - self.none) / (self.untouched - self.none)

    def worth(self, circuit: Components, place: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
        """Returns the share of the metric that the circuit loses without the component circuit[place]. In a circuit
        of more than `measured` components, this is a first-order estimate."""
        if self.measured is not None and len(circuit) > self.measured:
            loss = self.estimated_loss(circuit)[place]
        else:
            loss = self.measured_loss(circuit, place)
        return loss / (self.untouched - self.none)

    def bisect(self, order: Components, low: int, high: int, share: float) -> Components:
        """Returns the first k components of `order`, with low < k <= high. They keep `share`, and the first k - 1 do
        not.

        The first `high` keep `share`, and the first `low` do not. A smaller k can keep `share` too, if the share does
        not grow with k.
        """
        while high - low > 1:
            middle = (low + high) // 2
            enough = bool(self.enough(self.shares([order[:middle]]), share))
            low, high = (low, middle) if enough else (middle, high)
        return order[:high]

    def first(self, order: Components, share: float) -> Components:
        """Returns the first components of `order` that keep `share`. The result is empty if no size that was tried
        keeps it.

        Sizes on a grid are measured, all of them, and the smallest that keeps `share` is chosen. Between it and the
        next smaller size of the grid, the search bisects.
        """
        grid = size_grid(len(order), PER_OCTAVE)
        enough = self.enough(self.shares([order[:size] for size in grid]), share).tolist()
        if True not in enough:
            return order[:0]
        place = enough.index(True)
        return order[:0] if place == 0 else self.bisect(order, grid[place - 1], grid[place], share)

    def prune(self, circuit: Components, share: float, least: float) -> Components:
        """Remove components with a worth below `least` while the circuit still recovers `share`.

        Each round removes as many components as possible, in ascending order of worth. Then the round measures the
        worth of some remaining components again: the half with the lowest worth.
        """
        worth = self.worth(circuit, torch.arange(len(circuit)))
        while n_useless := int((worth < least).sum()):
            order, tried = worth.argsort(stable=True), size_grid(n_useless, PER_OCTAVE)[1:]
            enough = self.shares([without_places(circuit, order[:n]) for n in tried]) >= share
            removed = max((n for n, ok in zip(tried, enough, strict=True) if ok), default=0)
            kept = order[removed:].sort().values
            circuit, worth = circuit[kept], worth[kept]
            if removed <= MIN_PRUNED * len(circuit):
                break
            again = worth.argsort(stable=True)[: -(-len(circuit) // 2)]
            worth[again] = self.worth(circuit, again)
        return circuit

    def eliminate(self, circuit: Components, share: float) -> EliminatedSet:
        """Remove components greedily, in rounds, while the remaining ones keep `share`.

        Each round takes what the set loses without each component, by `worth`, and removes those with the smallest
        |worth|: as many as still keep `share`, of the numbers tried, and at most `MAX_REMOVED` of the set. If not even
        one of them can be removed, any other single component is. Where estimates let none be removed, the `measured`
        components with the smallest estimates are measured. The search ends if no single component of those measured
        can be removed.
        """
        gone = [circuit[:0]]
        minimal = False
        while len(circuit):
            worth = self.worth(circuit, torch.arange(len(circuit)))
            exact = self.measured is None or len(circuit) <= self.measured
            order = worth.abs().argsort(stable=True)
            removed = self._removable(circuit, order, share)
            if not removed:
                tried = order[: self.measured]
                loss = worth[tried] if exact else self._measured_worth(circuit, tried)
                after = self.shares([circuit]) - loss
                allowed = self.enough(after, share).nonzero()[:, 0]
                if not len(allowed):
                    circuit, minimal = circuit[order], exact
                    break
                # the removal after which the share is nearest to that of the untouched model
                best = tried[allowed[(after[allowed] - 1).abs().argmin()]]
                order, removed = torch.cat([best[None], order[order != best]]), 1
            gone.append(circuit[order[:removed]])
            circuit = circuit[order[removed:].sort().values]
        return EliminatedSet(circuit, torch.cat(gone), minimal or not len(circuit))

    def _measured_worth(self, circuit: Components, place: Int[Tensor, " place"]) -> Float[Tensor, " place"]:
        return self.measured_loss(circuit, place) / (self.untouched - self.none)

    def _removable(self, circuit: Components, order: Int[Tensor, " component"], share: float) -> int:
        """Returns how many of the first components of `order`, places in the circuit, can be removed at once."""
        most = max(1, int(MAX_REMOVED * len(circuit)))
        tried = size_grid(most, ROUND_PER_OCTAVE)[1:]
        enough = self.enough(self.shares([without_places(circuit, order[:n]) for n in tried]), share)
        return max((n for n, ok in zip(tried, enough.tolist(), strict=True) if ok), default=0)
