"""The case study of one feature: found, traced, described blind and then unblinded, its rule put to the test."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, PositiveFloat, PositiveInt, model_validator

from ..circuits import BehaviourPrompt, parse_feature
from .base import Bound, Case, Slots, Texts, check_slots


def is_feature(text: str) -> str:
    """`text`; ValueError where it is no feature, or one at a position."""
    if parse_feature(text).position is not None:
        raise ValueError(f"{text!r} names a position; write LAYER/NUMBER")
    return text


class FeatureCase(Case):
    """A feature that tells one use of a token from others: what it fires on, why, and what it does."""

    tables: ClassVar = ("claim", "outcome", "source")
    figures: ClassVar = ("activations", "sources")
    kind: Literal["feature"]
    """A feature is found, traced and tested."""
    concept: str | None = None
    """Concept of the corpus that the feature is to say; null: it is found by contrast of `texts` and `edited`."""
    feature: Annotated[str, AfterValidator(is_feature)] | None = None
    """The feature, LAYER/NUMBER, where it is known; null: it is looked for."""
    texts: Texts
    """Templates of texts at whose last token it is to fire; `{name}` stands for a word of `slots`."""
    edited: Texts
    """The same texts, edited so that it is not to fire at the last token; as many, in the same order."""
    slots: Slots = {}
    """Words by name of the slot."""
    effect: str | None = None
    """What ablating the feature is to change behind `texts`: `logit TOKEN` or `logit TOKEN vs TOKEN`."""
    published: dict[str, PositiveFloat] = {}
    """Texts, each with the activation at its last token that was published of the same feature."""
    prompts: PositiveInt = 40
    """Texts drawn of each template, half to find the feature and its rule on, half to test them on."""
    traced: PositiveInt = 8
    """Texts of the finding half that it is traced on."""
    least_share: Bound = 0.05
    """Share of what tokens add to the feature from which on a token's place may enter the rule."""
    found: Bound = 0.8
    """What F1 of the concept, share of pairs told apart and share of exchanges that silence it must each reach."""
    described: Bound = 0.8
    """F1 on held-out text that a description must reach: blind, and as the rule."""
    reproduced: Bound = 0.05
    """Share of a published activation by which the measured one may differ from it."""
    sufficient: Bound = 0.5
    """Share of the activation that must be left with the words that the rule names alone."""

    @model_validator(mode="after")
    def _complete(self) -> "FeatureCase":
        if len(self.texts) != len(self.edited):
            raise ValueError(
                f"{len(self.texts)} texts and {len(self.edited)} edited ones: each text needs its edit; add what is "
                "missing"
            )
        check_slots([*self.texts, *self.edited], self.slots)
        if self.effect is not None:
            BehaviourPrompt(text=self.texts[0], target=self.effect)
        return self
