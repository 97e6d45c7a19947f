"""The attribution graph of a prompt with all active features, and what it predicts of ablations."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...attribution.direct_effects import SourceColumns, source_columns
from ...attribution.graph import (
    GraphScores,
    Influence,
    Roots,
    Rows,
    adjacency,
    counted_sources,
    influence,
    scores,
)
from ...attribution.linearized_model import LinearizedModel


class Flow(NamedTuple):
    """Where the influence on the roots comes from. The three shares sum to 1.

    Influence is followed from the roots to their sources, until it reaches one of some features, a token or an error.
    """

    through: float
    """Share that reaches one of the features."""
    around: float
    """Share that reaches token embeddings without passing through one of the features."""
    errors: float
    """Share that reaches errors without passing through one of the features."""


@dataclass(frozen=True)
class FullGraph:
    """Graph of a prompt without pruning. Memory grows with the square of the number of active features."""

    model: LinearizedModel
    roots: Roots
    effects: Float[Tensor, "target source"]
    """Direct effects on each active feature, then on each root. `columns` describes the sources."""

    @property
    def columns(self) -> SourceColumns:
        """The sources."""
        return source_columns(self.model)

    @cached_property
    def influence(self) -> Influence:
        """Influence of each node on the roots."""
        return self._influence(self.effects)

    @cached_property
    def scores(self) -> GraphScores:
        """Replacement and completeness scores."""
        return scores(self.influence, self._weight, self.columns.errors, self.columns.embeddings)

    def strongest(self, most: int) -> Int[Tensor, " feature"]:
        """Returns the indices in `model.features` of at most `most` features with the largest influence, ascending."""
        own = self.influence.node[: self.columns.active]
        return own.topk(min(most, len(own))).indices.sort().values

    def flow(self, features: Bool[Tensor, " active"]) -> Flow:
        """Returns the share of influence that passes through the marked ones of `model.features`."""
        effects = self.effects.clone()
        # influence that reaches a marked feature is not followed further
        effects[: self.columns.active][features] = 0.0
        node, total = self._influence(effects).node, float(self.roots.weight.sum())
        ends = (
            node[: self.columns.active][features],
            node[self.columns.embeddings],
            node[self.columns.errors],
        )
        return Flow(*(float(part.sum()) / total for part in ends))

    def predict_each(self, ablated: Int[Tensor, " ablated"]) -> Float[Tensor, "ablated root"]:
        """Returns the drop of each root when one feature is ablated, over all paths through other features.

        Active features pass on changes with slope 1, as in `total_effects`.
        """
        active = self.columns.active
        passed = torch.linalg.solve_triangular(
            self._identity - self._slopes[:active],
            self.effects[:active, ablated],
            upper=False,
            unitriangular=True,
        )
        return (self.effects[active:, ablated] + self._slopes[active:] @ passed).T

    def predict_set(self, ablated: Bool[Tensor, " active"]) -> Float[Tensor, " root"]:
        """Returns the drop of each root when all marked features are ablated together."""
        active = self.columns.active
        direct = self.effects[:, :active][:, ablated].sum(1)
        # an ablated feature stays at 0, whatever reaches it
        kept = (~ablated).to(direct)
        slopes = self._slopes[:active] * kept[:, None] * kept
        passed = torch.linalg.solve_triangular(
            self._identity - slopes, (direct[:active] * kept)[:, None], upper=False, unitriangular=True
        )
        return direct[active:] + self._slopes[active:] @ passed[:, 0]

    @property
    def _weight(self) -> Float[Tensor, " node"]:
        return torch.cat([self.roots.weight.new_zeros(len(self.columns)), self.roots.weight])

    @property
    def _identity(self) -> Float[Tensor, "active active"]:
        return torch.eye(self.columns.active, dtype=self.effects.dtype, device=self.effects.device)

    @cached_property
    def _slopes(self) -> Float[Tensor, "target active"]:
        """Change of each target per unit of each feature's activation."""
        return self.effects[:, : self.columns.active] / self.model.features.activation

    def _influence(self, effects: Float[Tensor, "target source"]) -> Influence:
        counted = counted_sources(self.columns).to(effects.device)
        active, start = self.columns.active, len(self.columns)

        def rows(_reached: Float[Tensor, " node"]) -> Rows:
            yield torch.arange(start, start + len(self.roots.weight)), effects[active:]
            for layer in reversed(self.model.dictionaries):
                own = self.model.active_in_layer(layer, len(self.model.captured))
                yield torch.arange(own.start, own.stop), effects[own]

        return influence(rows, self._weight, counted, self.columns.errors)


@torch.inference_mode()
def full_graph(model: LinearizedModel, roots: Roots) -> FullGraph:
    """Returns the graph of the roots with all active features."""
    return FullGraph(model, roots, adjacency(model, roots))
