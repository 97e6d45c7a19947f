"""The case study of a logit difference: the features and heads that make it, put to the test."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..circuits import BehaviourPrompt, parse_target
from .base import Bound, Case, Slots, check_slots


class DifferenceCase(Case):
    """A logit difference, and the circuit of transcoder features and attention heads that it rests on."""

    tables: ClassVar = ("claim", "outcome", "component", "faithfulness")
    figures: ClassVar = ("curve", "components", "graph")
    kind: Literal["difference"]
    """A circuit for a logit difference is found and tested."""
    prompts: Annotated[list[BehaviourPrompt], Field(min_length=1)]
    """Templates of texts, each with its target `logit TOKEN vs TOKEN`; `{name}`, in both, stands for a word of
    `slots`."""
    slots: Slots = {}
    """Words by name of the slot."""
    count: Annotated[int, Field(ge=4)] = 80
    """Prompts drawn, the templates by turns: half to find the circuit on, half to test it on."""
    ablation: Literal["mean", "zero"] = "mean"
    """What ablated components are set to: their mean over the prompts and positions of the finding half, or zero."""
    recovered: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the difference that the circuit must recover alone on the finding half; before it is pruned, half of
    what is missing as well."""
    least: Bound = 0.002
    """A component of which the circuit loses less, as a share of the difference, is pruned on the finding half."""
    subsets: PositiveInt = 20
    """Random subsets of the circuit, of one component to half of them, that completeness is measured on."""
    compare: bool = True
    """Do the same with neurons in place of the transcoders' features."""
    traced: PositiveInt = 2
    """Prompts of the finding half whose attribution graphs are drawn."""
    positive: Bound = 0.9
    """Share of the prompts on which the model must prefer the right token."""
    difference: PositiveFloat = 1.0
    """Mean difference that the model must have, nats."""
    share: Bound = 0.8
    """Share of the difference that the circuit must recover alone on the testing half."""
    remaining: Bound = 0.2
    """Share of the difference that may be left without the circuit."""
    remaining_features: Bound = 0.5
    """Share that may be left without the circuit's features, where all heads are left as they are."""
    gap: Bound = 0.2
    """Mean difference of circuit and model without the same random subset, as a share of the difference, at most."""
    minimal: Bound = 0.8
    """Share of the circuit's components without which, each alone, it must lose something."""
    fewer: PositiveFloat = 1.0
    """Components needed for `share`, as a multiple of those needed with neurons in place of features, at most."""
    explained: Bound = 0.5
    """Share of the difference that must be left where transcoders stand in for all MLPs, without their errors."""

    @model_validator(mode="after")
    def _complete(self) -> "DifferenceCase":
        check_slots([part for each in self.prompts for part in (each.text, each.target)], self.slots)
        for each in self.prompts:
            if parse_target(each.target).kind != "difference":
                raise ValueError(f"target {each.target!r} is no difference; write `logit TOKEN vs TOKEN`")
        return self
