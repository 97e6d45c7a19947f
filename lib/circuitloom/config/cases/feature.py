"""Keys of the case study of one feature."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, PositiveFloat, PositiveInt, model_validator

from ..circuits import BehaviourPrompt, parse_feature
from .base import Bound, Case, Slots, Texts, check_slots


def is_feature(text: str) -> str:
    """Returns `text` if it is written LAYER/NUMBER. Raises ValueError otherwise."""
    if parse_feature(text).position is not None:
        raise ValueError(f"{text!r} names a position; write LAYER/NUMBER")
    return text


class FeatureCase(Case):
    """What does a feature fire on, what does it read, and what does it do?"""

    tables: ClassVar = ("claim", "outcome", "source")
    figures: ClassVar = ("activations", "sources")
    kind: Literal["feature"]
    """Selects the case study of one feature."""
    concept: str | None = None
    """Concept of the corpus that the feature should predict. With null, the feature that best separates `texts` from
    `edited` is chosen."""
    feature: Annotated[str, AfterValidator(is_feature)] | None = None
    """The feature, written LAYER/NUMBER. With null, the study chooses a feature."""
    texts: Texts
    """Templates of texts at whose last token the feature should fire. `{name}` is replaced by a word of `slots`."""
    edited: Texts
    """Edited templates, one for each template of `texts` in the same order. At their last token the feature should not
    fire."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it."""
    effect: str | None = None
    """Metric of the token after each text: `logit TOKEN` or `logit TOKEN vs TOKEN`. Ablating the feature should lower
    this metric. With null, no such metric is measured."""
    published: dict[str, PositiveFloat] = {}
    """Maps texts to the published activation of the feature at their last token."""
    prompts: PositiveInt = 40
    """Number of texts per template. The feature and its rule are found on one half (finding) and tested on the other
    (testing)."""
    traced: PositiveInt = 8
    """Number of texts of the finding half on which the feature is traced."""
    least_share: Bound = 0.05
    """Minimum share that the tokens at an offset have in the effect of all tokens. Offsets with a smaller share are not
    considered for the rule."""
    found: Bound = 0.8
    """Three claims: the F1 for the concept is at least this, the feature tells apart at least this share of the pairs
    of text and edit, and at least this share of token exchanges more than halves the feature's activation."""
    described: Bound = 0.8
    """Two claims: on held-out text, the F1 of the blind rule is at least this, and so is the F1 of the fitted rule."""
    reproduced: Bound = 0.05
    """Claim: the relative difference between measured and published activation is at most this."""
    sufficient: Bound = 0.5
    """Claim: with the rule's tokens alone, at least this share of the activation remains."""

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
