"""Keys of the case study of one feature."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, PositiveFloat, PositiveInt, model_validator

from ..circuits import BehaviourPrompt, parse_feature
from .base import Bound, Case, Slots, Texts, check_slots


def is_feature(text: str) -> str:
    """Return `text`, LAYER/NUMBER; raise ValueError for anything else."""
    if parse_feature(text).position is not None:
        raise ValueError(f"{text!r} names a position; write LAYER/NUMBER")
    return text


class FeatureCase(Case):
    """What does a feature fire on, what does it read, and what does it do?"""

    tables: ClassVar = ("claim", "outcome", "source")
    figures: ClassVar = ("activations", "sources")
    kind: Literal["feature"]
    """The case study of one feature."""
    concept: str | None = None
    """Concept of the corpus that the feature should predict; null: choose it by contrast of `texts` and `edited`."""
    feature: Annotated[str, AfterValidator(is_feature)] | None = None
    """The feature, LAYER/NUMBER; null: choose it."""
    texts: Texts
    """Templates of texts at whose last token it should fire; `{name}` is replaced by a word of `slots`."""
    edited: Texts
    """One edit per template of `texts`, in the same order, at whose last token it should not fire."""
    slots: Slots = {}
    """Slot to its words."""
    effect: str | None = None
    """Target at the end of `texts` that ablating the feature should lower: `logit TOKEN` or `logit TOKEN vs TOKEN`."""
    published: dict[str, PositiveFloat] = {}
    """Text to the published activation of the feature at its last token."""
    prompts: PositiveInt = 40
    """Texts per template: half to find the feature and its rule on, half to test them on."""
    traced: PositiveInt = 8
    """Number of texts of the finding half on which it is traced."""
    least_share: Bound = 0.05
    """Share of the effect of all tokens that an offset needs to enter the rule."""
    found: Bound = 0.8
    """Claim: F1 for the concept, share of pairs told apart, and share of exchanges that halve it, each at least."""
    described: Bound = 0.8
    """Claim: F1 on held-out text of the blind and of the fitted rule, at least."""
    reproduced: Bound = 0.05
    """Claim: relative error of a published activation, at most."""
    sufficient: Bound = 0.5
    """Claim: share of the activation that remains with the rule's tokens alone, at least."""

    @model_validator(mode="after")
    def _complete(self) -> "FeatureCase":
        if len(self.texts) != len(self.edited):
            raise ValueError(
                f"{len(self.texts)} texts and {len(self.edited)} edited ones: each text needs its edit; add the "
                "missing ones"
            )
        check_slots([*self.texts, *self.edited], self.slots)
        if self.effect is not None:
            BehaviourPrompt(text=self.texts[0], target=self.effect)
        return self
