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
    """Selects the case study of a logit difference."""
    prompts: Annotated[list[BehaviourPrompt], Field(min_length=1)]
    """Templates of texts, each with its target `logit TOKEN vs TOKEN`. In texts and targets, `{name}` is replaced by a
    word of `slots`."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it."""
    count: Annotated[int, Field(ge=4)] = 80
    """Number of prompts, which are drawn from the templates in turn. The circuit is found on one half (finding) and
    tested on the other (testing)."""
    ablation: Literal["mean", "zero"] = "mean"
    """Value to which ablated components are set: their mean over the prompts and positions of the finding half, or
    zero."""
    recovered: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the logit difference that the circuit must recover alone on the finding half. Before pruning, the
    circuit must recover the mean of this share and 1."""
    least: Bound = 0.002
    """Pruning removes components whose removal costs the circuit less than this share of the difference, on the finding
    half."""
    subsets: PositiveInt = 20
    """Number of random subsets of the circuit on which completeness is measured. The smallest subset has one component.
    The largest subset has half of the circuit's components."""
    compare: bool = True
    """Whether neurons and heads are measured too, for a comparison with transcoder features and heads."""
    traced: PositiveInt = 2
    """Number of prompts of the finding half whose attribution graphs are drawn."""
    positive: Bound = 0.9
    """Claim: the share of the prompts on which the model prefers the right token is at least this."""
    difference: PositiveFloat = 1.0
    """Claim: the mean logit difference of the model is at least this, in nats."""
    share: Bound = 0.8
    """Claim: on the testing half, the circuit alone recovers at least this share of the difference."""
    remaining: Bound = 0.2
    """Claim: without the circuit, at most this share of the difference remains."""
    remaining_features: Bound = 0.5
    """Claim: without the circuit's features, but with all heads intact, at most this share of the difference
    remains."""
    gap: Bound = 0.2
    """Claim: if the same random subset is removed from the circuit and from the model, the metrics of the two differ by
    at most this share of the difference, on average."""
    minimal: Bound = 0.8
    """Claim: for at least this share of the circuit's components, removing the component lowers the circuit's
    metric."""
    fewer: PositiveFloat = 1.0
    """Claim: the number of features and heads that recover `share`, divided by the number of neurons and heads that
    recover `share`, is at most this."""
    explained: Bound = 0.5
    """Claim: if transcoders replace the MLPs and transcoder errors are left out, at least this share of the difference
    remains."""

    @model_validator(mode="after")
    def _complete(self) -> "DifferenceCase":
        check_slots([part for each in self.prompts for part in (each.text, each.target)], self.slots)
        for each in self.prompts:
            if parse_target(each.target).kind != "difference":
                raise ValueError(
                    f"target {each.target!r} is not a logit difference; write `logit TOKEN vs TOKEN`"
                )
        return self
