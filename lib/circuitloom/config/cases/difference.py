"""Keys of the case study of a logit difference."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..circuits import BehaviourPrompt, parse_target
from ..templates import Slots, check_slots
from .base import Bound, CommonCircuitCase


class DifferenceCase(CommonCircuitCase):
    """Which transcoder features and attention heads produce a logit difference?"""

    tables: ClassVar = ("claim", "outcome", "component", "faithfulness", "aggregate_node", "aggregate_edge")
    figures: ClassVar = ("curve", "components", "graph", "common")
    kind: Literal["difference"]
    """Selects the case study of a logit difference."""
    prompts: Annotated[list[BehaviourPrompt], Field(min_length=1)]
    """Templates of texts, each with its target `logit TOKEN vs TOKEN`. In texts and targets, `{name}` is replaced by a
    word of `slots`."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it."""
    count: Annotated[int, Field(ge=4)] = 80
    """Number of prompts, drawn from the templates in turn. The circuit is found on the finding half of the prompts, and
    tested on the testing half."""
    ablation: Literal["mean", "zero"] = "mean"
    """Value of ablated components: zero, or their mean over the prompts and positions of the finding half."""
    recovered: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the logit difference that the circuit alone must recover on the finding half. Before pruning, the
    circuit must recover (1 + `recovered`) / 2."""
    least: Bound = 0.002
    """Pruning removes a component if the circuit then loses less than this share of the difference, on the finding
    half."""
    measured: PositiveInt | None = None
    """Largest number of components whose worth is measured by ablating each of them. With null, all. In a larger
    circuit, pruning orders components by a first-order estimate, whose cost does not depend on their number, and the
    claim `minimal` is about that many components, drawn at random."""
    subsets: PositiveInt = 20
    """Number of random subsets of the circuit for the test of completeness. The subsets have between one component and
    half of the circuit's components."""
    compare: bool = True
    """Whether to measure neurons and heads too, for a comparison with transcoder features and heads."""
    traced: PositiveInt = 2
    """Number of prompts of the finding half whose attribution graphs are drawn."""
    attention: bool = False
    """Whether to explain why a head reads the place in the prompt where the right token stands, by QK attribution of
    its score. The head that reads it most, among heads above layer 0, is chosen on the finding half. Prompts without
    the right token are left out."""
    attends: Bound = 0.5
    """Claim, with `attention`: on the testing half, the head's mean attention to the right token's place is at least
    this value."""
    attention_share: Bound = 0.5
    """Claims, with `attention`: of the lead of the head's score over other keys, sources of the key at the token before
    it hold at least this share, and so do their pairs with sources of the query at the last token."""
    attention_remaining: Bound = 0.5
    """Claims, with `attention`: without the embedding of the token before in the key, or of the last token in the
    query, at most this share of the head's attention remains."""
    positive: Bound = 0.9
    """Claim: the model prefers the right token on at least this share of the prompts."""
    difference: PositiveFloat = 1.0
    """Claim: the mean logit difference of the model is at least this number of nats."""
    share: Bound = 0.8
    """Claim: on the testing half, the circuit alone recovers at least this share of the difference."""
    remaining: Bound = 0.2
    """Claim: without the circuit, at most this share of the difference remains."""
    remaining_features: Bound = 0.5
    """Claim: without the circuit's features, but with all heads intact, at most this share of the difference
    remains."""
    gap: Bound = 0.2
    """Claim: a random subset is removed from the circuit, and from the model. The metrics of circuit and model then
    differ on average by at most this share of the difference."""
    minimal: Bound = 0.8
    """Claim: removing a component lowers the circuit's metric, for at least this share of the components."""
    fewer: PositiveFloat = 1.0
    """Claim: (number of features and heads that recover `share`) / (number of neurons and heads that recover `share`)
    is at most this value."""
    explained: Bound = 0.5
    """Claim: with transcoders in place of MLPs, and without transcoder errors, at least this share of the difference
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
