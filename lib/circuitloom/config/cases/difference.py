"""Keys of the case study of a logit difference."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..circuits import BehaviourPrompt, parse_target
from .base import Bound, Case, Slots, check_slots


class DifferenceCase(Case):
    """Which transcoder features and attention heads make a logit difference?"""

    tables: ClassVar = ("claim", "outcome", "component", "faithfulness")
    figures: ClassVar = ("curve", "components", "graph")
    kind: Literal["difference"]
    """The case study of a logit difference."""
    prompts: Annotated[list[BehaviourPrompt], Field(min_length=1)]
    """Templates of texts with their targets `logit TOKEN vs TOKEN`; `{name}` in either is replaced by a word of
    `slots`."""
    slots: Slots = {}
    """Slot to its words."""
    count: Annotated[int, Field(ge=4)] = 80
    """Number of prompts, drawn from the templates in turn: half to find the circuit on, half to test it on."""
    ablation: Literal["mean", "zero"] = "mean"
    """Ablated components are set to their mean over prompts and positions of the finding half, or to zero."""
    recovered: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the difference that the circuit must recover alone on the finding half; (1 + it) / 2 before pruning."""
    least: Bound = 0.002
    """Components whose removal costs the circuit less than this share of the difference are pruned, finding half."""
    subsets: PositiveInt = 20
    """Number of random subsets of the circuit, of one component to half of them, to measure completeness."""
    compare: bool = True
    """Also measure neurons and heads, to compare with transcoder features and heads."""
    traced: PositiveInt = 2
    """Number of prompts of the finding half whose attribution graphs are drawn."""
    positive: Bound = 0.9
    """Claim: share of the prompts on which the model prefers the right token, at least."""
    difference: PositiveFloat = 1.0
    """Claim: mean logit difference of the model, nats, at least."""
    share: Bound = 0.8
    """Claim: share of the difference that the circuit recovers alone on the testing half, at least."""
    remaining: Bound = 0.2
    """Claim: share of the difference that remains without the circuit, at most."""
    remaining_features: Bound = 0.5
    """Claim: share of the difference that remains without the circuit's features, all heads intact, at most."""
    gap: Bound = 0.2
    """Claim: mean distance between circuit and model without the same random subset, as a share, at most."""
    minimal: Bound = 0.8
    """Claim: share of the circuit's components whose removal lowers its metric, at least."""
    fewer: PositiveFloat = 1.0
    """Claim: components needed for `share` over those needed with neurons instead of features, at most."""
    explained: Bound = 0.5
    """Claim: share of the difference with transcoders instead of all MLPs, without error terms, at least."""

    @model_validator(mode="after")
    def _complete(self) -> "DifferenceCase":
        check_slots([part for each in self.prompts for part in (each.text, each.target)], self.slots)
        for each in self.prompts:
            if parse_target(each.target).kind != "difference":
                raise ValueError(
                    f"target {each.target!r} is not a logit difference; write `logit TOKEN vs TOKEN`"
                )
        return self
